/* link.c - the reader's connection to one rank of one source: connecting, the hello, breaking and
 * trying again. UCX's callbacks only take notes; td_link_tend() acts on them. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"

#include <stdio.h>
#include <string.h>

#define BREAKS_MAX 3U /* and one more within this time: the peer is lost */
#define BREAKS_WITHIN_NS (10 * TD_NS_PER_S)
#define RETRY_NS (20 * TD_NS_PER_MS)      /* a refused connection is tried again */
#define RETRY_FOR_NS (500 * TD_NS_PER_MS) /* so long: a source may be restarting its worker */
#define BIT(state) (1U << (state))

static const struct {
    const char *name;
    unsigned may_enter; /* one bit per next state */
} states[] = {
    [TD_XFER_LINK_CONNECTING] = {"connecting", BIT(TD_XFER_LINK_READY) | BIT(TD_XFER_LINK_CLOSED)},
    [TD_XFER_LINK_READY] = {"ready", BIT(TD_XFER_LINK_RECONNECTING) | BIT(TD_XFER_LINK_CLOSED)},
    [TD_XFER_LINK_RECONNECTING] = {"reconnecting",
                                   BIT(TD_XFER_LINK_READY) | BIT(TD_XFER_LINK_CLOSED)},
    [TD_XFER_LINK_CLOSED] = {"closed", BIT(TD_XFER_LINK_CONNECTING)},
};

const char *td_xfer_link_state_name(td_xfer_link_state state)
{
    return state < TD_XFER_LINK_N_STATES ? states[state].name : "unknown";
}

const char *td_link_name(const td_link *link, char out[TD_XFER_PEER_BYTES + 24])
{
    snprintf(out, TD_XFER_PEER_BYTES + 24, "%s rank %u", link->peer, link->desc.rank);
    return out;
}

static void enter(td_engine *engine, td_link *link, td_xfer_link_state state)
{
    td_assert(states[link->state].may_enter & BIT(state));
    td_debug("xfer.link", "peer=%s rank=%u from=%s to=%s", link->peer, link->desc.rank,
             states[link->state].name, states[state].name);
    link->state = state;
    TD_SET(engine->link_shared[link->handle.slot].state, (uint32_t)state);
}

static void push_event(td_engine *engine, const td_link *link, td_xfer_event_kind kind,
                       td_status status, const char *text)
{
    td_event_msg event = {
        .kind = kind,
        .status = status,
        .link = link->handle,
        .elapsed_ns = engine->now_ns - link->began_ns,
    };
    snprintf(event.text, sizeof(event.text), "%s", text);
    td_engine_push(engine, &event, sizeof(event));
}

static void drop_ep(td_engine *engine, td_link *link)
{
    if (link->ep == NULL)
        return;
    td_ucx_close_ep(&engine->ucx, link->ep);
    link->ep = NULL;
    link->broken = NULL;
    link->welcomed = 0;
}

/* The end of a link: its jobs first, then its event. */
static void go_down(td_engine *engine, td_link *link, td_status status, const char *why)
{
    char name[TD_XFER_PEER_BYTES + 24];
    char text[400];
    snprintf(text, sizeof(text), "%s: %s", td_link_name(link, name), why);
    drop_ep(engine, link);
    enter(engine, link, TD_XFER_LINK_CLOSED);
    td_job_end_all(engine, link, status == TD_CANCELLED ? TD_PEER_LOST : status, text);
    link->is_going = 1;
    link->going_status = status;
    snprintf(link->going_text, sizeof(link->going_text), "%s", text);
    if (link->n_ending == 0)
        td_link_say_down(engine, link);
}

void td_link_say_down(td_engine *engine, td_link *link)
{
    link->is_going = 0;
    push_event(engine, link, TD_XFER_LINK_DOWN, link->going_status, link->going_text);
}

/* UCX's callback: the endpoint may only be closed outside of it. */
static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    td_link *link = arg;
    if (link->ep == ep && link->broken == NULL)
        link->broken = ucs_status_string(status);
}

