#include "common/rpc/h2.h"

#include "common/base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SECOND_LOOK_MS = 5,
    WRITE_AT = 64 * 1024,     /* a batch this large is written */
    TURN_BYTES = 1024 * 1024, /* then other connections get their turn */
};

/* ---- small parts ---- */

nghttp2_nv td_h2_nv(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
                        NGHTTP2_NV_FLAG_NONE};
}

void td_h2_schedule(td_h2 *h2)
{
    if (h2->open && !h2->writing && !h2->dying)
        td_task_defer(&h2->flush);
}

void td_h2_link(td_h2 *h2, td_h2_stream *s, int32_t id)
{
    s->h2 = h2;
    s->id = id;
    s->prev = NULL;
    s->next = h2->streams;
    if (s->next != NULL)
        s->next->prev = s;
    h2->streams = s;
    h2->n_streams++;
    h2->idle_ns = 0;
}

void td_h2_unlink(td_h2_stream *s)
{
    td_h2 *h2 = s->h2;
    if (s->prev != NULL)
        s->prev->next = s->next;
    else
        h2->streams = s->next;
    if (s->next != NULL)
        s->next->prev = s->prev;
    s->prev = s->next = NULL;
    s->h2 = NULL;
    if (--h2->n_streams == 0) {
        h2->idle_ns = td_now_ns();
        h2->rearm = true;
    }
}

/* ---- the end ---- */

static void vkill(td_h2 *h2, td_status st, const char *fmt, va_list ap)
{
    if (h2->dying)
        return;
    char complaint[sizeof(h2->why.text)], text[sizeof(h2->why.text)];
    memcpy(complaint, h2->why.text, sizeof(complaint));
    vsnprintf(text, sizeof(text), fmt, ap);
    if (complaint[0] != '\0' && (h2->broken || st == TD_PROTOCOL))
        td_fail(&h2->why, TD_PROTOCOL, "%.240s (%.240s)", text, complaint);
    else
        td_fail(&h2->why, st, "%s", text);
    h2->dying = true;
    td_timer_stop(&h2->watch);
    td_task_cancel(&h2->flush);
    td_task_defer(&h2->reap);
}

void td_h2_kill(td_h2 *h2, td_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vkill(h2, st, fmt, ap);
    va_end(ap);
}

static void run_reap(td_task *task, void *user)
{
    td_h2 *h2 = user;
    (void)task;
    h2->events->on_dead(h2, &h2->why);
    while (h2->streams != NULL) {
        td_h2_stream *s = h2->streams;
        td_h2_unlink(s);
        h2->events->on_close(s, true, NGHTTP2_NO_ERROR);
    }
    nghttp2_session_del(h2->session);
    h2->session = NULL;
    td_conn_close(h2->conn);
}

static void on_conn_closed(void *user)
{
    td_h2 *h2 = user;
    h2->events->on_gone(h2);
    free(h2);
}

static void on_conn_end(void *user, const td_err *why)
{
    td_h2_kill(user, why->status, "%s", why->text);
}

/* Both sides have said what they had to say: GOAWAY, or an error that nghttp2 has answered with
 * one. */
static bool over(const td_h2 *h2)
{
    return nghttp2_session_want_read(h2->session) == 0 &&
           nghttp2_session_want_write(h2->session) == 0;
}

/* ---- deadlines ---- */

static void sooner(int64_t *due, int64_t since_ns, int64_t ms)
{
    if (since_ns != 0 && ms > 0 && (*due == 0 || since_ns + ms * TD_NS_PER_MS < *due))
        *due = since_ns + ms * TD_NS_PER_MS;
}

