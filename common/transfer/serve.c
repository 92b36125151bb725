/* serve.c - the source's side: readers that connected, the ranges they asked for, and the pieces
 * that go to them. A reader that takes nothing holds at most a window of pieces and costs no CPU
 * time. UCX's callbacks only take notes. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"

#include <string.h>

#define BURST 32U             /* pieces to one reader before the next one's turn */
#define MIN_PIECE_BYTES 1024U /* what a reader may ask for */

static td_reader *find_reader(td_engine *engine, td_wire_reader id)
{
    if (id.slot >= engine->config.max_readers)
        return NULL;
    td_reader *reader = &engine->readers[id.slot];
    return reader->live && reader->welcomed && reader->ep != NULL &&
                   reader->generation == id.generation
               ? reader
               : NULL;
}

/* What tables show of a reader: begins with its hello, ends with its connection. */
static void show_reader(td_engine *engine, const td_reader *reader, const char *name)
{
    td_reader_shared *shared = &engine->reader_shared[reader - engine->readers];
    for (uint32_t i = 0; i < TD_XFER_INCARNATION_BYTES / 8; i++) {
        uint64_t word;
        memcpy(&word, name + (size_t)8 * i, 8);
        /* who sees it sees that the slot was left before */
        atomic_store_explicit(&shared->name[i], word, memory_order_release);
    }
    TD_SET(shared->n_pulls, 0);
    TD_SET(shared->n_bytes, 0);
    TD_SET(shared->since_ns, engine->now_ns);
    atomic_fetch_add_explicit(&shared->slot_use, 1, memory_order_release);
}

static void hide_reader(td_engine *engine, const td_reader *reader)
{
    td_reader_shared *shared = &engine->reader_shared[reader - engine->readers];
    if (TD_GET(shared->slot_use) % 2 == 1)
        atomic_fetch_add_explicit(&shared->slot_use, 1, memory_order_release);
}

static void count_readers(td_engine *engine, int delta)
{
    TD_SET(engine->served.n_readers, TD_GET(engine->served.n_readers) + (uint32_t)delta);
}

/* Lets the ring's slots go that hold bytes of this get, or of any (0). */
static void unstage(td_engine *engine, td_reader *reader, uint64_t get_id)
{
    uint32_t *at = &reader->staged;
    reader->last_staged = TD_STAGE_NONE;
    while (*at != TD_STAGE_NONE) {
        uint32_t i = *at;
        td_stage_slot *slot = &engine->stage.slots[i];
        if (get_id != 0 && slot->get_id != get_id) {
            reader->last_staged = i;
            at = &slot->next;
            continue;
        }
        *at = slot->next;
        reader->n_staged--;
        td_stage_let_go(&engine->stage, i);
    }
}

/* The slot stays taken until the last message under way came back. */
static void close_reader(td_engine *engine, td_reader *reader)
{
    if (reader->ep == NULL)
        return;
    td_ucx_close_ep(&engine->ucx, reader->ep);
    reader->ep = NULL;
    reader->n_pulls = 0;
    unstage(engine, reader, 0);
    hide_reader(engine, reader);
    count_readers(engine, -1);
}

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    td_reader *reader = arg;
    if (reader->ep == ep) {
        td_debug("xfer.reader_gone", "slot=%u why=\"%s\"",
                 (unsigned)(reader - reader->engine->readers), ucs_status_string(status));
        reader->broken = 1;
    }
}

void td_serve_on_connect(ucp_conn_request_h request, void *arg)
{
    td_engine *engine = arg;
    td_reader *reader = NULL;
    for (uint32_t i = 0; reader == NULL && i < engine->config.max_readers; i++)
        if (!engine->readers[i].live)
            reader = &engine->readers[i];
    if (reader == NULL || engine->stopping) {
        ucp_listener_reject(engine->ucx.listener, request);
        return;
    }
    uint32_t generation = reader->generation + 1;
    memset(reader, 0, sizeof(*reader));
    reader->engine = engine;
    reader->generation = generation;
    reader->staged = reader->last_staged = TD_STAGE_NONE;
    td_err err;
    if (td_ucx_accept(&engine->ucx, request, on_error, reader, &reader->ep, &err) != TD_OK) {
        reader->ep = NULL;
        td_debug("xfer.accept_failed", "why=\"%s\"", err.text);
        return;
    }
    reader->live = 1;
    reader->hello_by_ns = engine->now_ns + engine->config.connect_ms * TD_NS_PER_MS;
    td_engine_timer(engine, reader->hello_by_ns);
    count_readers(engine, 1);
}

