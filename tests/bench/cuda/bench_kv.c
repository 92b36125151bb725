/* bench_kv - KV pages drawn by one process out of another's memory, through td_xfer: GB/s of ranges
 * of scattered pages, CRC32C of every range and the bytes read back checked, beside plain copies of
 * the same ranges in the same run: within the reader's memory or, where the source is on another
 * GPU, from there. Every path that there is: direct, ring, in-place.
 *
 *     bench_kv cpu|cuda [GPU of the source [GPU of the reader [seconds for each figure]]]
 *
 * The source is another process of this program. */
#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/base/log.h"
#include "common/transfer/stats.h"
#include "model/rank.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 256U
#define STRIDE 3174912ULL /* a page of the full model with its draft layer, fp8 */
#define JOB_PAGES 64U

typedef struct {
    td_rank rank; /* device, operations and slab only */
    td_xfer *xfer;
    td_device *other; /* the source's GPU, when that is another one */
    void *from;       /* [SLOTS, STRIDE] there, or the reader's own pages */
} end;

static unsigned char page_bytes[STRIDE], back[STRIDE];
static td_xfer_page pages[2][JOB_PAGES]; /* two jobs under way at any time */

static void must(td_status st, const td_err *err, const char *what)
{
    if (st == TD_OK)
        return;
    fprintf(stderr, "bench_kv: %s: %s\n", what, err != NULL ? err->text : td_status_text(st));
    exit(1);
}

/* What stands in a slot of the source; any process can tell. */
static void make_page(uint32_t slot)
{
    uint64_t *words = (uint64_t *)(void *)page_bytes;
    for (uint64_t i = 0; i < STRIDE / 8; i++)
        words[i] = ((uint64_t)slot << 40 | i) * 0x9e3779b97f4a7c15ULL;
}

static void open_memory(end *e, const char *backend, const char *gpu, int is_source)
{
    td_backend_options options = {.kind = strcmp(backend, "cuda") == 0 ? TD_BACKEND_CUDA
                                                                       : TD_BACKEND_CPU,
                                  .n_threads = 1,
                                  .index = (uint32_t)strtoul(gpu, NULL, 10)};
    td_kv_layout layout = {.page_stride = STRIDE};
    td_err err;
    must(td_backend_open(&options, &e->rank.device, &e->rank.ops, &err), &err, "device");
    must(td_device_alloc(e->rank.device, SLOTS * STRIDE, &e->rank.kv, &err), &err, "memory");
    must(td_kv_slab_init_remote(&e->rank.slab, &layout, SLOTS, e->rank.kv, &err), &err, "slab");
    td_stream *stream = td_device_stream(e->rank.device);
    for (uint32_t slot = 0; is_source && slot < SLOTS; slot++) {
        make_page(slot);
        must(td_stream_write(stream, e->rank.slab.base + slot * STRIDE, page_bytes, STRIDE), NULL,
             "writing");
        must(td_stream_sync(stream, &err), &err, "writing");
    }
}

/* Memory to copy from, on a GPU that the reader's can read. */
static void open_other(end *e, uint32_t source_gpu, uint32_t reader_gpu)
{
    uint32_t gpus[] = {source_gpu, reader_gpu};
    td_backend_options options = {.kind = TD_BACKEND_CUDA, .index = source_gpu};
    td_backend_comm_options comm = {.kind = TD_BACKEND_CUDA,
                                    .form = TD_COMM_PEER,
                                    .n_ranks = 2,
                                    .gpus = gpus,
                                    .deadline_ms = 60000};
    const td_ops *ops;
    td_comm_group *group;
    td_err err;
    must(td_backend_comm(&comm, &group, &err), &err, "reaching the other GPU");
    td_comm_group_destroy(group); /* the reach remains */
    must(td_backend_open(&options, &e->other, &ops, &err), &err, "the other device");
    must(td_device_alloc(e->other, SLOTS * STRIDE, &e->from, &err), &err, "its memory");
    must(td_device_bind(e->rank.device, &err), &err, "device");
}

static td_status open_xfer(end *e, td_xfer_path path, int is_source, td_err *err)
{
    td_xfer_region region = {e->rank.slab.base, STRIDE, SLOTS, is_source};
    td_xfer_config config;
    td_xfer_config_init(&config);
    config.transport = TD_XFER_SHM;
    config.incarnation = is_source ? "source" : "reader";
    config.regions = &region;
    config.n_regions = 1;
    config.device = e->rank.device;
    config.device_regions = 1;
    config.path = path;
    config.crc = td_rank_page_crc;
    config.crc_arg = &e->rank;
    td_status st = td_xfer_create(&config, &e->xfer, err);
    for (uint32_t slot = 0; st == TD_OK && slot < SLOTS; slot++)
        td_xfer_publish(e->xfer, 0, slot, 1, STRIDE);
    return st;
}