static socklen_t peer_address(const td_xfer_desc *desc, struct sockaddr_storage *addr)
{
    memset(addr, 0, sizeof(*addr));
    if (desc->ip_version == 6) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)addr;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(desc->port);
        memcpy(&in6->sin6_addr, desc->ip, 16);
        return sizeof(*in6);
    }
    struct sockaddr_in *in4 = (struct sockaddr_in *)addr;
    in4->sin_family = AF_INET;
    in4->sin_port = htons(desc->port);
    memcpy(&in4->sin_addr, desc->ip, 4);
    return sizeof(*in4);
}

static td_status say_hello(td_engine *engine, td_link *link)
{
    td_wire_hello hello = {
        .magic = TD_WIRE_MAGIC,
        .version = TD_XFER_PROTOCOL,
        .link = {link->handle.slot, link->attempt},
        .rank = link->desc.rank,
    };
    memcpy(hello.incarnation, link->desc.incarnation, sizeof(hello.incarnation));
    memcpy(hello.reader, engine->incarnation, sizeof(hello.reader));
    td_ucx_message msg = {
        .id = TD_WIRE_HELLO,
        .header = &hello,
        .n_header_bytes = sizeof(hello),
        .reply = 1,
    };
    return td_ucx_send_message(&engine->ucx, link->ep, &msg);
}

/* A fresh endpoint; whatever still comes over an older one has an older attempt number. */
static void try_connect(td_engine *engine, td_link *link)
{
    struct sockaddr_storage addr;
    socklen_t n_bytes = peer_address(&link->desc, &addr);
    link->attempt = ++engine->n_attempts;
    link->attempt_ns = engine->now_ns;
    link->retry_ns = engine->now_ns + RETRY_NS;
    td_engine_timer(engine, link->retry_ns);
    if (engine->ucx.worker == NULL)
        return;
    td_err err;
    if (td_ucx_connect(&engine->ucx, (struct sockaddr *)&addr, n_bytes, on_error, link, &link->ep,
                       &err) != TD_OK) {
        link->ep = NULL;
        td_debug("xfer.connect", "peer=%s rank=%u why=\"%s\"", link->peer, link->desc.rank,
                 err.text);
    } else if (say_hello(engine, link) != TD_OK) {
        link->broken = "hello could not be sent";
    }
}

static void set_deadlines(td_engine *engine, td_link *link)
{
    link->give_up_ns = engine->now_ns + RETRY_FOR_NS;
    link->answer_by_ns = engine->now_ns + engine->config.connect_ms * TD_NS_PER_MS;
    td_engine_timer(engine, link->answer_by_ns);
}

void td_link_open(td_engine *engine, const td_cmd_open *cmd)
{
    td_link *link = &engine->links[cmd->link.slot];
    td_assert(link->state == TD_XFER_LINK_CLOSED && link->n_out == 0 && link->n_ending == 0);
    link->handle = cmd->link;
    link->desc = cmd->desc;
    link->same_host = cmd->same_host;
    memcpy(link->peer, cmd->peer, sizeof(link->peer));
    link->queue_head = link->queue_tail = TD_NONE;
    link->n_breaks = 0;
    link->broken = NULL;
    link->rate_bytes = 0;
    link->began_ns = link->rate_since_ns = cmd->began_ns;
    enter(engine, link, TD_XFER_LINK_CONNECTING);
    set_deadlines(engine, link);
    try_connect(engine, link);
}

void td_link_close(td_engine *engine, td_link *link)
{
    go_down(engine, link, TD_CANCELLED, "link closed here");
}

/* The endpoint of a ready link broke: the peer may be as good as ever. */
static void reconnect(td_engine *engine, td_link *link, const char *why)
{
    td_debug("xfer.break", "peer=%s rank=%u why=\"%s\"", link->peer, link->desc.rank, why);
    char text[256];
    snprintf(text, sizeof(text), "connection broke: %s", why);
    drop_ep(engine, link);
    td_job_requeue_all(engine, link);
    if (engine->now_ns - link->broke_ns > BREAKS_WITHIN_NS)
        link->n_breaks = 0;
    link->broke_ns = engine->now_ns;
    if (link->n_breaks++ >= BREAKS_MAX) {
        go_down(engine, link, TD_PEER_LOST, text);
        return;
    }
    TD_ADD(engine->link_shared[link->handle.slot].n_reconnects, 1);
    TD_ADD(engine->drawn.n_reconnects, 1);
    enter(engine, link, TD_XFER_LINK_RECONNECTING);
    set_deadlines(engine, link);
    try_connect(engine, link);
}

