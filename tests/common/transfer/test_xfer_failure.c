/* Peers that die, stop, come back or were never there; jobs that are cancelled or late. */
#include "common/base/clock.h"
#include "common/kv/slab.h"
#include "tests/common/transfer/rig.h"
#include "tests/td_test.h"

#include <dirent.h>
#include <signal.h>
#include <time.h>

#define N_JOBS 4U

/* Every slot of the rig under way: more than a window and more than the gets in flight. */
static void fill_link(rig *r, td_xfer_link link, rig_job jobs[N_JOBS], int64_t deadline_ms)
{
    for (uint32_t k = 0; k < N_JOBS; k++) {
        rig_wish(r, &jobs[k], 32, k * 32, 0, PEER_STRIDE, deadline_ms);
        rig_get(r, link, &jobs[k]);
    }
}

/* All of them end with this status, and from that moment on their slots are ours. */
static void expect_end(rig *r, td_status status, int64_t ms)
{
    for (uint32_t k = 0; k < N_JOBS; k++) {
        td_xfer_event event = rig_expect(r, TD_XFER_JOB_DONE, status, ms);
        rig_pattern(r, (uint32_t)(event.tag - 1000), 32);
    }
}

static void source_killed(const char *transport, const char *used)
{
    for (int round = 0; round < 10; round++) {
        peer source;
        rig r;
        rig_job jobs[N_JOBS];
        peer_start_source(&source, transport, "inc-1", NULL);
        rig_init(&r, transport);
        rig_open(&r);
        td_xfer_link link = rig_up(&r, &source, used);
        if (round == 0) /* nothing is quicker than its death */
            peer_stop(&source);
        fill_link(&r, link, jobs, 60000);
        struct timespec pause = {0, round * 1000000L};
        nanosleep(&pause, NULL);
        int64_t start_ns = td_now_ns();
        peer_kill(&source);
        td_xfer_event event;
        uint32_t n_lost = 0;
        do {
            event = rig_next(&r, 5000);
            if (event.kind == TD_XFER_JOB_DONE && event.status == TD_PEER_LOST)
                n_lost++;
            else if (event.kind == TD_XFER_JOB_DONE)
                TD_EQ(TD_OK, event.status); /* it was quicker */
            if (event.kind == TD_XFER_JOB_DONE)
                rig_pattern(&r, (uint32_t)(event.tag - 1000), 32);
        } while (event.kind != TD_XFER_LINK_DOWN);
        TD_EQ(TD_PEER_LOST, event.status);
        TD_TRUE(td_now_ns() - start_ns < 5 * TD_NS_PER_S);
        TD_EQ(0, td_xfer_n_live_jobs(r.xfer));
        TD_TRUE(round > 0 || n_lost == N_JOBS);
        td_sleep_ms(20);
        rig_untouched(&r, 0, RIG_SLOTS);
        rig_close(&r);
    }
}

TEST(a_killed_source_is_lost_at_once_over_shm)
{
    source_killed("shm", "posix");
}

TEST(a_killed_source_is_lost_at_once_over_tcp)
{
    source_killed("tcp", "tcp");
}

static void source_stopped(const char *transport, const char *used)
{
    peer source;
    rig r;
    rig_job jobs[N_JOBS];
    peer_start_source(&source, transport, "inc-1", NULL);
    rig_init(&r, transport);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, used);
    peer_stop(&source);
    fill_link(&r, link, jobs, 300);
    int64_t start_ns = td_now_ns();
    expect_end(&r, TD_DEADLINE, 3000);
    TD_TRUE(td_now_ns() - start_ns < 2 * TD_NS_PER_S);
    peer_continue(&source);
    td_sleep_ms(500); /* what it sends now is nobody's */
    rig_untouched(&r, 0, RIG_SLOTS);
    fill_link(&r, link, jobs, 60000); /* the link is as good as before */
    for (uint32_t k = 0; k < N_JOBS; k++)
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 60000);
    for (uint32_t k = 0; k < N_JOBS; k++)
        rig_check(&r, &jobs[k]);
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_stopped_source_makes_jobs_late_and_writes_nothing_afterwards_over_shm)
{
    source_stopped("shm", "posix");
}

