/* What a source lets readers have: nothing that it has not published, nothing that it reclaimed. */
#include "common/base/clock.h"
#include "common/transfer/xfer_metrics.h"
#include "tests/common/transfer/rig.h"
#include "tests/td_test.h"

TD_TEST_MAIN

/* A source in the reader's own process, with slots that tests publish and reclaim. */
typedef struct {
    td_xfer *xfer;
    td_xfer_region regions[2];
    td_xfer_link link;
} near_source;

static void near_open(near_source *s, rig *r)
{
    peer here = {.incarnation = "inc-1"};
    td_err err;
    rig_init(r, "auto");
    rig_open(r);
    s->regions[0] = (td_xfer_region){calloc(PEER_SLOTS, PEER_STRIDE), PEER_STRIDE, PEER_SLOTS, 1};
    s->regions[1] =
        (td_xfer_region){calloc(PEER_BLOBS, PEER_BLOB_BYTES), PEER_BLOB_BYTES, PEER_BLOBS, 1};
    for (uint32_t slot = 0; slot < PEER_SLOTS; slot++)
        peer_fill((unsigned char *)s->regions[0].base + (size_t)slot * PEER_STRIDE, 0, slot,
                  PEER_STRIDE);
    td_xfer_config config = r->config;
    config.incarnation = "inc-1";
    config.regions = s->regions;
    config.max_readers = 4;
    config.ring_bytes = 4U << 20;
    if (td_xfer_create(&config, &s->xfer, &err) != TD_OK)
        fail_msg("%s", err.text);
    const unsigned char *desc = td_xfer_descriptor(s->xfer, &here.n_desc_bytes);
    memcpy(here.desc, desc, here.n_desc_bytes);
    s->link = rig_up(r, &here, "posix");
}

static void near_close(near_source *s, rig *r)
{
    td_xfer_destroy(s->xfer);
    rig_expect(r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 5000);
    rig_close(r);
    free(s->regions[0].base);
    free(s->regions[1].base);
}

/* Source and reader in one process, pages written and published while the link is up. */
TEST(both_ends_may_live_in_one_process)
{
    near_source s;
    rig r;
    near_open(&s, &r);
    for (uint32_t round = 0; round < 3; round++) {
        rig_job j;
        for (uint32_t slot = 0; slot < PEER_SLOTS; slot++) {
            td_xfer_reclaim(s.xfer, TD_XFER_PAGES, &slot, 1);
            peer_fill((unsigned char *)s.regions[0].base + (size_t)slot * PEER_STRIDE, 0, slot,
                      PEER_STRIDE);
            td_xfer_publish(s.xfer, TD_XFER_PAGES, slot, PEER_GENERATION, PEER_STRIDE);
        }
        rig_wish(&r, &j, 64, 0, 0, PEER_STRIDE, 20000);
        rig_get(&r, s.link, &j);
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
        rig_check(&r, &j);
    }
    td_xfer_reader_info reader[2];
    TD_EQ(1, td_xfer_readers(s.xfer, reader, 2));
    TD_STR("reader", reader[0].incarnation);
    TD_EQ(3UL * 64 * PEER_STRIDE, reader[0].n_bytes);
    TD_EQ(3 * 64, reader[0].n_pulls);
    td_xfer_drawn_info drawn = td_xfer_drawn(r.xfer);
    TD_EQ(3, drawn.n_jobs);
    TD_EQ(3UL * 64 * PEER_STRIDE, drawn.n_bytes);
    TD_EQ(1, drawn.n_shm_links);
    near_close(&s, &r);
}

static void get_one(near_source *s, rig *r, uint32_t slot, uint32_t generation, uint64_t n_bytes,
                    td_status want)
{
    rig_job j;
    rig_wish(r, &j, 1, 0, 0, n_bytes, 10000);
    j.pages[0].remote = slot;
    j.pages[0].generation = generation;
    j.pages[0].crc32c = td_xfer_range_crc(&r->expected, slot, 0, n_bytes);
    rig_get(r, s->link, &j);
    td_xfer_event event = rig_expect(r, TD_XFER_JOB_DONE, want, 10000);
    if (want == TD_MISMATCH)
        TD_TRUE(strstr(event.err.text, "page 100, layers 3 to 4: prefill-1 rank 0 holds it no more "
                                       "in slot") != NULL);
}