/* ---- messages from readers ---- */

static td_status judge_hello(const td_engine *engine, const td_wire_hello *hello)
{
    if (hello->magic != TD_WIRE_MAGIC || hello->version != TD_XFER_PROTOCOL)
        return TD_UNSUPPORTED;
    if (hello->rank != engine->config.rank ||
        memcmp(hello->incarnation, engine->incarnation, sizeof(hello->incarnation)) != 0)
        return TD_MISMATCH;
    return TD_OK;
}

static ucs_status_t on_hello(void *arg, const void *header, size_t n_header_bytes, void *data,
                             size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    (void)data, (void)n_data_bytes;
    td_engine *engine = arg;
    td_wire_hello hello;
    td_reader *reader = NULL;
    engine->n_messages++;
    if (n_header_bytes != sizeof(hello) ||
        (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0)
        return UCS_OK;
    memcpy(&hello, header, sizeof(hello));
    for (uint32_t i = 0; i < engine->config.max_readers; i++)
        if (engine->readers[i].live && engine->readers[i].ep == param->reply_ep)
            reader = &engine->readers[i];
    if (reader == NULL || reader->welcomed)
        return UCS_OK;
    td_status st = judge_hello(engine, &hello);
    td_wire_welcome answer = {
        .link = hello.link,
        .reader = {(uint32_t)(reader - engine->readers), reader->generation},
        .status = st,
    };
    memcpy(answer.incarnation, engine->incarnation, sizeof(answer.incarnation));
    td_ucx_message msg = {
        .id = TD_WIRE_WELCOME,
        .header = &answer,
        .n_header_bytes = sizeof(answer),
        .n_out = &reader->n_out,
    };
    reader->link = hello.link;
    reader->welcomed = st == TD_OK;
    if (st == TD_OK) { /* counted before it is answered: who has the answer finds it counted */
        TD_ADD(engine->served.n_welcomed, 1);
        show_reader(engine, reader, hello.reader);
    } else {
        TD_ADD(engine->served.n_refused, 1);
    }
    if (td_ucx_send_message(&engine->ucx, reader->ep, &msg) != TD_OK)
        reader->broken = 1;
    return UCS_OK;
}

static int is_served(const td_engine *engine, const td_wire_pull *pull)
{
    if (pull->region >= engine->config.n_regions)
        return 0;
    const td_xfer_region *region = &engine->regions[pull->region];
    return region->served && pull->slot < region->n_slots && pull->n_bytes > 0 &&
           pull->offset <= region->stride && pull->n_bytes <= region->stride - pull->offset &&
           pull->piece_bytes >= MIN_PIECE_BYTES && pull->piece_bytes <= TD_WIRE_NET_PIECE_BYTES;
}

/* Free pages, those that are being computed, and those given to another prompt meanwhile are not
 * read. */
static int is_published(const td_engine *engine, uint32_t region, uint32_t slot,
                        uint32_t generation, uint64_t end)
{
    uint64_t now = atomic_load_explicit(&engine->published[region][slot], memory_order_acquire);
    return generation != 0 && (uint32_t)(now >> 32) == generation && end <= (uint32_t)now;
}

static void refuse(td_engine *engine, td_reader *reader, uint64_t get_id, td_status why)
{
    td_wire_refuse answer = {.link = reader->link, .get_id = get_id, .status = why};
    td_ucx_message msg = {
        .id = TD_WIRE_REFUSE,
        .header = &answer,
        .n_header_bytes = sizeof(answer),
        .n_out = &reader->n_out,
    };
    TD_ADD(engine->served.n_bad_pulls, 1);
    if (td_ucx_send_message(&engine->ucx, reader->ep, &msg) != TD_OK)
        reader->broken = 1;
}

static ucs_status_t on_pull(void *arg, const void *header, size_t n_header_bytes, void *data,
                            size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    (void)data, (void)n_data_bytes, (void)param;
    td_engine *engine = arg;
    td_wire_pull msg;
    engine->n_messages++;
    if (n_header_bytes != sizeof(msg))
        return UCS_OK;
    memcpy(&msg, header, sizeof(msg));
    td_reader *reader = find_reader(engine, msg.reader);
    if (reader == NULL)
        return UCS_OK;
    TD_ADD(engine->served.n_pulls, 1);
    TD_ADD(engine->reader_shared[msg.reader.slot].n_pulls, 1);
    if (!is_served(engine, &msg)) {
        refuse(engine, reader, msg.get_id, TD_INVALID);
        return UCS_OK;
    }
    if (!is_published(engine, msg.region, msg.slot, msg.generation, msg.offset + msg.n_bytes)) {
        refuse(engine, reader, msg.get_id, TD_MISMATCH);
        return UCS_OK;
    }
    if (reader->n_pulls == TD_WIRE_MAX_PULLS) {
        reader->broken = 1; /* no reader of ours asks for so much */
        return UCS_OK;
    }
    uint32_t at = (reader->first_pull + reader->n_pulls++) % TD_WIRE_MAX_PULLS;
    reader->pulls[at] = (td_pull){
        .get_id = msg.get_id,
        .region = msg.region,
        .slot = msg.slot,
        .generation = msg.generation,
        .piece_bytes = msg.piece_bytes,
        .offset = msg.offset,
        .n_bytes = msg.n_bytes,
        .is_direct = engine->is_direct && msg.is_direct && td_is_staged(engine, msg.region),
    };
    return UCS_OK;
}

static ucs_status_t on_ack(void *arg, const void *header, size_t n_header_bytes, void *data,
                           size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    (void)data, (void)n_data_bytes, (void)param;
    td_engine *engine = arg;
    td_wire_ack msg;
    engine->n_messages++;
    if (n_header_bytes != sizeof(msg))
        return UCS_OK;
    memcpy(&msg, header, sizeof(msg));
    td_reader *reader = find_reader(engine, msg.reader);
    if (reader == NULL)
        return UCS_OK;
    if (msg.n_bytes > reader->n_window_bytes)
        reader->broken = 1;
    else
        reader->n_window_bytes -= msg.n_bytes;
    return UCS_OK;
}

static ucs_status_t on_drop(void *arg, const void *header, size_t n_header_bytes, void *data,
                            size_t n_data_bytes, const ucp_am_recv_param_t *param)
{
    (void)data, (void)n_data_bytes, (void)param;
    td_engine *engine = arg;
    td_wire_drop msg;
    engine->n_messages++;
    if (n_header_bytes != sizeof(msg))
        return UCS_OK;
    memcpy(&msg, header, sizeof(msg));
    td_reader *reader = find_reader(engine, msg.reader);
    if (reader == NULL)
        return UCS_OK;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < reader->n_pulls; i++) {
        const td_pull *pull = &reader->pulls[(reader->first_pull + i) % TD_WIRE_MAX_PULLS];
        if (pull->get_id != msg.get_id)
            reader->pulls[(reader->first_pull + kept++) % TD_WIRE_MAX_PULLS] = *pull;
    }
    reader->n_pulls = kept;
    unstage(engine, reader, msg.get_id);
    return UCS_OK;
}