TEST(a_stopped_source_makes_jobs_late_and_writes_nothing_afterwards_over_tcp)
{
    source_stopped("tcp", "tcp");
}

TEST(a_source_stopped_for_a_moment_goes_on)
{
    peer source;
    rig r;
    rig_job jobs[N_JOBS];
    peer_start_source(&source, "auto", "inc-1", NULL);
    rig_init(&r, "auto");
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    for (int round = 0; round < 10; round++) {
        fill_link(&r, link, jobs, 60000);
        peer_stop(&source);
        td_sleep_ms(30);
        peer_continue(&source);
        for (uint32_t k = 0; k < N_JOBS; k++)
            rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 60000);
        for (uint32_t k = 0; k < N_JOBS; k++)
            rig_check(&r, &jobs[k]);
    }
    rig_close(&r);
    peer_finish(&source);
}

/* Nobody but us notices: first the silence, then no answer to the hello over a fresh endpoint. */
TEST(a_source_that_stays_stopped_is_lost)
{
    static const char *const transports[] = {"shm", "tcp"};
    for (int t = 0; t < rig_n_transports(); t++) {
        peer source;
        rig r;
        rig_job jobs[N_JOBS];
        peer_start_source(&source, transports[t], "inc-1", NULL);
        rig_init(&r, transports[t]);
        r.config.stall_ms = 300;
        r.config.connect_ms = 1000;
        rig_open(&r);
        td_xfer_link link = rig_up(&r, &source, t == 0 ? "posix" : "tcp");
        peer_stop(&source);
        fill_link(&r, link, jobs, 60000);
        expect_end(&r, TD_PEER_LOST, 5000);
        rig_expect(&r, TD_XFER_LINK_DOWN, TD_PEER_LOST, 1000);
        peer_continue(&source);
        td_sleep_ms(300);
        rig_untouched(&r, 0, RIG_SLOTS);
        rig_up(&r, &source, t == 0 ? "posix" : "tcp"); /* it was only asleep */
        rig_close(&r);
        peer_finish(&source);
    }
}

TEST(closing_a_link_ends_its_jobs_at_once)
{
    static const char *const transports[] = {"shm", "tcp"};
    for (int t = 0; t < rig_n_transports(); t++) {
        peer source;
        rig r;
        rig_job jobs[N_JOBS];
        peer_start_source(&source, transports[t], "inc-1", NULL);
        rig_init(&r, transports[t]);
        rig_open(&r);
        td_xfer_link link = rig_up(&r, &source, t == 0 ? "posix" : "tcp");
        peer_stop(&source);
        fill_link(&r, link, jobs, 60000);
        td_sleep_ms(20);
        int64_t start_ns = td_now_ns();
        td_xfer_link_close(r.xfer, link);
        td_xfer_link_close(r.xfer, link);
        td_xfer_job job;
        TD_EQ(TD_PEER_LOST, td_xfer_get(r.xfer, link, &jobs[0].args, &job, NULL));
        expect_end(&r, TD_PEER_LOST, 1000);
        rig_expect(&r, TD_XFER_LINK_DOWN, TD_CANCELLED, 1000);
        TD_TRUE(td_now_ns() - start_ns < TD_NS_PER_S);
        peer_continue(&source);
        td_sleep_ms(300);
        rig_untouched(&r, 0, RIG_SLOTS);
        rig_close(&r);
        peer_finish(&source);
    }
}

/* Readers die with gets under way, some while the source is stopped: it serves the others as if
 * nothing had been. */
