/* Drawing pages from another process, when nothing dies. */
#include "common/base/clock.h"
#include "tests/common/transfer/rig.h"
#include "tests/td_test.h"

#include <signal.h>
#include <time.h>

static void set_fault(rig *r, const char *text)
{
    td_xfer_fault fault;
    TD_EQ(TD_OK, td_xfer_fault_parse(text, &fault, NULL));
    td_xfer_set_fault(r->xfer, &fault);
}

/* Many jobs over random scattered pages, ranges and sizes; then nothing is left anywhere. */
static void scattered(const char *transport, const char *used)
{
    peer source;
    rig r;
    peer_start_source(&source, transport, "inc-1", NULL);
    rig_init(&r, transport);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, used);
    uint64_t n_bytes_total = 0, n_pages_total = 0;
    for (int round = 0; round < 40; round++) {
        rig_job jobs[4];
        for (uint32_t k = 0; k < 4; k++) {
            uint64_t offset = 64 * rig_random(&r, PEER_STRIDE / 64);
            uint64_t n_bytes = 1 + rig_random(&r, (uint32_t)(PEER_STRIDE - offset));
            if (round % 4 == 0)
                offset = 0, n_bytes = PEER_STRIDE;
            rig_wish(&r, &jobs[k], 1 + rig_random(&r, 32), k * 32, offset, n_bytes, 60000);
            memset((unsigned char *)r.regions[0].base + (size_t)k * 32 * PEER_STRIDE, 0,
                   32UL * PEER_STRIDE);
            rig_get(&r, link, &jobs[k]);
        }
        for (int k = 0; k < 4; k++) {
            td_xfer_event event = rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 60000);
            const rig_job *j = &jobs[(event.tag - 1000) / 32];
            TD_EQ(j->job.slot, event.job.slot);
            TD_EQ(j->args.n_pages, event.n_pages);
            TD_EQ(j->args.n_pages * j->args.n_bytes, event.n_bytes); /* the closed formula */
            for (uint32_t p = 0; p < event.n_pages; p++)
                TD_EQ(TD_XFER_PAGE_OK, event.verdicts[p]);
            rig_check(&r, j);
            n_bytes_total += event.n_bytes;
            n_pages_total += event.n_pages;
        }
    }
    td_xfer_link_info info;
    TD_EQ(1, td_xfer_links(r.xfer, &info, 1));
    TD_EQ(n_bytes_total, info.n_bytes);
    TD_EQ(n_pages_total, info.n_gets);
    TD_EQ(0, info.n_in_flight + info.n_jobs + info.n_failed_gets + info.n_crc_mismatches);
    TD_EQ(0, td_xfer_n_live_jobs(r.xfer));
    td_xfer_served_info served = peer_served(&source);
    TD_EQ(n_bytes_total, served.n_bytes);
    TD_EQ(1, served.n_readers);
    TD_EQ(0, served.n_bad_pulls);
    rig_close(&r);
    peer_finish(&source);
}

TEST(scattered_pages_arrive_whole_over_shm)
{
    scattered("shm", "posix");
}

TEST(scattered_pages_arrive_whole_over_tcp)
{
    scattered("tcp", "tcp");
}

TEST(two_processes_of_one_host_end_up_on_shared_memory)
{
    scattered("auto", "posix");
}

TEST(a_blob_arrives_like_a_page)
{
    peer source;
    rig r;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    _Alignas(8) unsigned char want[PEER_BLOB_BYTES];
    td_xfer_region expected = {want, sizeof(want), 1, 0};
    peer_fill(want, TD_XFER_BLOBS, 5, sizeof(want));
    td_xfer_page page = {.remote = 5,
                         .local = 2,
                         .generation = PEER_GENERATION,
                         .crc32c = td_xfer_range_crc(&expected, 0, 0, sizeof(want))};
    td_xfer_get_args args = {
        .region = TD_XFER_BLOBS,
        .n_pages = 1,
        .n_bytes = PEER_BLOB_BYTES,
        .deadline_ns = td_now_ns() + 10 * TD_NS_PER_S,
        .pages = &page,
    };
    td_xfer_job job;
    TD_EQ(TD_OK, td_xfer_get(r.xfer, link, &args, &job, NULL));
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 10000);
    TD_MEM(want, (unsigned char *)r.regions[1].base + 2 * PEER_BLOB_BYTES, sizeof(want));
    rig_close(&r);
    peer_finish(&source);
}