static void on_broken(td_engine *engine, td_link *link)
{
    const char *why = link->broken;
    if (link->state == TD_XFER_LINK_READY) {
        reconnect(engine, link, why);
        return;
    }
    char text[256];
    snprintf(text, sizeof(text), "cannot be reached: %s", why);
    drop_ep(engine, link);
    if (engine->now_ns >= link->give_up_ns)
        go_down(engine, link, TD_PEER_LOST, text);
}

void td_link_suspend_all(td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_links; i++) {
        td_link *link = &engine->links[i];
        if (link->state == TD_XFER_LINK_CLOSED)
            continue;
        drop_ep(engine, link);
        td_job_requeue_all(engine, link);
        if (link->state != TD_XFER_LINK_READY)
            continue;
        TD_ADD(engine->link_shared[i].n_reconnects, 1);
        TD_ADD(engine->drawn.n_reconnects, 1);
        enter(engine, link, TD_XFER_LINK_RECONNECTING);
        set_deadlines(engine, link);
    }
}

void td_link_resume_all(td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_links; i++)
        if (engine->links[i].state != TD_XFER_LINK_CLOSED)
            try_connect(engine, &engine->links[i]);
}

const char *td_link_judge_transport(const td_xfer_config *config, int same_host,
                                    const char *transport)
{
    int is_shm = td_ucx_is_shm(transport), is_tcp = strstr(transport, "tcp") != NULL;
    if (strcmp(transport, "?") == 0)
        return "it does not tell which that is";
    switch (config->transport) {
    case TD_XFER_SHM: return is_shm ? NULL : "shared memory was asked for";
    case TD_XFER_TCP: return is_tcp ? NULL : "tcp was asked for";
    case TD_XFER_AUTO: break;
    }
    if (config->allow_tcp)
        return NULL;
    if (same_host)
        return is_shm ? NULL : "both are on one host, so shared memory was expected";
    return is_tcp ? "no RDMA between these hosts, and tcp is not allowed" : NULL;
}

/* Where nothing fetches from memory to memory UCX would emulate it with messages, and these do not
 * bear a reader's death (docs/protocol.md, Why not ucp_get). Host memory is for tests. */
static int may_fetch(const td_engine *engine, const char *fetcher)
{
    return fetcher[0] != '\0' || !td_device_is_gpu(engine->config.device);
}

/* The transport as it is shown: "posix", "posix+cuda_ipc". */
static void tell_up(td_engine *engine, const td_link *link, const char *transport,
                    const char *fetcher)
{
    char text[TD_XFER_TRANSPORT_BYTES];
    int is_both = link->is_direct && fetcher[0] != '\0' && strcmp(transport, fetcher) != 0;
    snprintf(text, sizeof(text), "%.15s%s%.14s", transport, is_both ? "+" : "",
             is_both ? fetcher : "");
    push_event(engine, link, TD_XFER_LINK_UP, TD_OK, text);
}

static void take_answer(td_engine *engine, td_link *link)
{
    const td_wire_welcome *answer = &link->welcome;
    char transport[TD_XFER_TRANSPORT_BYTES], fetcher[TD_XFER_TRANSPORT_BYTES];
    char text[256];
    link->welcomed = 0;
    if (answer->status != TD_OK) {
        snprintf(text, sizeof(text), "refused us: %s%s%.63s",
                 td_status_text((td_status)answer->status),
                 answer->status == TD_MISMATCH ? ", it is now incarnation " : "",
                 answer->status == TD_MISMATCH ? answer->incarnation : "");
        go_down(engine, link, TD_PEER_LOST, text);
        return;
    }
    td_ucx_transport(link->ep, transport, fetcher);
    const char *wrong = td_link_judge_transport(&engine->config, link->same_host, transport);
    link->is_direct = engine->is_direct && may_fetch(engine, fetcher);
    if (wrong == NULL && !link->is_direct && engine->config.path == TD_XFER_DIRECT)
        wrong = "direct was asked for, and there is neither cuda_ipc nor RDMA between us";
    if (wrong != NULL) {
        snprintf(text, sizeof(text), "UCX connected over %s: %s", transport, wrong);
        go_down(engine, link, TD_UNSUPPORTED, text);
        return;
    }
    int is_new = link->state == TD_XFER_LINK_CONNECTING;
    link->reader = answer->reader;
    link->is_shm = td_ucx_is_shm(transport);
    link->piece_bytes = link->is_shm ? TD_WIRE_SHM_PIECE_BYTES : TD_WIRE_NET_PIECE_BYTES;
    link->n_unacked_bytes = 0;
    TD_SET(engine->link_shared[link->handle.slot].answer_ns, engine->now_ns - link->attempt_ns);
    enter(engine, link, TD_XFER_LINK_READY);
    if (is_new && engine->is_direct && !link->is_direct)
        td_warn("link.ring", "peer=%s why=\"neither cuda_ipc nor RDMA between us\"", link->peer);
    if (is_new)
        tell_up(engine, link, transport, fetcher);
}