/* Its descriptor goes out through stdout; it serves until stdin ends. Its path is the best there
 * is, what the reader's is decides. */
static int serve(const char *backend, const char *gpu, td_xfer_path path)
{
    end e = {0};
    td_err err;
    size_t n_bytes;
    char end_of_file;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_memory(&e, backend, gpu, 1);
    must(open_xfer(&e, path, 1, &err), &err, "source");
    const unsigned char *desc = td_xfer_descriptor(e.xfer, &n_bytes);
    if (write(1, desc, n_bytes) != (ssize_t)n_bytes)
        return 1;
    ssize_t n = read(0, &end_of_file, 1);
    td_xfer_destroy(e.xfer);
    return n == 0 ? 0 : 1;
}

static pid_t start_source(const char *backend, const char *gpu, const char *path, int *to,
                          unsigned char *desc, size_t *n_bytes)
{
    char self[PATH_MAX] = {0};
    int in[2], out[2];
    if (readlink("/proc/self/exe", self, sizeof(self) - 1) <= 0 || pipe(in) != 0 || pipe(out) != 0)
        exit(1);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[1]);
        execl(self, self, "source", backend, gpu, path, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    ssize_t n = read(out[0], desc, TD_XFER_MAX_DESC_BYTES);
    close(out[0]);
    if (n <= 0)
        exit(1);
    *n_bytes = (size_t)n;
    *to = in[1];
    return pid;
}

static td_xfer_event next_event(end *e)
{
    td_xfer_event event;
    struct timespec moment = {0, 20000};
    while (td_xfer_next(e->xfer, &event) != TD_OK)
        nanosleep(&moment, NULL);
    must(event.status, &event.err, "transfer");
    return event;
}

static void give_job(end *e, td_xfer_link link, uint64_t which, uint64_t n_bytes)
{
    td_xfer_get_args args = {.tag = which,
                             .n_pages = JOB_PAGES,
                             .n_bytes = n_bytes,
                             .deadline_ns = td_now_ns() + 60 * TD_NS_PER_S,
                             .pages = pages[which]};
    td_xfer_job job;
    td_err err;
    must(td_xfer_get(e->xfer, link, &args, &job, &err), &err, "get");
}

/* Random slots there, random slots here, no slot twice. */
static void choose_pages(uint64_t n_bytes)
{
    for (uint32_t i = 0; i < 2 * JOB_PAGES; i++) {
        td_xfer_page *page = &pages[i / JOB_PAGES][i % JOB_PAGES];
        *page = (td_xfer_page){
            .remote = i * 37 % SLOTS, .local = i * 53 % SLOTS, .generation = 1, .number = i};
        make_page(page->remote);
        page->crc32c = td_crc32c(0, page_bytes, n_bytes);
    }
}

static void check_bytes(end *e, uint64_t n_bytes)
{
    td_stream *stream = td_device_stream(e->rank.device);
    td_err err;
    for (uint32_t i = 0; i < 2 * JOB_PAGES; i++) {
        const td_xfer_page *page = &pages[i / JOB_PAGES][i % JOB_PAGES];
        make_page(page->remote);
        must(td_stream_read(stream, back, e->rank.slab.base + page->local * STRIDE, n_bytes), NULL,
             "reading back");
        must(td_stream_sync(stream, &err), &err, "reading back");
        if (memcmp(back, page_bytes, n_bytes) != 0) {
            fprintf(stderr, "bench_kv: page %u has wrong bytes\n", page->local);
            exit(1);
        }
    }
}

/* The same ranges copied, from where `from` lies: GB/s of bytes moved. */
static double copy_rate(end *e, uint64_t n_bytes, double seconds)
{
    td_stream *stream = td_device_stream(e->rank.device);
    int64_t start_ns = td_now_ns();
    double total = 0;
    td_err err;
    while ((double)(td_now_ns() - start_ns) < seconds * 1e9) {
        for (uint32_t i = 0; i < SLOTS / 2; i++)
            must(td_stream_copy(stream, e->rank.slab.base + (2 * i + 1) * STRIDE,
                                (const unsigned char *)e->from +
                                    (2ULL * (i * 37 % (SLOTS / 2))) * STRIDE,
                                n_bytes),
                 NULL, "copying");
        must(td_stream_sync(stream, &err), &err, "copying");
        total += (double)n_bytes * SLOTS / 2;
    }
    return total / (double)(td_now_ns() - start_ns);
}

typedef struct {
    double rate, get_us, job_us; /* job: one alone, from get to event */
    char path[16], transport[TD_XFER_TRANSPORT_BYTES];
} figures;