TEST(jobs_may_be_given_before_the_link_is_up)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_link(&r, &source);
    rig_wish(&r, &j, 16, 0, 0, PEER_STRIDE, 10000);
    rig_get(&r, link, &j);
    rig_expect(&r, TD_XFER_LINK_UP, TD_OK, 10000);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 10000);
    rig_check(&r, &j);
    rig_close(&r);
    peer_finish(&source);
}

TEST(several_sources_at_once)
{
    enum { N = 4 };
    peer source[N];
    rig r;
    rig_job jobs[N];
    td_xfer_link link[N];
    rig_init(&r, "auto");
    rig_open(&r);
    for (int i = 0; i < N; i++) {
        peer_start_source(&source[i], "auto", "inc-1", NULL);
        link[i] = rig_up(&r, &source[i], "posix");
    }
    for (int round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < N; i++) {
            rig_wish(&r, &jobs[i], 32, i * 32, 0, PEER_STRIDE, 30000);
            rig_get(&r, link[i], &jobs[i]);
        }
        for (int i = 0; i < N; i++)
            rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 30000);
        for (int i = 0; i < N; i++)
            rig_check(&r, &jobs[i]);
    }
    rig_close(&r);
    for (int i = 0; i < N; i++)
        peer_finish(&source[i]);
}

static void damaged_once(const char *transport, const char *used)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, transport, "inc-1", NULL);
    rig_init(&r, transport);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, used);
    set_fault(&r, "damage:5");
    rig_wish(&r, &j, 16, 0, 4096, 50000, 20000);
    rig_get(&r, link, &j);
    td_xfer_event event = rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
    TD_EQ(1, event.n_refetched);
    int n_refetched = 0;
    for (uint32_t i = 0; i < event.n_pages; i++)
        n_refetched += event.verdicts[i] == TD_XFER_PAGE_REFETCHED;
    TD_EQ(1, n_refetched);
    rig_check(&r, &j);
    td_xfer_link_info info;
    TD_EQ(1, td_xfer_links(r.xfer, &info, 1));
    TD_EQ(1, info.n_crc_mismatches);
    TD_EQ(1, info.n_refetches);
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_page_damaged_once_is_fetched_again_over_shm)
{
    damaged_once("shm", "posix");
}

TEST(a_page_damaged_once_is_fetched_again_over_tcp)
{
    damaged_once("tcp", "tcp");
}

TEST(a_page_damaged_twice_is_data_loss_and_named)
{
    peer source;
    rig r;
    rig_job j, other;
    char want[128];
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    set_fault(&r, "damage:5:2");
    rig_wish(&r, &j, 16, 0, 4096, 50000, 20000);
    rig_get(&r, link, &j);
    td_xfer_event event = rig_expect(&r, TD_XFER_JOB_DONE, TD_DATA_LOSS, 20000);
    snprintf(want, sizeof(want),
             "page 104, layers 3 to 4 (slot %u there, 4 here, 50000 bytes "
             "at 4096) from prefill-1 rank 0",
             j.pages[4].remote);
    if (strstr(event.err.text, want) == NULL)
        fail_msg("says: %s", event.err.text);
    TD_EQ(TD_XFER_PAGE_DAMAGED, event.verdicts[4]);
    rig_wish(&r, &other, 16, 32, 0, PEER_STRIDE, 20000); /* nobody else suffers */
    rig_get(&r, link, &other);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
    rig_check(&r, &other);
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_wrong_announcement_is_data_loss)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    rig_wish(&r, &j, 8, 0, 0, PEER_STRIDE, 20000);
    j.pages[3].remote = (j.pages[3].remote + 1) % PEER_SLOTS; /* given away too early, say */
    rig_get(&r, link, &j);
    td_xfer_event event = rig_expect(&r, TD_XFER_JOB_DONE, TD_DATA_LOSS, 20000);
    TD_EQ(TD_XFER_PAGE_DAMAGED, event.verdicts[3]);
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_get_that_nothing_comes_for_is_asked_again)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    r.config.stall_ms = 1000; /* on a busy machine the other gets take their time, too */
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    set_fault(&r, "stall:3:2");
    rig_wish(&r, &j, 16, 0, 0, PEER_STRIDE, 20000);
    rig_get(&r, link, &j);
    td_xfer_event event = rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
    TD_TRUE(event.elapsed_ns >= 1000 * TD_NS_PER_MS);
    rig_check(&r, &j);
    td_xfer_link_info info;
    TD_EQ(1, td_xfer_links(r.xfer, &info, 1));
    TD_EQ(2, info.n_failed_gets);
    rig_close(&r);
    peer_finish(&source);
}

