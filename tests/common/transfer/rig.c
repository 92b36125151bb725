#include "tests/common/transfer/rig.h"

#include "common/base/clock.h"
#include "tests/common/transfer/lagging_device.h"
#include "tests/td_test.h"

#include <time.h>

#define PATTERN 0xa7

int rig_n_transports(void)
{
    return getenv("XFER_TEST_DIRECT") != NULL ? 1 : 2;
}

void rig_init(rig *r, const char *transport)
{
    peer_need_ucx();
    memset(r, 0, sizeof(*r));
    r->rng = 20240601;
    td_xfer_config_init(&r->config);
    for (int t = TD_XFER_AUTO; t <= TD_XFER_TCP; t++)
        if (strcmp(transport, td_xfer_transport_name((td_xfer_transport)t)) == 0)
            r->config.transport = (td_xfer_transport)t;
    r->config.incarnation = "reader";
    r->regions[0] = (td_xfer_region){calloc(RIG_SLOTS, PEER_STRIDE), PEER_STRIDE, RIG_SLOTS, 0};
    r->regions[1] =
        (td_xfer_region){calloc(PEER_BLOBS, PEER_BLOB_BYTES), PEER_BLOB_BYTES, PEER_BLOBS, 0};
    r->config.regions = r->regions;
    r->config.n_regions = 2;
    r->device = lagging_device_from_environment(&r->config);
    if (r->device != NULL)
        r->config.max_links = 8;
    r->expected =
        (td_xfer_region){malloc((size_t)PEER_SLOTS * PEER_STRIDE), PEER_STRIDE, PEER_SLOTS, 0};
    TD_TRUE(r->regions[0].base != NULL && r->regions[1].base != NULL && r->expected.base != NULL);
    for (uint32_t slot = 0; slot < PEER_SLOTS; slot++)
        peer_fill((unsigned char *)r->expected.base + (size_t)slot * PEER_STRIDE, 0, slot,
                  PEER_STRIDE);
}

void rig_open(rig *r)
{
    td_err err;
    r->config.ring_bytes = (r->config.max_links + 1) * (256ULL << 10); /* far less than the pages */
    if (td_xfer_create(&r->config, &r->xfer, &err) != TD_OK)
        fail_msg("%s", err.text);
}

void rig_close(rig *r)
{
    td_xfer_destroy(r->xfer);
    lagging_device_close(r->device);
    free(r->regions[0].base);
    free(r->regions[1].base);
    free(r->expected.base);
}

uint32_t rig_random(rig *r, uint32_t below)
{
    r->rng = r->rng * 1664525U + 1013904223U;
    return (uint32_t)(((uint64_t)(r->rng >> 8) * below) >> 24);
}

td_xfer_link rig_link(rig *r, const peer *source)
{
    td_xfer_link link;
    td_err err;
    td_xfer_link_args args = {
        .desc = source->desc,
        .n_desc_bytes = source->n_desc_bytes,
        .incarnation = source->incarnation,
        .peer = "prefill-1",
        .tag = 4711,
    };
    if (td_xfer_link_open(r->xfer, &args, &link, &err) != TD_OK)
        fail_msg("%s", err.text);
    return link;
}

td_xfer_link rig_up(rig *r, const peer *source, const char *want_transport)
{
    td_xfer_link link = rig_link(r, source);
    td_xfer_event event = rig_expect(r, TD_XFER_LINK_UP, TD_OK, 20000);
    TD_STR(want_transport, event.transport);
    TD_EQ(4711, event.tag);
    return link;
}

void rig_wish(rig *r, rig_job *j, uint32_t n, uint32_t first_local, uint64_t offset,
              uint64_t n_bytes, int64_t deadline_ms)
{
    memset(j, 0, sizeof(*j));
    TD_TRUE(n <= RIG_MAX_JOB && first_local + n <= RIG_SLOTS);
    for (uint32_t i = 0; i < n; i++) {
        j->pages[i].remote = rig_random(r, PEER_SLOTS);
        j->pages[i].local = first_local + i;
        j->pages[i].generation = PEER_GENERATION;
        j->pages[i].number = 100 + i;
        j->pages[i].crc32c = td_xfer_range_crc(&r->expected, j->pages[i].remote, offset, n_bytes);
    }
    j->args = (td_xfer_get_args){
        .tag = 1000 + first_local,
        .region = TD_XFER_PAGES,
        .n_pages = n,
        .offset = offset,
        .n_bytes = n_bytes,
        .first_layer = 3,
        .last_layer = 5,
        .deadline_ns = td_now_ns() + deadline_ms * TD_NS_PER_MS,
        .pages = j->pages,
    };
}

void rig_get(rig *r, td_xfer_link link, rig_job *j)
{
    td_err err;
    if (td_xfer_get(r->xfer, link, &j->args, &j->job, &err) != TD_OK)
        fail_msg("%s", err.text);
}

td_xfer_event rig_next(rig *r, int64_t ms)
{
    td_xfer_event event;
    int64_t end_ns = td_now_ns() + ms * TD_NS_PER_MS;
    while (td_xfer_next(r->xfer, &event) != TD_OK) {
        if (td_now_ns() > end_ns)
            fail_msg("no event in %lld ms", (long long)ms);
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
    return event;
}

td_xfer_event rig_expect(rig *r, td_xfer_event_kind kind, td_status status, int64_t ms)
{
    td_xfer_event event = rig_next(r, ms);
    if (event.kind != kind || event.status != status)
        fail_msg("event %d with %s: %s", event.kind, td_status_name(event.status), event.err.text);
    return event;
}

void rig_check(rig *r, const rig_job *j)
{
    for (uint32_t i = 0; i < j->args.n_pages; i++) {
        const unsigned char *slot =
            (unsigned char *)r->regions[0].base + (size_t)j->pages[i].local * PEER_STRIDE;
        const unsigned char *want =
            (unsigned char *)r->expected.base + (size_t)j->pages[i].remote * PEER_STRIDE;
        if (memcmp(want + j->args.offset, slot + j->args.offset, j->args.n_bytes) != 0)
            fail_msg("page %u has wrong contents", i);
    }
}

void rig_pattern(rig *r, uint32_t first_local, uint32_t n)
{
    memset((unsigned char *)r->regions[0].base + (size_t)first_local * PEER_STRIDE, PATTERN,
           (size_t)n * PEER_STRIDE);
}

void rig_untouched(rig *r, uint32_t first_local, uint32_t n)
{
    const unsigned char *at =
        (unsigned char *)r->regions[0].base + (size_t)first_local * PEER_STRIDE;
    size_t n_bytes = (size_t)n * PEER_STRIDE, i = 0;
    if (at[0] == PATTERN && memcmp(at, at + 1, n_bytes - 1) == 0)
        return;
    while (at[i] == PATTERN)
        i++;
    fail_msg("slot %zu was written to, at byte %zu", first_local + i / PEER_STRIDE,
             i % PEER_STRIDE);
}