/* ---- sending ---- */

static const unsigned char *pull_bytes(const td_engine *engine, const td_pull *pull)
{
    const td_xfer_region *region = &engine->regions[pull->region];
    return (const unsigned char *)region->base + pull->slot * region->stride + pull->offset;
}

static int goes_by_ring(const td_engine *engine, const td_pull *pull)
{
    return td_is_staged(engine, pull->region) && !pull->is_direct;
}

/* Room in its window for another slot's bytes: whoever takes nothing holds TD_STAGE_READER_SLOTS at
 * most. */
static int may_stage(const td_reader *reader)
{
    return reader->n_window_bytes + (uint64_t)reader->n_staged * TD_STAGE_BYTES <
           TD_WIRE_WINDOW_BYTES;
}

/* What comes next out of device memory is copied into the ring while pieces before it are sent. */
static void stage_ahead(td_engine *engine, td_reader *reader)
{
    for (uint32_t i = 0; i < reader->n_pulls && may_stage(reader); i++) {
        td_pull *pull = &reader->pulls[(reader->first_pull + i) % TD_WIRE_MAX_PULLS];
        while (goes_by_ring(engine, pull) && pull->n_staged < pull->n_bytes && may_stage(reader)) {
            uint64_t n_left = pull->n_bytes - pull->n_staged;
            uint32_t n_bytes = n_left < TD_STAGE_BYTES ? (uint32_t)n_left : TD_STAGE_BYTES;
            uint32_t slot = td_stage_take_source(&engine->stage);
            if (slot == TD_STAGE_NONE)
                return;
            engine->stage.slots[slot].get_id = pull->get_id;
            td_stage_read(&engine->stage, slot, pull_bytes(engine, pull) + pull->n_staged, n_bytes);
            pull->n_staged += n_bytes;
            if (reader->staged == TD_STAGE_NONE)
                reader->staged = slot;
            else
                engine->stage.slots[reader->last_staged].next = slot;
            reader->last_staged = slot;
            reader->n_staged++;
        }
    }
}