static void broken(const char *transport, const char *used)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, transport, "inc-1", NULL);
    rig_init(&r, transport);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, used);
    for (int round = 1; round <= 10; round++) {
        set_fault(&r, "break:5");
        rig_wish(&r, &j, 64, 0, 0, PEER_STRIDE, 20000);
        rig_get(&r, link, &j);
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
        rig_check(&r, &j);
        td_xfer_link_info info;
        TD_EQ(1, td_xfer_links(r.xfer, &info, 1));
        TD_TRUE(info.n_reconnects >=
                (uint64_t)round); /* a slow machine may restart the worker, too */
    }
    for (int i = 0; peer_served(&source).n_readers != 1; i++) { /* no endpoint stays behind */
        TD_TRUE(i < 100);
        td_sleep_ms(20);
    }
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_broken_connection_is_made_again_over_shm)
{
    broken("shm", "posix");
}

TEST(a_broken_connection_is_made_again_over_tcp)
{
    broken("tcp", "tcp");
}

TEST(tcp_between_processes_of_one_host_is_an_error_unless_allowed)
{
    peer source;
    rig r;
    peer_start_source(&source, "tcp", "inc-1", NULL);
    for (int allow = 0; allow <= 1; allow++) {
        rig_init(&r, "auto");
        r.config.allow_tcp = allow;
        rig_open(&r);
        if (allow) {
            rig_up(&r, &source, "tcp");
        } else {
            rig_link(&r, &source);
            td_xfer_event event = rig_expect(&r, TD_XFER_LINK_DOWN, TD_UNSUPPORTED, 20000);
            TD_TRUE(strstr(event.err.text, "shared memory was expected") != NULL);
        }
        rig_close(&r);
    }
    rig_init(&r, "shm");
    rig_open(&r);
    rig_link(&r, &source);
    td_xfer_event event = rig_expect(&r, TD_XFER_LINK_DOWN, TD_UNSUPPORTED, 20000);
    TD_TRUE(strstr(event.err.text, "shared memory was asked for") != NULL);
    rig_close(&r);
    peer_finish(&source);
}

TEST(full_tables_refuse_and_recover)
{
    peer source;
    rig r;
    rig_job j[3];
    td_xfer_job job;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    r.config.max_jobs = 2;
    r.config.max_pages = 40;
    r.config.max_links = 1;
    r.config.gets_per_link = 3;
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    td_err err;
    td_xfer_link_args again = {.desc = source.desc,
                               .n_desc_bytes = source.n_desc_bytes,
                               .incarnation = "inc-1",
                               .peer = "prefill-1"};
    td_xfer_link no_link;
    TD_EQ(TD_FULL, td_xfer_link_open(r.xfer, &again, &no_link, &err));
    for (int round = 0; round < 20; round++) {
        rig_wish(&r, &j[0], 20, 0, 0, 9000, 20000);
        rig_wish(&r, &j[1], 21, 32, 0, 9000, 20000);
        rig_wish(&r, &j[2], 10, 64, 0, 9000, 20000);
        rig_get(&r, link, &j[0]);
        TD_EQ(TD_FULL, td_xfer_get(r.xfer, link, &j[1].args, &job, &err)); /* 41 pages */
        rig_get(&r, link, &j[2]);
        j[1].args.n_pages = 1;
        TD_EQ(TD_FULL, td_xfer_get(r.xfer, link, &j[1].args, &job, &err)); /* 3 jobs */
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
        rig_check(&r, &j[0]);
        rig_check(&r, &j[2]);
    }
    rig_close(&r);
    peer_finish(&source);
}