static void readers_killed(const char *transport, const char *used)
{
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, transport, "inc-1", NULL);
    rig_init(&r, transport);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, used);
    for (int round = 0; round < 24; round++) {
        peer reader;
        peer_start_reader(&reader, transport, &source);
        struct timespec pause = {0, (round % 8) * 700000L};
        nanosleep(&pause, NULL);
        rig_wish(&r, &j, 64, 0, 0, PEER_STRIDE, 60000);
        if (round % 3 == 0)
            peer_stop(&source);
        rig_get(&r, link, &j);
        if (round % 3 == 0)
            td_sleep_ms(3);
        peer_kill(&reader);
        if (round % 3 == 0) {
            td_sleep_ms(3);
            peer_continue(&source);
        }
        rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 60000);
        rig_check(&r, &j);
    }
    for (int i = 0; peer_served(&source).n_readers != 1; i++) {
        TD_TRUE(i < 250);
        td_sleep_ms(20);
    }
    double before = peer_cpu_seconds(&source);
    td_sleep_ms(2000);
    if (peer_cpu_seconds(&source) - before > 0.04)
        fail_msg("the source still works for the dead");
    rig_close(&r);
    peer_finish(&source);
}

TEST(killed_readers_leave_the_source_unharmed_over_shm)
{
    readers_killed("shm", "posix");
}

TEST(killed_readers_leave_the_source_unharmed_over_tcp)
{
    readers_killed("tcp", "tcp");
}

TEST(a_stopped_reader_costs_the_source_nothing_and_hurts_nobody)
{
    static const char *const transports[] = {"shm", "tcp"};
    for (int t = 0; t < rig_n_transports(); t++) {
        peer source, reader;
        rig r;
        rig_job j;
        peer_start_source(&source, transports[t], "inc-1", NULL);
        peer_start_reader(&reader, transports[t], &source);
        td_sleep_ms(10);
        peer_stop(&reader);
        /* Stopped in the middle of a fetch it may cost the source's worker, once. */
        td_sleep_ms(1000);
        double before = peer_cpu_seconds(&source);
        td_sleep_ms(2000);
        if (peer_cpu_seconds(&source) - before > 0.06)
            fail_msg("the source spins for a stopped reader");
        rig_init(&r, transports[t]);
        rig_open(&r);
        td_xfer_link link = rig_up(&r, &source, t == 0 ? "posix" : "tcp");
        for (int round = 0; round < 10; round++) {
            rig_wish(&r, &j, 64, 0, 0, PEER_STRIDE, 60000);
            rig_get(&r, link, &j);
            rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 60000);
            rig_check(&r, &j);
        }
        peer_continue(&reader);
        /* And it goes on, connected again if need be: it would have died of wrong contents. */
        for (int i = 0; peer_served(&source).n_readers != 2; i++) {
            TD_TRUE(i < 250);
            td_sleep_ms(20);
        }
        td_sleep_ms(200);
        TD_EQ(2, peer_served(&source).n_readers);
        peer_kill(&reader);
        rig_close(&r);
        peer_finish(&source);
    }
}

/* One of two sources is killed or stopped in the middle of what it sends: the other's pages keep
 * coming. Over shared memory that takes a new UCX worker, because a sender that never ends its
 * message blocks the queue of all. */