static void arm_watch(td_h2 *h2)
{
    const td_h2_limits *l = &h2->limits;
    int64_t due = 0;
    h2->rearm = false;
    if (!h2->ready)
        sooner(&due, h2->born_ns, l->handshake_ms);
    else if (h2->ping_ns != 0)
        sooner(&due, h2->ping_ns, l->keepalive_reply_ms);
    else
        sooner(&due, h2->heard_ns, l->keepalive_ms);
    sooner(&due, h2->header_ns, l->header_ms);
    sooner(&due, h2->stall_ns, l->stall_ms);
    if (!h2->goaway_sent)
        sooner(&due, h2->idle_ns, l->idle_ms);
    if (due != 0 && !h2->dying)
        td_timer_at(&h2->watch, due);
    else
        td_timer_stop(&h2->watch);
}

static bool passed(int64_t now, int64_t since_ns, int64_t ms)
{
    return since_ns != 0 && ms > 0 && now - since_ns >= ms * TD_NS_PER_MS;
}

static void check_stall(td_h2 *h2, int64_t now)
{
    size_t unsent = td_conn_unsent_bytes(h2->conn);
    if (unsent < h2->stall_bytes) { /* it takes some, slowly */
        h2->stall_bytes = unsent;
        h2->stall_ns = now;
    } else {
        td_h2_kill(h2, TD_PEER_LOST, "peer has not read for %lld ms",
                   (long long)h2->limits.stall_ms);
    }
}

/* libuv runs timers before sockets: a process that was itself stopped, or starved, finds its
 * deadlines passed and the peer's words unread. So whoever seems silent gets one more turn of the
 * loop. */
static bool give_second_look(td_h2 *h2, int64_t now)
{
    bool late = (!h2->ready && passed(now, h2->born_ns, h2->limits.handshake_ms)) ||
                passed(now, h2->ping_ns, h2->limits.keepalive_reply_ms);
    if (!late || h2->second_look) {
        h2->second_look = false;
        return false;
    }
    h2->second_look = true;
    td_timer_at(&h2->watch, now + SECOND_LOOK_MS * TD_NS_PER_MS);
    return true;
}

static void on_watch(td_timer *timer, void *user)
{
    td_h2 *h2 = user;
    const td_h2_limits *l = &h2->limits;
    int64_t now = td_now_ns();
    (void)timer;
    if (h2->ping_ns != 0 && h2->heard_ns > h2->ping_ns)
        h2->ping_ns = 0;
    if (give_second_look(h2, now))
        return;
    if (!h2->ready && passed(now, h2->born_ns, l->handshake_ms)) {
        td_h2_kill(h2, TD_PEER_LOST, "%s within %lld ms",
                   h2->open ? "no HTTP/2 settings" : "no connection", (long long)l->handshake_ms);
    } else if (passed(now, h2->header_ns, l->header_ms)) {
        td_h2_kill(h2, TD_PROTOCOL, "headers unfinished after %lld ms", (long long)l->header_ms);
    } else if (passed(now, h2->ping_ns, l->keepalive_reply_ms)) {
        td_h2_kill(h2, TD_PEER_LOST, "peer silent for %lld ms",
                   (long long)((now - h2->heard_ns) / TD_NS_PER_MS));
    } else if (h2->ready && h2->ping_ns == 0 && passed(now, h2->heard_ns, l->keepalive_ms)) {
        nghttp2_submit_ping(h2->session, NGHTTP2_FLAG_NONE, NULL);
        h2->ping_ns = now;
        td_h2_schedule(h2);
    }
    if (!h2->dying && passed(now, h2->stall_ns, l->stall_ms))
        check_stall(h2, now);
    if (!h2->dying && !h2->goaway_sent && passed(now, h2->idle_ns, l->idle_ms))
        td_h2_goaway(h2, false);
    arm_watch(h2);
}

/* ---- sending ---- */

/* False: the peer must take some first, or the connection is lost. */
static bool write_batch(td_h2 *h2, const uint8_t *data, size_t len)
{
    td_status st = td_conn_write(h2->conn, data, len);
    if (st == TD_OK)
        return true;
    if (st == TD_PENDING) {
        h2->writing = true;
        h2->stall_ns = td_now_ns();
        h2->stall_bytes = td_conn_unsent_bytes(h2->conn);
        h2->rearm = true;
    } else {
        td_h2_kill(h2, st, "write failed");
    }
    return false;
}