/* Its next bytes stand where they can be sent from. */
static int is_ready(td_engine *engine, const td_reader *reader, const td_pull *pull)
{
    if (!goes_by_ring(engine, pull))
        return 1;
    return reader->staged != TD_STAGE_NONE && td_stage_is_ready(&engine->stage, reader->staged);
}

/* The first slot was sent; it is let go. */
static void next_staged(td_engine *engine, td_reader *reader)
{
    uint32_t slot = reader->staged;
    reader->staged = engine->stage.slots[slot].next;
    reader->n_staged--;
    if (reader->staged == TD_STAGE_NONE)
        reader->last_staged = TD_STAGE_NONE;
    td_stage_let_go(&engine->stage, slot);
}

static td_status send_piece(td_engine *engine, td_reader *reader, td_pull *pull)
{
    td_stage_slot *slot = goes_by_ring(engine, pull) ? &engine->stage.slots[reader->staged] : NULL;
    uint64_t n_left = slot != NULL ? slot->n_bytes - slot->n_sent : pull->n_bytes - pull->n_sent;
    uint64_t n_bytes = n_left < pull->piece_bytes || pull->is_direct ? n_left : pull->piece_bytes;
    td_wire_data header = {.link = reader->link, .get_id = pull->get_id, .at = pull->n_sent};
    td_ucx_message msg = {
        .id = TD_WIRE_DATA,
        .header = &header,
        .n_header_bytes = sizeof(header),
        .data = slot != NULL ? slot->bytes + slot->n_sent : pull_bytes(engine, pull) + pull->n_sent,
        .n_data_bytes = (size_t)n_bytes,
        .n_out = &reader->n_out,
        .n_data_out = slot != NULL ? &slot->n_out : NULL,
        .rendezvous = pull->is_direct,
        .is_gpu = pull->is_direct && td_device_is_gpu(engine->config.device),
    };
    if (slot != NULL && engine->stage.failed)
        return TD_CUDA;
    td_status st = td_ucx_send_message(&engine->ucx, reader->ep, &msg);
    if (st != TD_OK)
        return st;
    pull->n_sent += n_bytes;
    if (slot != NULL && (slot->n_sent += (uint32_t)n_bytes) == slot->n_bytes)
        next_staged(engine, reader);
    reader->n_window_bytes += n_bytes;
    TD_ADD(engine->served.n_bytes, n_bytes);
    TD_ADD(engine->reader_shared[reader - engine->readers].n_bytes, n_bytes);
    return TD_OK;
}