static void other_source_goes_on(const char *transport, const char *used, int signal)
{
    peer good;
    rig r;
    rig_job jobs[2];
    peer_start_source(&good, transport, "inc-1", NULL);
    rig_init(&r, transport);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &good, used);
    for (int round = 0; round < 12; round++) {
        peer bad;
        peer_start_source(&bad, transport, "inc-1", NULL);
        td_xfer_link bad_link = rig_up(&r, &bad, used);
        rig_wish(&r, &jobs[1], 64, 64, 0, PEER_STRIDE, 60000);
        rig_get(&r, bad_link, &jobs[1]);
        uint64_t some = (1U + rig_random(&r, 8)) << 20; /* of its 16 MB */
        td_xfer_link_info info[2];
        do
            TD_EQ(2, td_xfer_links(r.xfer, info, 2));
        while (info[1].n_bytes < some);
        if (signal == SIGSTOP)
            peer_stop(&bad);
        else
            kill(bad.pid, signal);
        rig_wish(&r, &jobs[0], 64, 0, 0, PEER_STRIDE, 60000);
        rig_get(&r, link, &jobs[0]);
        int64_t start_ns = td_now_ns();
        int good_done = 0, bad_down = 0, bad_done = 0;
        while (!good_done || !bad_down || !bad_done) {
            td_xfer_event event = rig_next(&r, 10000);
            if (event.kind == TD_XFER_JOB_DONE && event.tag == 1000) {
                TD_EQ(TD_OK, event.status);
                TD_TRUE(td_now_ns() - start_ns < 3 * TD_NS_PER_S);
                rig_check(&r, &jobs[0]);
                good_done = 1;
                td_xfer_link_close(r.xfer, bad_link); /* as heartbeats would tell */
            } else if (event.kind == TD_XFER_JOB_DONE) {
                bad_done = 1;
            } else {
                TD_EQ(TD_XFER_LINK_DOWN, event.kind);
                TD_EQ(bad_link.slot, event.link.slot);
                bad_down = 1;
            }
        }
        peer_kill(&bad);
    }
    rig_close(&r);
    peer_finish(&good);
}

TEST(another_sources_death_delays_nobody_for_long_over_shm)
{
    other_source_goes_on("shm", "posix", SIGKILL);
}

TEST(another_sources_death_delays_nobody_for_long_over_tcp)
{
    other_source_goes_on("tcp", "tcp", SIGKILL);
}

TEST(another_sources_sleep_delays_nobody_for_long_over_shm)
{
    other_source_goes_on("shm", "posix", SIGSTOP);
}

TEST(another_sources_sleep_delays_nobody_for_long_over_tcp)
{
    other_source_goes_on("tcp", "tcp", SIGSTOP);
}

/* Cancelled pages are given to somebody else at once (poisoned); the pattern shows any late byte.
 */
static void cancel_storm(const char *transport, const char *used)
{
    enum { ROUNDS = 60, JOBS = 8, EACH = 16 };
    peer source;
    rig r;
    peer_start_source(&source, transport, "inc-1", NULL);
    rig_init(&r, transport);
    free(r.regions[0].base);
    td_kv_layout layout = {.page_stride = PEER_STRIDE};
    td_kv_slab slab;
    TD_EQ(TD_OK, td_kv_slab_init(&slab, &layout, RIG_SLOTS, 1, NULL));
    r.regions[0].base = slab.base;
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, used);
    unsigned n_cancelled = 0;
    for (int round = 0; round < ROUNDS; round++) {
        rig_job jobs[JOBS];
        td_err err;
        for (uint32_t k = 0; k < JOBS; k++) {
            rig_wish(&r, &jobs[k], EACH, k * EACH, 0, PEER_STRIDE, 60000);
            for (uint32_t p = 0; p < EACH; p++)
                if (td_kv_slab_open(&slab, k * EACH + p, &err) != TD_OK)
                    fail_msg("%s", err.text);
        }
        for (uint32_t k = 0; k < JOBS; k++)
            rig_get(&r, link, &jobs[k]);
        for (uint32_t k = 0; k < JOBS; k++) {
            struct timespec pause = {0, rig_random(&r, 300000)};
            if (rig_random(&r, 3) == 0)
                nanosleep(&pause, NULL);
            if (rig_random(&r, 3) != 0)
                td_xfer_cancel(r.xfer, jobs[k].job);
        }
        for (uint32_t k = 0; k < JOBS; k++) {
            td_xfer_event event = rig_next(&r, 60000);
            TD_EQ(TD_XFER_JOB_DONE, event.kind);
            const rig_job *j = &jobs[(event.tag - 1000) / EACH];
            if (event.status == TD_OK)
                rig_check(&r, j);
            else
                TD_EQ(TD_CANCELLED, event.status);
            n_cancelled += event.status == TD_CANCELLED;
            for (uint32_t p = 0; p < EACH; p++)
                td_kv_slab_retire(&slab, j->pages[p].local);
        }
    }
    TD_TRUE(n_cancelled > ROUNDS);
    TD_EQ(0, td_xfer_n_live_jobs(r.xfer));
    td_sleep_ms(100);
    for (uint32_t p = 0; p < RIG_SLOTS; p++)
        TD_EQ(TD_OK, td_kv_slab_open(&slab, p, NULL));
    td_xfer_link_info info;
    TD_EQ(1, td_xfer_links(r.xfer, &info, 1));
    /* A cancelled job never costs the others their connection; fetches that UCX emulates may look
     * stuck on a slow machine, and cost it. */
    if (getenv("XFER_TEST_DIRECT") == NULL)
        TD_EQ(0, info.n_reconnects);
    rig_close(&r);
    peer_finish(&source);
}