static void draw(end *e, const unsigned char *desc, size_t n_desc, uint64_t n_bytes, double seconds,
                 figures *f)
{
    td_xfer_link_args args = {
        .desc = desc, .n_desc_bytes = n_desc, .incarnation = "source", .peer = "source"};
    td_xfer_link link;
    td_xfer_link_info info;
    td_err err;
    must(td_stream_fill(td_device_stream(e->rank.device), e->rank.kv, 0, SLOTS * STRIDE), NULL,
         "filling");
    must(td_stream_sync(td_device_stream(e->rank.device), &err), &err, "filling");
    must(td_xfer_link_open(e->xfer, &args, &link, &err), &err, "link");
    td_xfer_event event = next_event(e);
    snprintf(f->transport, sizeof(f->transport), "%s", event.transport);
    snprintf(f->path, sizeof(f->path), "%s", td_xfer_kv_path(e->xfer));
    for (int i = 0; i < 5; i++) { /* the last is warm */
        give_job(e, link, 0, n_bytes);
        event = next_event(e);
        f->job_us = (double)event.elapsed_ns / 1e3;
    }
    give_job(e, link, 0, n_bytes);
    give_job(e, link, 1, n_bytes);
    int64_t start_ns = td_now_ns(), now_ns = start_ns;
    double total = 0;
    while ((double)(now_ns - start_ns) < seconds * 1e9) {
        event = next_event(e);
        now_ns = td_now_ns();
        total += (double)event.n_bytes;
        give_job(e, link, event.tag, n_bytes);
    }
    next_event(e);
    next_event(e);
    f->rate = total / (double)(now_ns - start_ns);
    td_xfer_links(e->xfer, &info, 1);
    f->get_us = (double)info.get_mean_ns / 1e3;
    check_bytes(e, n_bytes);
}

/* 0: there is no such path here. */
static int measure(end *e, const char *backend, const char *gpu, td_xfer_path path,
                   uint64_t n_bytes, double seconds)
{
    static const char *const names[] = {"auto", "ring", "direct"};
    unsigned char desc[TD_XFER_MAX_DESC_BYTES];
    size_t n_desc;
    int to, status;
    td_err err;
    figures f;
    if (open_xfer(e, path, 0, &err) != TD_OK) {
        printf("%10s: %s\n", names[path], err.text);
        return 0;
    }
    pid_t pid = start_source(backend, gpu, names[path], &to, desc, &n_desc);
    draw(e, desc, n_desc, n_bytes, seconds, &f);
    double copied = copy_rate(e, n_bytes, seconds / 4);
    printf(
        "%10s %9llu %8.2f GB/s   copy %8.2f GB/s   fraction %.3f   get %7.1f us   %u pages alone "
        "%8.1f us   %s\n",
        f.path, (unsigned long long)n_bytes, f.rate, copied, f.rate / copied, f.get_us, JOB_PAGES,
        f.job_us, f.transport);
    td_xfer_destroy(e->xfer);
    close(to);
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fprintf(stderr, "bench_kv: the source ended with %d\n", status);
    return 1;
}

int main(int argc, char **argv)
{
    static const uint64_t sizes[] = {50432, 793728, STRIDE};
    const char *backend = argc > 1 ? argv[1] : "cuda", *source_gpu = argc > 2 ? argv[2] : "0";
    end e = {0};
    td_log_init("bench_kv", TD_LOG_WARN, 0);
    if (argc == 5 && strcmp(argv[1], "source") == 0)
        return serve(argv[2], argv[3],
                     strcmp(argv[4], "ring") == 0     ? TD_XFER_RING
                     : strcmp(argv[4], "direct") == 0 ? TD_XFER_DIRECT
                                                      : TD_XFER_PATH_AUTO);
    double seconds = argc > 4 ? atof(argv[4]) : 2;
    const char *reader_gpu = argc > 3 ? argv[3] : source_gpu;
    open_memory(&e, backend, reader_gpu, 0);
    e.from = e.rank.slab.base;
    if (td_device_is_gpu(e.rank.device) && strcmp(source_gpu, reader_gpu) != 0)
        open_other(&e, (uint32_t)strtoul(source_gpu, NULL, 10),
                   (uint32_t)strtoul(reader_gpu, NULL, 10));
    printf("%s, source on %s %s; bytes and CRC32C of every page checked\n",
           td_device_name(e.rank.device), backend, source_gpu);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
        choose_pages(sizes[s]);
        for (int path = TD_XFER_PATH_AUTO; path <= TD_XFER_DIRECT; path++)
            if (path != TD_XFER_PATH_AUTO || !td_device_is_gpu(e.rank.device))
                measure(&e, backend, source_gpu, (td_xfer_path)path, sizes[s], seconds);
        fflush(stdout);
    }
    if (e.other != NULL)
        td_device_free(e.other, e.from);
    td_device_close(e.other);
    td_device_free(e.rank.device, e.rank.kv);
    td_device_close(e.rank.device);
    return 0;
}
