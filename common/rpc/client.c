#include "common/rpc/client.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/client_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void open_link(td_rpc_client *client);

static void settle(td_task *task, void *user)
{
    td_rpc_client *client = user;
    (void)task;
    if (!client->closing || client->links != NULL)
        return;
    if (client->on_closed != NULL)
        client->on_closed(client->closed_user);
    free(client);
}

static void set_state(td_rpc_client *client, td_rpc_state state, const td_err *why)
{
    if (client->state == state)
        return;
    client->state = state;
    if (client->conf.on_state != NULL && !client->closing)
        client->conf.on_state(client, client->conf.user, state, why);
}

/* Doubles from try to try, less a quarter at random, so that a rack of clients does not come back
 * as one. */
static void back_off(td_rpc_client *client)
{
    int64_t ms = client->conf.backoff_min_ms;
    for (uint32_t i = 1; i < client->n_failures && ms < client->conf.backoff_max_ms; i++)
        ms *= 2;
    if (ms > client->conf.backoff_max_ms)
        ms = client->conf.backoff_max_ms;
    int64_t now = td_now_ns();
    int64_t jitter = (int64_t)((uint64_t)now / 1000 % 256) * ms / 1024;
    td_timer_at(&client->backoff, now + (ms - jitter) * TD_NS_PER_MS);
}

static void on_backoff(td_timer *timer, void *user)
{
    (void)timer;
    open_link(user);
}

/* current is gone (or could not even be made). */
static void broken(td_rpc_client *client, const td_err *why)
{
    client->current = NULL;
    if (client->closing)
        return;
    client->n_failures++;
    if (client->n_failures == 1)
        td_info("rpc.link.lost", "name=%s peer=%s why=\"%s\"", client->conf.name, client->authority,
                why->text);
    back_off(client);
    set_state(client, TD_RPC_BROKEN, why);
}

/* ---- events of a connection ---- */

static void on_ready(td_h2 *h2)
{
    td_rpc_client *client = h2->owner;
    if (client->current != h2)
        return;
    client->n_failures = 0;
    td_info("rpc.link.ready", "name=%s peer=%s", client->conf.name, client->authority);
    set_state(client, TD_RPC_READY, NULL);
}

/* The old connection lives on with its requests; new ones need a new connection, which a healthy
 * server (idle timeout, or a restart behind the same address) gives at once: no reason to call the
 * link broken. One that greets everybody with GOAWAY gets no such credit. */
static void on_goaway(td_h2 *h2)
{
    td_rpc_client *client = h2->owner;
    td_err why;
    if (client->current != h2)
        return;
    if (h2->ready && td_now_ns() - h2->born_ns >= TD_NS_PER_S) {
        client->current = NULL;
        open_link(client);
    } else {
        td_fail(&why, TD_PEER_LOST, "the server is shutting down");
        broken(client, &why);
    }
}

static void on_dead(td_h2 *h2, const td_err *why)
{
    td_rpc_client *client = h2->owner;
    snprintf(client->lost, sizeof(client->lost), "%.200s: %.300s", client->authority, why->text);
    if (client->current == h2)
        broken(client, why);
}

static void on_gone(td_h2 *h2)
{
    td_rpc_client *client = h2->owner;
    if (h2->prev != NULL)
        h2->prev->next = h2->next;
    else
        client->links = h2->next;
    if (h2->next != NULL)
        h2->next->prev = h2->prev;
    td_task_defer(&client->settle);
}

const td_h2_events td_rpc_client_h2_events = {
    .on_headers = td_rpc_request_on_headers,
    .on_trailers = td_rpc_request_on_trailers,
    .on_data = td_rpc_request_on_data,
    .on_end_stream = td_rpc_request_on_end_stream,
    .on_eof = td_rpc_request_on_eof,
    .on_close = td_rpc_request_on_close,
    .on_ready = on_ready,
    .on_goaway = on_goaway,
    .on_dead = on_dead,
    .on_gone = on_gone,
};