static bool write_out(td_h2 *h2)
{
    size_t n = h2->n_out;
    h2->n_out = 0;
    return n == 0 || write_batch(h2, h2->scratch->write, n);
}

/* Takes frames from nghttp2 until it has none, the peer takes no more, or the turn is over. */
static void send_frames(td_h2 *h2)
{
    size_t taken = 0;
    for (;;) {
        const uint8_t *data;
        size_t before = h2->n_out;
        ssize_t n = nghttp2_session_mem_send(h2->session, &data);
        if (n < 0) {
            td_h2_kill(h2, TD_NOMEM, "%s", nghttp2_strerror((int)n));
            return;
        }
        if (n == 0 && h2->n_out == before)
            break;
        td_assert(h2->n_out + (size_t)n <= sizeof(h2->scratch->write)); /* TD_H2_SLACK */
        if (n > 0)
            memcpy(h2->scratch->write + h2->n_out, data, (size_t)n);
        h2->n_out += (size_t)n;
        taken += h2->n_out - before;
        if (h2->n_out >= WRITE_AT && !write_out(h2))
            return;
        if (taken >= TURN_BYTES) {
            td_task_defer(&h2->flush);
            break;
        }
    }
    write_out(h2);
}

static void run_flush(td_task *task, void *user)
{
    td_h2 *h2 = user;
    (void)task;
    if (h2->dying || h2->writing || !h2->open)
        return;
    send_frames(h2);
    if (h2->dying)
        return;
    if (!h2->writing && over(h2))
        td_h2_kill(h2, TD_CANCELLED, "closed");
    else if (h2->rearm)
        arm_watch(h2);
}

static void on_conn_drained(void *user)
{
    td_h2 *h2 = user;
    h2->writing = false;
    h2->stall_ns = 0;
    td_h2_schedule(h2);
}

/* ---- receiving ---- */

static void on_conn_open(void *user)
{
    td_h2 *h2 = user;
    h2->open = true;
    td_h2_schedule(h2);
}

static bool queue_is_long(const td_h2 *h2)
{
    return h2->limits.max_queue > 0 &&
           nghttp2_session_get_outbound_queue_size(h2->session) > h2->limits.max_queue;
}

static void on_conn_read(void *user, const uint8_t *data, size_t len)
{
    td_h2 *h2 = user;
    if (h2->dying)
        return;
    h2->heard_ns = td_now_ns();
    ssize_t n = nghttp2_session_mem_recv(h2->session, data, len);
    if (h2->dying)
        return;
    if (n < 0) {
        td_h2_kill(h2, n == NGHTTP2_ERR_NOMEM ? TD_NOMEM : TD_PROTOCOL, "%s",
                   nghttp2_strerror((int)n));
        return;
    }
    if (queue_is_long(h2) && !h2->writing)
        send_frames(h2); /* it may read well: a turn of the loop can bring a lot at once */
    if (h2->dying)
        return;
    if (queue_is_long(h2)) {
        td_h2_kill(h2, TD_PROTOCOL, "asks for more answers than it reads");
        return;
    }
    if (nghttp2_session_want_write(h2->session) != 0)
        td_h2_schedule(h2);
    else if (over(h2) && !h2->writing)
        td_h2_kill(h2, TD_CANCELLED, "closed");
    if (h2->header_ns != 0)
        h2->rearm = true;
    if (h2->rearm)
        arm_watch(h2);
}

const td_conn_events td_h2_conn_events = {on_conn_open, on_conn_read, on_conn_drained, on_conn_end,
                                          on_conn_closed};

/* ---- for the owner ---- */