/* A page that was never announced, or was given up, or belongs to another request by now. */
TEST(a_page_is_read_under_its_generation_only)
{
    near_source s;
    rig r;
    near_open(&s, &r);
    const uint32_t slot = 9;
    get_one(&s, &r, slot, 1, PEER_STRIDE, TD_MISMATCH);
    get_one(&s, &r, slot, 0, PEER_STRIDE, TD_MISMATCH);
    td_xfer_publish(s.xfer, TD_XFER_PAGES, slot, 1, PEER_STRIDE);
    get_one(&s, &r, slot, 1, PEER_STRIDE, TD_OK);
    get_one(&s, &r, slot, 2, PEER_STRIDE, TD_MISMATCH);
    get_one(&s, &r, slot + 1, 1, PEER_STRIDE, TD_MISMATCH);
    td_xfer_reclaim(s.xfer, TD_XFER_PAGES, &slot, 1);
    get_one(&s, &r, slot, 1, PEER_STRIDE, TD_MISMATCH);
    td_xfer_publish(s.xfer, TD_XFER_PAGES, slot, 2, PEER_STRIDE);
    get_one(&s, &r, slot, 1, PEER_STRIDE, TD_MISMATCH); /* stale */
    get_one(&s, &r, slot, 2, PEER_STRIDE, TD_OK);
    TD_EQ(6, td_xfer_served(s.xfer).n_bad_pulls);
    near_close(&s, &r);
}

TEST(layers_that_are_not_ready_are_not_read)
{
    near_source s;
    rig r;
    near_open(&s, &r);
    td_xfer_publish(s.xfer, TD_XFER_PAGES, 3, 5, 9000);
    get_one(&s, &r, 3, 5, 9000, TD_OK);
    get_one(&s, &r, 3, 5, 9001, TD_MISMATCH);
    td_xfer_publish(s.xfer, TD_XFER_PAGES, 3, 5, PEER_STRIDE);
    get_one(&s, &r, 3, 5, PEER_STRIDE, TD_OK);
    near_close(&s, &r);
}

static int64_t metric(td_metrics *registry, td_metric_kind kind, const char *name,
                      const char *labels)
{
    return td_metric_value(td_metrics_get(registry, kind, name, labels, ""));
}

TEST(what_moved_and_what_was_refused_is_counted_for_metrics)
{
    near_source s;
    rig r;
    td_metrics *registry;
    td_xfer_metrics m;
    td_err err;
    near_open(&s, &r);
    TD_EQ(TD_OK, td_metrics_create(4, &registry, &err));
    TD_EQ(TD_NOMEM, td_xfer_metrics_init(&m, registry, &err));
    td_metrics_destroy(registry);
    TD_EQ(TD_OK, td_metrics_create(64, &registry, &err));
    TD_EQ(TD_OK, td_xfer_metrics_init(&m, registry, &err));
    td_xfer_publish(s.xfer, TD_XFER_PAGES, 3, 5, PEER_STRIDE);
    get_one(&s, &r, 3, 5, PEER_STRIDE, TD_OK);
    get_one(&s, &r, 3, 4, PEER_STRIDE, TD_MISMATCH);
    td_xfer_fault fault = {TD_XFER_FAULT_DAMAGE, 1, 1};
    td_xfer_set_fault(r.xfer, &fault);
    get_one(&s, &r, 3, 5, PEER_STRIDE, TD_OK);
    td_xfer *ends[3] = {s.xfer, NULL, r.xfer};
    td_xfer_metrics_update(&m, ends, 3);
    static const struct {
        td_metric_kind kind;
        const char *name, *labels;
        int64_t want;
    } rows[] = {{TD_COUNTER, "tandem_kv_read_bytes_total", "", 3 * PEER_STRIDE},
                {TD_COUNTER, "tandem_kv_served_bytes_total", "", 3 * PEER_STRIDE},
                {TD_COUNTER, "tandem_kv_jobs_total", "", 3},
                {TD_COUNTER, "tandem_kv_jobs_failed_total", "", 1},
                {TD_COUNTER, "tandem_kv_crc_mismatches_total", "", 1},
                {TD_COUNTER, "tandem_kv_refetches_total", "", 1},
                {TD_COUNTER, "tandem_kv_pulls_total", "", 4},
                {TD_COUNTER, "tandem_kv_pulls_refused_total", "", 1},
                {TD_COUNTER, "tandem_kv_hellos_refused_total", "", 0},
                {TD_GAUGE, "tandem_kv_readers", "", 1},
                {TD_GAUGE, "tandem_kv_links", "transport=\"shm\"", 1},
                {TD_GAUGE, "tandem_kv_links", "transport=\"tcp\"", 0}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int64_t got = metric(registry, rows[i].kind, rows[i].name, rows[i].labels);
        if (got != rows[i].want)
            fail_msg("%s is %lld", rows[i].name, (long long)got);
    }
    td_metrics_destroy(registry);
    near_close(&s, &r);
}