static td_status make_link(td_rpc_client *client, td_err *err)
{
    const td_rpc_client_conf *c = &client->conf;
    td_h2_limits limits = {
        .max_header_bytes = c->max_header_bytes,
        .handshake_ms = c->connect_ms,
        .stall_ms = c->stall_ms,
        .keepalive_ms = c->keepalive_ms,
        .keepalive_reply_ms = c->keepalive_reply_ms,
    };
    td_h2 *h2;
    td_conn *conn;
    td_status st = td_h2_new(client->loop, &limits, &td_rpc_client_h2_events, client, &h2, err);
    if (st < 0)
        return st;
    st = td_conn_connect(client->loop, &c->peer, c->security, &td_h2_conn_events, h2, &conn, err);
    if (st < 0) {
        td_h2_discard(h2);
        return st;
    }
    h2->next = client->links;
    if (h2->next != NULL)
        h2->next->prev = h2;
    client->links = client->current = h2;
    td_h2_start(h2, conn, false);
    return TD_OK;
}

static void open_link(td_rpc_client *client)
{
    td_err err;
    td_timer_stop(&client->backoff);
    if (make_link(client, &err) < 0)
        broken(client, &err);
    else
        set_state(client, TD_RPC_CONNECTING, NULL);
}

/* ---- the client's life ---- */

static void default_ms(int64_t *value, int64_t ms)
{
    if (*value == 0)
        *value = ms;
}

static void set_defaults(td_rpc_client_conf *c)
{
    if (c->name == NULL)
        c->name = "rpc";
    default_ms(&c->connect_ms, 5000);
    default_ms(&c->backoff_min_ms, 100);
    default_ms(&c->backoff_max_ms, 2000);
    default_ms(&c->keepalive_reply_ms, c->keepalive_ms);
    default_ms(&c->stall_ms, 20000);
    if (c->max_requests == 0)
        c->max_requests = 4096;
    if (c->max_message_bytes == 0)
        c->max_message_bytes = (size_t)4 << 20;
    if (c->max_backlog_bytes == 0)
        c->max_backlog_bytes = (size_t)4 << 20;
    if (c->max_header_bytes == 0)
        c->max_header_bytes = (size_t)16 << 10;
}

td_status td_rpc_client_open(td_loop *loop, const td_rpc_client_conf *conf, td_rpc_client **out,
                             td_err *err)
{
    td_rpc_client *client = calloc(1, sizeof(*client));
    if (client == NULL)
        return td_fail(err, TD_NOMEM, "rpc client: out of memory");
    client->loop = loop;
    client->conf = *conf;
    set_defaults(&client->conf);
    client->assembly.max = (size_t)256 << 20;
    client->state = TD_RPC_CONNECTING;
    td_addr_format(&conf->peer, client->authority);
    td_timer_init(&client->backoff, loop, on_backoff, client);
    td_task_init(&client->settle, loop, settle, client);
    td_status st = make_link(client, err);
    if (st < 0) {
        free(client);
        return st;
    }
    *out = client;
    return TD_OK;
}

void td_rpc_client_close(td_rpc_client *client, void (*on_closed)(void *user), void *user)
{
    if (client == NULL || client->closing)
        return;
    client->closing = true;
    client->on_closed = on_closed;
    client->closed_user = user;
    client->current = NULL;
    td_timer_stop(&client->backoff);
    for (td_h2 *h2 = client->links; h2 != NULL; h2 = h2->next)
        td_h2_kill(h2, TD_CANCELLED, "the client closes");
    td_task_defer(&client->settle);
}

td_rpc_state td_rpc_client_state(const td_rpc_client *client)
{
    return client->state;
}

void td_rpc_client_retry(td_rpc_client *client)
{
    if (client->state == TD_RPC_BROKEN && !client->closing)
        td_timer_at(&client->backoff, td_now_ns()); /* from the loop: on_state may follow */
}