td_status td_h2_new(td_loop *loop, const td_h2_limits *limits, const td_h2_events *events,
                    void *owner, td_h2 **out, td_err *err)
{
    td_h2 *h2 = calloc(1, sizeof(*h2));
    if (h2 == NULL)
        goto fail;
    h2->loop = loop;
    h2->limits = *limits;
    h2->events = events;
    h2->owner = owner;
    h2->scratch = td_loop_get_scratch(loop);
    h2->born_ns = h2->heard_ns = h2->idle_ns = td_now_ns();
    td_task_init(&h2->flush, loop, run_flush, h2);
    td_task_init(&h2->reap, loop, run_reap, h2);
    td_timer_init(&h2->watch, loop, on_watch, h2);
    if (td_h2_make_session(h2) < 0)
        goto fail;
    *out = h2;
    return TD_OK;
fail:
    td_h2_discard(h2);
    return td_fail(err, TD_NOMEM, "HTTP/2 session: out of memory");
}

void td_h2_discard(td_h2 *h2)
{
    if (h2 == NULL)
        return;
    nghttp2_session_del(h2->session);
    free(h2);
}

void td_h2_start(td_h2 *h2, td_conn *conn, bool open)
{
    h2->conn = conn;
    h2->open = open;
    td_h2_schedule(h2);
    arm_watch(h2);
}

void td_h2_goaway(td_h2 *h2, bool notice)
{
    if (h2->dying)
        return;
    if (notice) {
        nghttp2_submit_shutdown_notice(h2->session);
    } else if (!h2->goaway_sent) {
        h2->goaway_sent = true;
        nghttp2_submit_goaway(h2->session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(h2->session),
                              NGHTTP2_NO_ERROR, NULL, 0);
    }
    td_h2_schedule(h2);
}

bool td_h2_usable(const td_h2 *h2)
{
    return h2 != NULL && !h2->dying && !h2->goaway_seen && !h2->goaway_sent;
}

td_status td_h2_request(td_h2 *h2, td_h2_stream *s, const nghttp2_nv *nv, size_t n_nv)
{
    if (!td_h2_usable(h2))
        return TD_PEER_LOST;
    nghttp2_data_provider provider = td_h2_provider(s);
    int32_t id = nghttp2_submit_request(h2->session, NULL, nv, n_nv, &provider, s);
    if (id < 0)
        return id == NGHTTP2_ERR_NOMEM ? TD_NOMEM : TD_PEER_LOST;
    s->started = true;
    td_h2_link(h2, s, id);
    td_h2_schedule(h2);
    return TD_OK;
}

void td_h2_respond(td_h2_stream *s, const nghttp2_nv *nv, size_t n_nv, bool alone)
{
    if (s->h2 == NULL || s->h2->dying)
        return;
    nghttp2_data_provider provider = td_h2_provider(s);
    s->started = true;
    int rc = nghttp2_submit_response(s->h2->session, s->id, nv, n_nv, alone ? NULL : &provider);
    if (rc != 0)
        td_h2_kill(s->h2, TD_NOMEM, "response headers: %s", nghttp2_strerror(rc));
    td_h2_schedule(s->h2);
}

void td_h2_trailers(td_h2_stream *s, const nghttp2_nv *nv, size_t n_nv)
{
    int rc = nghttp2_submit_trailer(s->h2->session, s->id, nv, n_nv);
    if (rc != 0)
        td_h2_kill(s->h2, TD_NOMEM, "trailers: %s", nghttp2_strerror(rc));
}

void td_h2_wake(td_h2_stream *s)
{
    if (s->h2 == NULL || s->h2->dying)
        return;
    if (s->asleep) {
        s->asleep = false;
        nghttp2_session_resume_data(s->h2->session, s->id);
    }
    td_h2_schedule(s->h2);
}

void td_h2_reset(td_h2_stream *s, uint32_t h2_error)
{
    if (s->h2 == NULL || s->h2->dying || s->reset)
        return;
    s->reset = true;
    int rc = nghttp2_submit_rst_stream(s->h2->session, NGHTTP2_FLAG_NONE, s->id, h2_error);
    if (rc != 0)
        td_h2_kill(s->h2, TD_NOMEM, "reset: %s", nghttp2_strerror(rc));
    td_h2_schedule(s->h2);
}

bool td_h2_at_boundary(const td_h2_stream *s)
{
    return s->out.left_in_message == 0 && s->promised == 0;
}
