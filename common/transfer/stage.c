#include "common/transfer/stage.h"

#include "common/base/clock.h"

#include <stdlib.h>
#include <string.h>

#define HUNG_NS (2 * TD_NS_PER_S) /* a copy of TD_STAGE_BYTES that takes so long never ends */

td_status td_stage_open(td_stage *stage, td_device *device, uint64_t n_bytes, uint32_t n_links,
                        uint32_t n_readers, td_err *err)
{
    uint64_t n_slots = n_bytes / TD_STAGE_BYTES;
    uint64_t n_for_links = n_links > 0 ? (uint64_t)n_links + 1 : 0;
    uint64_t n_least = n_for_links + (uint64_t)n_readers * TD_STAGE_READER_SLOTS;
    if (n_slots < n_least || n_slots >= TD_STAGE_NONE)
        return td_fail(
            err, TD_CONFIG,
            "transfer: the ring has %llu bytes; %u links and %u readers need %llu or more",
            (unsigned long long)n_bytes, n_links, n_readers,
            (unsigned long long)n_least * TD_STAGE_BYTES);
    stage->device = device;
    stage->free = stage->passing = TD_STAGE_NONE;
    stage->n_max_source = (uint32_t)(n_slots - n_for_links);
    stage->slots = calloc(n_slots, sizeof(*stage->slots));
    td_status st = stage->slots != NULL ? TD_OK : td_fail(err, TD_NOMEM, "transfer: no memory");
    if (st == TD_OK)
        st = td_device_open_stream(device, &stage->in, err);
    if (st == TD_OK)
        st = td_device_open_stream(device, &stage->out, err);
    if (st == TD_OK)
        st = td_device_alloc_host(device, n_slots * TD_STAGE_BYTES, (void **)&stage->memory, err);
    for (uint32_t i = 0; st == TD_OK && i < n_slots; i++) {
        td_stage_slot *slot = &stage->slots[i];
        st = td_event_create(device, &slot->copied, err);
        slot->bytes = stage->memory + (size_t)i * TD_STAGE_BYTES;
        slot->next = stage->free;
        stage->free = i;
        stage->n_slots = stage->n_free = i + 1;
    }
    if (st != TD_OK)
        td_stage_close(stage);
    return st;
}

void td_stage_close(td_stage *stage)
{
    td_device_close_stream(stage->in);
    td_device_close_stream(stage->out);
    for (uint32_t i = 0; stage->slots != NULL && i < stage->n_slots; i++)
        td_event_destroy(stage->device, stage->slots[i].copied);
    free(stage->slots);
    if (stage->device != NULL)
        td_device_free_host(stage->device, stage->memory);
    memset(stage, 0, sizeof(*stage));
}

static uint32_t take(td_stage *stage, int is_source)
{
    uint32_t i = stage->free;
    td_stage_slot *slot = &stage->slots[i];
    stage->free = slot->next;
    stage->n_free--;
    stage->n_source += (uint32_t)is_source;
    slot->next = TD_STAGE_NONE;
    slot->is_source = is_source;
    slot->n_bytes = slot->n_sent = 0;
    return i;
}

uint32_t td_stage_take_source(td_stage *stage)
{
    if (stage->n_free == 0 || stage->n_source == stage->n_max_source)
        return TD_STAGE_NONE;
    return take(stage, 1);
}

uint32_t td_stage_take_reader(td_stage *stage)
{
    int64_t end_ns = stage->n_free == 0 ? td_now_ns() + HUNG_NS : 0;
    while (stage->n_free == 0) {
        td_stage_tend(stage);
        if (stage->n_free == 0 && td_now_ns() > end_ns)
            stage->failed = 1; /* from here on nothing is waited for */
    }
    return take(stage, 0);
}

static void begin_copy(td_stage *stage, td_stage_slot *slot, td_status st, td_stream *stream)
{
    if (st == TD_OK)
        st = td_event_record(slot->copied, stream);
    if (st != TD_OK)
        stage->failed = 1;
    slot->copying = 1;
    stage->n_copying++;
}

void td_stage_read(td_stage *stage, uint32_t i, const void *from, uint32_t n_bytes)
{
    td_stage_slot *slot = &stage->slots[i];
    slot->n_bytes = n_bytes;
    slot->is_in = 0;
    begin_copy(stage, slot, td_stream_read(stage->out, slot->bytes, from, n_bytes), stage->out);
}

void td_stage_write(td_stage *stage, uint32_t i, void *to)
{
    td_stage_slot *slot = &stage->slots[i];
    slot->is_in = 1;
    stage->n_in_begun++;
    begin_copy(stage, slot, td_stream_write(stage->in, to, slot->bytes, slot->n_bytes), stage->in);
    td_stage_let_go(stage, i);
}

int td_stage_is_ready(td_stage *stage, uint32_t i)
{
    td_stage_slot *slot = &stage->slots[i];
    if (!slot->copying)
        return 1;
    td_stream *stream = slot->is_in ? stage->in : stage->out;
    td_status st = stage->failed ? TD_OK : td_event_poll(slot->copied, stream);
    if (st == TD_PENDING)
        return 0;
    if (st != TD_OK)
        stage->failed = 1;
    slot->copying = 0;
    stage->n_copying--;
    stage->n_in_over += (uint64_t)slot->is_in;
    return 1;
}

void td_stage_let_go(td_stage *stage, uint32_t i)
{
    stage->slots[i].next = stage->passing;
    stage->passing = i;
}

unsigned td_stage_tend(td_stage *stage)
{
    unsigned n = 0;
    for (uint32_t *at = &stage->passing; stage->device != NULL && *at != TD_STAGE_NONE;) {
        uint32_t i = *at;
        td_stage_slot *slot = &stage->slots[i];
        if (!td_stage_is_ready(stage, i) || slot->n_out > 0) {
            at = &slot->next;
            continue;
        }
        *at = slot->next;
        slot->next = stage->free;
        stage->free = i;
        stage->n_free++;
        stage->n_source -= (uint32_t)slot->is_source;
        n++;
    }
    return n;
}

void td_stage_forget_messages(td_stage *stage)
{
    for (uint32_t i = 0; i < stage->n_slots; i++)
        stage->slots[i].n_out = 0;
}