TEST(senseless_gets_are_refused)
{
    peer source;
    rig r;
    rig_job j;
    td_xfer_job job;
    td_err err;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    static const struct {
        td_status want;
        uint32_t region, n_pages, remote, local;
        uint64_t offset, n_bytes;
        int64_t deadline_ns;
    } bad[] = {
        {TD_INVALID, 2, 1, 0, 0, 0, 64, 1},
        {TD_INVALID, 0, 0, 0, 0, 0, 64, 1},
        {TD_INVALID, 0, 1, 0, 0, 0, 0, 1},
        {TD_INVALID, 0, 1, 0, 0, 0, PEER_STRIDE + 1, 1},
        {TD_INVALID, 0, 1, 0, 0, PEER_STRIDE, 1, 1},
        {TD_INVALID, 0, 1, 0, 0, UINT64_MAX, 2, 1},
        {TD_INVALID, 0, 1, 0, 0, 1, UINT64_MAX, 1},
        {TD_INVALID, 0, 1, 0, RIG_SLOTS, 0, 64, 1},
        {TD_INVALID, 0, 1, 0, 0, 0, 64, 0},
        {TD_PROTOCOL, 0, 1, PEER_SLOTS, 0, 0, 64, 1},
        {TD_INVALID, 0, TD_XFER_MAX_JOB_PAGES + 1, 0, 0, 0, 64, 1},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rig_wish(&r, &j, 1, 0, 0, 64, 1000);
        j.args.region = bad[i].region;
        j.args.n_pages = bad[i].n_pages;
        j.args.offset = bad[i].offset;
        j.args.n_bytes = bad[i].n_bytes;
        j.args.deadline_ns *= bad[i].deadline_ns;
        j.pages[0].remote = bad[i].remote;
        j.pages[0].local = bad[i].local;
        TD_EQ(bad[i].want, td_xfer_get(r.xfer, link, &j.args, &job, &err));
    }
    TD_EQ(0, td_xfer_n_live_jobs(r.xfer));
    td_xfer_link stale = {link.slot, link.generation + 1}, far = {4000000000U, 1};
    rig_wish(&r, &j, 1, 0, 0, 64, 1000);
    TD_EQ(TD_PEER_LOST, td_xfer_get(r.xfer, stale, &j.args, &job, &err));
    TD_EQ(TD_PEER_LOST, td_xfer_get(r.xfer, far, &j.args, &job, &err));
    td_xfer_link_close(r.xfer, stale); /* ignored */
    td_xfer_cancel(r.xfer, (td_xfer_job){7, 7});
    rig_get(&r, link, &j);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 10000);
    td_xfer_cancel(r.xfer, j.job); /* over already */
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_descriptor_that_does_not_fit_is_refused)
{
    peer source;
    rig r;
    td_xfer_link link;
    td_err err;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link_args args = {.desc = source.desc,
                              .n_desc_bytes = source.n_desc_bytes,
                              .incarnation = "inc-2",
                              .peer = "prefill-1"};
    TD_EQ(TD_MISMATCH, td_xfer_link_open(r.xfer, &args, &link, &err));
    TD_TRUE(strstr(err.text, "inc-1") != NULL && strstr(err.text, "inc-2") != NULL);
    args.incarnation = "inc-1";
    args.n_desc_bytes--;
    TD_EQ(TD_PROTOCOL, td_xfer_link_open(r.xfer, &args, &link, &err));
    TD_TRUE(strstr(err.text, "prefill-1") != NULL);

    unsigned char bytes[TD_XFER_MAX_DESC_BYTES];
    td_xfer_desc desc;
    args.desc = bytes;
    TD_EQ(TD_OK, td_xfer_desc_decode(source.desc, source.n_desc_bytes, &desc, NULL));
    desc.regions[0].stride += 64;
    TD_EQ(TD_OK, td_xfer_desc_encode(&desc, bytes, sizeof(bytes), &args.n_desc_bytes, NULL));
    TD_EQ(TD_MISMATCH, td_xfer_link_open(r.xfer, &args, &link, &err));
    TD_TRUE(strstr(err.text, "262208") != NULL && strstr(err.text, "262144") != NULL);
    desc.regions[0].stride -= 64;
    desc.rank = 9; /* the listener is there, but it is not rank 9's */
    TD_EQ(TD_OK, td_xfer_desc_encode(&desc, bytes, sizeof(bytes), &args.n_desc_bytes, NULL));
    TD_EQ(TD_OK, td_xfer_link_open(r.xfer, &args, &link, &err));
    rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 10000);
    TD_EQ(1, peer_served(&source).n_refused);
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_source_refuses_ranges_that_it_does_not_serve)
{
    peer source, liar;
    rig r;
    rig_job j;
    td_xfer_desc desc;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    liar = source;
    TD_EQ(TD_OK, td_xfer_desc_decode(source.desc, source.n_desc_bytes, &desc, NULL));
    desc.regions[0].n_slots = 2 * PEER_SLOTS;
    TD_EQ(TD_OK,
          td_xfer_desc_encode(&desc, liar.desc, sizeof(liar.desc), &liar.n_desc_bytes, NULL));
    td_xfer_link link = rig_up(&r, &liar, "posix");
    rig_wish(&r, &j, 4, 0, 0, 9000, 10000);
    j.pages[2].remote = PEER_SLOTS + 3;
    rig_get(&r, link, &j);
    td_xfer_event event = rig_expect(&r, TD_XFER_JOB_DONE, TD_PROTOCOL, 10000);
    TD_TRUE(strstr(event.err.text, "slot 67") != NULL);
    TD_EQ(1, peer_served(&source).n_bad_pulls);
    rig_close(&r);
    peer_finish(&source);
}