static void drop_first(td_reader *reader)
{
    reader->first_pull = (reader->first_pull + 1) % TD_WIRE_MAX_PULLS;
    reader->n_pulls--;
}

static unsigned serve(td_engine *engine, td_reader *reader)
{
    unsigned n = 0;
    while (n < BURST && reader->n_pulls > 0) {
        td_pull *pull = &reader->pulls[reader->first_pull];
        if (reader->n_window_bytes >=
            (pull->is_direct ? TD_WIRE_DIRECT_WINDOW_BYTES : TD_WIRE_WINDOW_BYTES))
            break;
        stage_ahead(engine, reader);
        if (!is_ready(engine, reader, pull))
            break;
        /* Looked at behind the copy into the ring: what was copied is of this generation. */
        if (!is_published(engine, pull->region, pull->slot, pull->generation, 0)) {
            refuse(engine, reader, pull->get_id, TD_MISMATCH); /* reclaimed meanwhile */
            unstage(engine, reader, pull->get_id);
            drop_first(reader);
            n++;
            continue;
        }
        td_status st = send_piece(engine, reader, pull);
        if (st == TD_FULL)
            break;
        if (st != TD_OK) {
            reader->broken = 1;
            break;
        }
        n++;
        if (pull->n_sent == pull->n_bytes)
            drop_first(reader);
    }
    return n;
}

unsigned td_serve_tend(td_engine *engine)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < engine->config.max_readers; i++) {
        td_reader *reader = &engine->readers[i];
        if (!reader->live)
            continue;
        if (reader->broken) {
            reader->broken = 0;
            close_reader(engine, reader);
        }
        if (reader->ep != NULL)
            n += serve(engine, reader);
        else if (reader->n_out == 0)
            reader->live = 0;
    }
    return n;
}

void td_serve_timers(td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_readers; i++) {
        td_reader *reader = &engine->readers[i];
        if (!reader->live || reader->ep == NULL || reader->welcomed)
            continue;
        if (engine->now_ns >= reader->hello_by_ns)
            close_reader(engine, reader);
        else
            td_engine_timer(engine, reader->hello_by_ns);
    }
}

int td_serve_is_busy(const td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_readers; i++)
        if (engine->readers[i].live && engine->readers[i].n_pulls > 0)
            return 1;
    return 0;
}

int td_serve_close_all(td_engine *engine)
{
    int left = 0;
    for (uint32_t i = 0; i < engine->config.max_readers; i++) {
        td_reader *reader = &engine->readers[i];
        if (!reader->live)
            continue;
        close_reader(engine, reader);
        left |= reader->n_out > 0;
    }
    return !left;
}

void td_serve_forget_all(td_engine *engine)
{
    for (uint32_t i = 0; i < engine->config.max_readers; i++) {
        td_reader *reader = &engine->readers[i];
        reader->live = 0;
        reader->ep = NULL;
        reader->n_pulls = reader->n_out = 0;
        if (reader->generation != 0)
            unstage(engine, reader, 0);
        hide_reader(engine, reader);
    }
    td_stage_forget_messages(&engine->stage);
    TD_SET(engine->served.n_readers, 0);
}

td_status td_serve_init_all(td_engine *engine, td_err *err)
{
    static const struct {
        td_wire_id id;
        ucp_am_recv_callback_t handler;
    } handlers[] = {
        {TD_WIRE_HELLO, on_hello},
        {TD_WIRE_PULL, on_pull},
        {TD_WIRE_ACK, on_ack},
        {TD_WIRE_DROP, on_drop},
    };
    td_status st = TD_OK;
    for (size_t i = 0; st == TD_OK && i < sizeof(handlers) / sizeof(handlers[0]); i++)
        st = td_ucx_handle(&engine->ucx, handlers[i].id, handlers[i].handler, engine, err);
    return st;
}