TEST(a_cancel_storm_leaves_no_late_byte_over_shm)
{
    cancel_storm("shm", "posix");
}

TEST(a_cancel_storm_leaves_no_late_byte_over_tcp)
{
    cancel_storm("tcp", "tcp");
}

TEST(links_come_and_go_without_leaving_anything)
{
    static const char *const transports[] = {"shm", "tcp"};
    for (int t = 0; t < rig_n_transports(); t++) {
        peer source;
        rig r;
        rig_job j;
        peer_start_source(&source, transports[t], "inc-1", NULL);
        rig_init(&r, transports[t]);
        rig_open(&r);
        for (int round = 0; round < 60; round++) {
            td_xfer_link link = rig_up(&r, &source, t == 0 ? "posix" : "tcp");
            rig_wish(&r, &j, 64, 0, 0, PEER_STRIDE, 20000);
            rig_get(&r, link, &j);
            if (round % 2 == 0)
                rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
            td_xfer_link_close(r.xfer, link);
            while (rig_next(&r, 5000).kind != TD_XFER_LINK_DOWN)
                ;
        }
        for (int i = 0; peer_served(&source).n_readers != 0; i++) {
            TD_TRUE(i < 250);
            td_sleep_ms(20);
        }
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/fd", (int)source.pid);
        int n_fds = 0;
        DIR *dir = opendir(path);
        while (readdir(dir) != NULL)
            n_fds++;
        closedir(dir);
        TD_TRUE(n_fds < 50);
        rig_close(&r);
        peer_finish(&source);
    }
}

TEST(destroying_with_everything_under_way_is_clean)
{
    static const char *const transports[] = {"shm", "tcp"};
    for (int t = 0; t < rig_n_transports(); t++) {
        for (int round = 0; round < 5; round++) {
            peer source;
            rig r;
            rig_job jobs[N_JOBS];
            peer_start_source(&source, transports[t], "inc-1", NULL);
            rig_init(&r, transports[t]);
            rig_open(&r);
            td_xfer_link link =
                round == 0 ? rig_link(&r, &source) : rig_up(&r, &source, t == 0 ? "posix" : "tcp");
            fill_link(&r, link, jobs, 60000);
            if (round == 4)
                peer_stop(&source);
            rig_close(&r);
            peer_continue(&source);
            peer_finish(&source);
        }
    }
}

static int count_shm_files(void)
{
    int n = 0;
    DIR *dir = opendir("/dev/shm");
    if (dir == NULL)
        td_skip("no /dev/shm");
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir))
        n += strncmp(entry->d_name, "ucx_", 4) == 0;
    closedir(dir);
    return n;
}

TEST(killed_processes_leave_no_shared_memory_files)
{
    int before = count_shm_files();
    for (int round = 0; round < 5; round++) {
        peer source, reader;
        peer_start_source(&source, "shm", "inc-1", NULL);
        peer_start_reader(&reader, "shm", &source);
        td_sleep_ms(10);
        peer_kill(round % 2 ? &source : &reader);
        peer_kill(round % 2 ? &reader : &source);
    }
    for (int i = 0; count_shm_files() > before; i++) { /* others may be starting just now */
        TD_TRUE(i < 100);
        td_sleep_ms(50);
    }
}

TD_TEST_MAIN