TEST(tables_show_live_and_recent_transfers)
{
    peer source;
    rig r;
    rig_job j;
    td_xfer_job_info info[256];
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    for (int i = 0; i < 140; i++) {
        rig_wish(&r, &j, 2, 0, 0, 640, 10000);
        j.args.tag = (uint64_t)i;
        rig_get(&r, link, &j);
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 10000);
    }
    rig_wish(&r, &j, 64, 0, 0, PEER_STRIDE, 10000);
    j.args.tag = 999;
    peer_stop(&source); /* so that it is still live when we look */
    rig_get(&r, link, &j);
    TD_EQ(1, td_xfer_n_live_jobs(r.xfer));
    TD_EQ(1 + TD_XFER_N_RECENT, td_xfer_jobs(r.xfer, info, 256));
    TD_EQ(999, info[0].tag);
    TD_TRUE(info[0].stage != TD_XFER_JOB_ENDED && info[0].ended_ns == 0);
    TD_EQ(139, info[1].tag);
    TD_EQ(12, info[TD_XFER_N_RECENT].tag);
    TD_EQ(TD_XFER_JOB_ENDED, info[1].stage);
    TD_EQ(TD_OK, info[1].status);
    TD_STR("prefill-1", info[1].peer);
    TD_EQ(2, info[1].n_pages_done);
    TD_TRUE(info[1].ended_ns >= info[1].began_ns);
    TD_EQ(2, td_xfer_jobs(r.xfer, info, 2));
    peer_continue(&source);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 10000);
    td_xfer_link_info links[2];
    TD_EQ(1, td_xfer_links(r.xfer, links, 2));
    TD_STR("posix", links[0].transport);
    TD_STR("inc-1", links[0].peer_incarnation);
    TD_EQ(TD_XFER_LINK_READY, links[0].state);
    TD_EQ(1, links[0].same_host);
    TD_TRUE(links[0].answer_ns > 0 && links[0].get_mean_ns > 0 &&
            links[0].get_max_ns >= links[0].get_mean_ns);
    rig_close(&r);
    peer_finish(&source);
}

TEST(idle_ends_take_no_cpu_time)
{
    peer source;
    rig r;
    rig_job j;
    struct timespec before, after;
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    rig_wish(&r, &j, 32, 0, 0, PEER_STRIDE, 10000);
    rig_get(&r, link, &j);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 10000);
    td_sleep_ms(200);
    double source_before = peer_cpu_seconds(&source);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    td_sleep_ms(4000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    double mine =
        (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
    double its = peer_cpu_seconds(&source) - source_before;
    if (mine > 0.04 || its > 0.04)
        fail_msg("idle for 4 s, reader took %.3f s, source %.3f s", mine, its);
    rig_close(&r);
    peer_finish(&source);
}

TD_TEST_MAIN