unsigned td_link_tend(td_engine *engine)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < engine->config.max_links; i++) {
        td_link *link = &engine->links[i];
        if (link->state == TD_XFER_LINK_CLOSED)
            continue;
        if (link->broken != NULL) {
            on_broken(engine, link);
            n++;
        } else if (link->welcomed) {
            take_answer(engine, link);
            n++;
        }
        if (link->state == TD_XFER_LINK_READY && link->broken == NULL)
            n += td_job_pump(engine, link);
    }
    return n;
}

static void run_connecting(td_engine *engine, td_link *link)
{
    if (engine->now_ns >= link->answer_by_ns) {
        go_down(engine, link, TD_PEER_LOST, "no answer to our hello in time");
        return;
    }
    if (link->ep == NULL && engine->now_ns >= link->retry_ns)
        try_connect(engine, link);
    td_engine_timer(engine, link->answer_by_ns);
    if (link->ep == NULL)
        td_engine_timer(engine, link->retry_ns);
}

/* Nothing came for too long. Over shared memory another peer may be what blocks our queue. */
static void run_stalled(td_engine *engine, td_link *link)
{
    int64_t stall_ns = engine->config.stall_ms * TD_NS_PER_MS;
    if (engine->now_ns - link->moved_ns < stall_ns)
        td_engine_timer(engine, link->moved_ns + stall_ns);
    else if (!link->is_shm || !td_engine_want_restart(engine))
        reconnect(engine, link, "nothing came for too long");
}

void td_link_timers(td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_links; i++) {
        td_link *link = &engine->links[i];
        switch (link->state) {
        case TD_XFER_LINK_CONNECTING:
        case TD_XFER_LINK_RECONNECTING: run_connecting(engine, link); break;
        case TD_XFER_LINK_READY:
            if (link->n_out > 0)
                run_stalled(engine, link);
            break;
        case TD_XFER_LINK_CLOSED:
        case TD_XFER_LINK_N_STATES: break;
        }
    }
}

static ucs_status_t on_welcome(void *arg, const void *header, size_t n_header_bytes, void *data,
                               size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    (void)data, (void)n_data_bytes, (void)param;
    td_engine *engine = arg;
    td_wire_welcome answer;
    engine->n_messages++;
    if (n_header_bytes != sizeof(answer))
        return UCS_OK;
    memcpy(&answer, header, sizeof(answer));
    answer.incarnation[sizeof(answer.incarnation) - 1] = '\0';
    if (answer.link.link >= engine->config.max_links)
        return UCS_OK;
    td_link *link = &engine->links[answer.link.link];
    if (link->ep != NULL && link->attempt == answer.link.attempt &&
        link->state != TD_XFER_LINK_READY) {
        link->welcome = answer;
        link->welcomed = 1;
    }
    return UCS_OK;
}

td_status td_link_init_all(td_engine *engine, td_err *err)
{
    for (uint32_t i = 0; i < engine->config.max_links; i++) {
        engine->links[i].state = TD_XFER_LINK_CLOSED;
        engine->links[i].engine = engine;
        engine->links[i].fill = TD_STAGE_NONE;
        TD_SET(engine->link_shared[i].state, (uint32_t)TD_XFER_LINK_CLOSED);
    }
    return td_ucx_handle(&engine->ucx, TD_WIRE_WELCOME, on_welcome, engine, err);
}
