/* bench_xfer.c - GB/s of page ranges drawn from another process, over shm and over tcp, beside
 * memcpy and CRC32C of the same ranges in the same run. Asserts nothing. bench_xfer [seconds for
 * each figure]. */
#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/base/log.h"
#include "common/transfer/stats.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 80U
#define STRIDE (3124736ULL) /* a page of the full model in fp8 */
#define JOB_PAGES 40U

static unsigned char *pool;
static td_xfer_page pages[2][JOB_PAGES]; /* two jobs under way at any time */
static volatile uint32_t sink;

static void must(td_status st, const td_err *err)
{
    if (st == TD_OK)
        return;
    fprintf(stderr, "bench_xfer: %s\n", err->text);
    exit(1);
}

static td_xfer *open_end(td_xfer_transport transport, int served)
{
    td_xfer_region region = {pool, STRIDE, SLOTS, served};
    td_xfer_config config;
    td_xfer *xfer;
    td_err err;
    td_xfer_config_init(&config);
    config.transport = transport;
    config.incarnation = served ? "source" : "reader";
    config.regions = &region;
    config.n_regions = 1;
    must(td_xfer_create(&config, &xfer, &err), &err);
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        td_xfer_publish(xfer, 0, slot, 1, STRIDE);
    return xfer;
}

/* Its descriptor comes back through the pipe; it serves until it is killed. */
static pid_t start_source(td_xfer_transport transport, unsigned char *desc, size_t *n_bytes)
{
    int fds[2];
    if (pipe(fds) != 0)
        exit(1);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        td_xfer *xfer = open_end(transport, 1);
        const unsigned char *mine = td_xfer_descriptor(xfer, n_bytes);
        if (write(fds[1], mine, *n_bytes) < 0)
            exit(1);
        for (;;)
            pause();
    }
    ssize_t n = read(fds[0], desc, TD_XFER_MAX_DESC_BYTES);
    if (n <= 0)
        exit(1);
    *n_bytes = (size_t)n;
    close(fds[0]);
    close(fds[1]);
    return pid;
}

static td_xfer_event next_event(td_xfer *xfer)
{
    td_xfer_event event;
    struct timespec moment = {0, 50000};
    while (td_xfer_next(xfer, &event) != TD_OK)
        nanosleep(&moment, NULL);
    must(event.status, &event.err);
    return event;
}

static void give_job(td_xfer *xfer, td_xfer_link link, int which, uint64_t n_bytes)
{
    td_xfer_get_args args = {
        .tag = (uint64_t)which,
        .n_pages = JOB_PAGES,
        .n_bytes = n_bytes,
        .deadline_ns = td_now_ns() + 60 * TD_NS_PER_S,
        .pages = pages[which],
    };
    td_xfer_job job;
    td_err err;
    must(td_xfer_get(xfer, link, &args, &job, &err), &err);
}

static double draw(td_xfer_transport transport, uint64_t n_bytes, double seconds, double *get_us)
{
    unsigned char desc[TD_XFER_MAX_DESC_BYTES];
    td_xfer_link_args args = {.desc = desc, .incarnation = "source", .peer = "source"};
    td_xfer_link link;
    td_xfer_link_info info;
    td_err err;
    pid_t pid = start_source(transport, desc, &args.n_desc_bytes);
    td_xfer *xfer = open_end(transport, 0);
    must(td_xfer_link_open(xfer, &args, &link, &err), &err);
    next_event(xfer);
    give_job(xfer, link, 0, n_bytes);
    give_job(xfer, link, 1, n_bytes);
    int64_t start_ns = 0, now_ns = 0;
    double total = 0;
    for (int n = 0; n < 4 || (double)(now_ns - start_ns) < seconds * 1e9; n++) {
        td_xfer_event event = next_event(xfer);
        now_ns = td_now_ns();
        if (n == 1)
            start_ns = now_ns; /* the first two warm up */
        else if (n > 1)
            total += (double)event.n_bytes;
        give_job(xfer, link, (int)event.tag, n_bytes);
    }
    td_xfer_links(xfer, &info, 1);
    *get_us = (double)info.get_mean_ns / 1e3;
    td_xfer_destroy(xfer);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return total / (double)(now_ns - start_ns);
}

static double copy(uint64_t n_bytes, double seconds, const unsigned char *from, int crc)
{
    int64_t start_ns = td_now_ns();
    double total = 0;
    for (uint32_t i = 0; (double)(td_now_ns() - start_ns) < seconds * 1e9; i++) {
        const td_xfer_page *page = &pages[i / JOB_PAGES % 2][i % JOB_PAGES];
        if (crc)
            sink = td_crc32c(0, from + page->remote * STRIDE, n_bytes);
        else
            memcpy(pool + page->local * STRIDE, from + page->remote * STRIDE, n_bytes);
        total += (double)n_bytes;
    }
    return total / (double)(td_now_ns() - start_ns);
}

int main(int argc, char **argv)
{
    static const uint64_t sizes[] = {50432, 504320, STRIDE};
    double seconds = argc > 1 ? atof(argv[1]) : 2, shm_us, tcp_us;
    td_log_init("bench_xfer", TD_LOG_WARN, 0);
    pool = aligned_alloc(4096, (SLOTS * STRIDE + 4095) / 4096 * 4096);
    unsigned char *other = aligned_alloc(4096, (SLOTS * STRIDE + 4095) / 4096 * 4096);
    if (pool == NULL || other == NULL)
        return 1;
    for (uint64_t i = 0; i < SLOTS * STRIDE / 8; i++)
        ((uint64_t *)(void *)pool)[i] = i * 0x9e3779b97f4a7c15ULL;
    memcpy(other, pool, SLOTS * STRIDE);
    printf("%10s %8s %8s %8s %8s   GB/s, %u gets in flight\n", "bytes/get", "memcpy", "crc32c",
           "shm", "tcp", 32U);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        for (uint32_t i = 0; i < 2 * JOB_PAGES; i++) {
            uint32_t slot = i * 37 % SLOTS;
            pages[i / JOB_PAGES][i % JOB_PAGES] =
                (td_xfer_page){.remote = slot,
                               .local = i * 53 % SLOTS,
                               .generation = 1,
                               .crc32c = td_crc32c(0, other + slot * STRIDE, sizes[s])};
        }
        memcpy(pool, other, SLOTS * STRIDE); /* the sources are forked with it */
        double shm = draw(TD_XFER_SHM, sizes[s], seconds, &shm_us);
        memcpy(pool, other, SLOTS * STRIDE);
        double tcp = draw(TD_XFER_TCP, sizes[s], seconds, &tcp_us);
        printf("%10llu %8.2f %8.2f %8.2f %8.2f   mean get %.0f us, %.0f us\n",
               (unsigned long long)sizes[s], copy(sizes[s], seconds / 4, other, 0),
               copy(sizes[s], seconds / 4, other, 1), shm, tcp, shm_us, tcp_us);
    }
    free(pool);
    free(other);
    return 0;
}
