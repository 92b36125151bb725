/* bench_load - weights from files to the device, beside what bounds it, measured in the same run: a
 * plain read of the same files by as many threads (4 MiB at a time, each thread into one buffer of
 * its own), and a copy from page-locked memory. Warm: the files were read just before, and stand in
 * the page cache if it holds them. Cold: the kernel was asked to forget them (posix_fadvise), which
 * not every file system does: a cold read that is as fast as a warm one was none. Last, the same
 * weights made as they are loaded (model/slice.h). */
#include "common/base/clock.h"
#include "common/base/conf.h"
#include "kernels/backend.h"
#include "model/slice.h"
#include "model/weights.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK ((size_t)4 << 20)
#define COPY_BYTES ((size_t)256 << 20)
#define MAX_FILES 512
#define MAX_THREADS 64
#define MAX_ROUNDS 16

typedef struct {
    char *dir, *slice;
    int backend;
    uint32_t gpu, threads, rounds;
    uint64_t buffer;
    bool cold;
} options;

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(options, name, member, type, def, min, max, help)
static const td_conf_field fields[] = {
    F("dir", dir, STR, NULL, NULL, NULL, "the checkpoint; a slice is written there when missing"),
    F("slice", slice, STR, "layers=2,dense=1,drafts=0", NULL, NULL,
      "what is written, and made (model/slice.h); the default takes 16 GB"),
    F("backend", backend, ENUM, "cuda", "cpu|cuda", NULL, "whose memory is filled"),
    F("gpu", gpu, U32, "0", "0", "63", "which of the visible GPUs"),
    F("threads", threads, U32, "0", "0", "64", "readers; 0: CPUs but two, at most 16"),
    F("buffer", buffer, BYTES, "16MiB", "64KiB", "1GiB", "page-locked memory, five times"),
    F("rounds", rounds, U32, "3", "1", "16", "warm rounds; the median counts"),
    F("cold", cold, BOOL, "true", NULL, NULL, "also one round with the files out of the cache"),
};
static const td_conf_spec spec = {
    .program = "bench_load",
    .about = "times loading weights from files beside a plain read and a plain copy",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};

typedef struct {
    options o;
    uint32_t threads;
    td_device *device;
    const td_ops *ops;
    char *files[MAX_FILES]; /* [n_files] paths */
    uint64_t sizes[MAX_FILES];
    size_t n_files;
    double copy_rate;
} bench;

/* ---- the files ---- */

static td_status list_files(bench *b, td_err *err)
{
    DIR *dir = opendir(b->o.dir);
    struct dirent *entry;
    struct stat info;
    char path[4096];
    if (dir == NULL)
        return td_fail(err, TD_IO, "%s: %s", b->o.dir, strerror(errno));
    while ((entry = readdir(dir)) != NULL && b->n_files < MAX_FILES) {
        const char *end = strstr(entry->d_name, ".safetensors");
        if (end == NULL || strcmp(end, ".safetensors") != 0)
            continue;
        snprintf(path, sizeof(path), "%.2000s/%s", b->o.dir, entry->d_name);
        char *copy = stat(path, &info) == 0 ? strdup(path) : NULL;
        if (copy == NULL)
            break;
        b->sizes[b->n_files] = (uint64_t)info.st_size;
        b->files[b->n_files++] = copy;
    }
    closedir(dir);
    return b->n_files > 0 ? TD_OK : td_fail(err, TD_IO, "%s: no *.safetensors", b->o.dir);
}

static uint64_t file_bytes(const bench *b)
{
    uint64_t n = 0;
    for (size_t i = 0; i < b->n_files; i++)
        n += b->sizes[i];
    return n;
}

static td_status write_slice(const bench *b, td_err *err)
{
    char path[4096];
    td_slice_spec slice;
    snprintf(path, sizeof(path), "%.4000s/config.json", b->o.dir);
    if (access(path, F_OK) == 0)
        return TD_OK;
    int64_t start = td_now_ns();
    td_status st = td_slice_parse(b->o.slice, &slice, err);
    if (st == TD_OK)
        st = td_slice_write(&slice, b->o.dir, (uint64_t)1 << 30, b->threads, err);
    printf("%s written in %.1f s\n", b->o.dir, (double)(td_now_ns() - start) * 1e-9);
    return st;
}

static void forget(const bench *b)
{
    for (size_t i = 0; i < b->n_files; i++) {
        int fd = open(b->files[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        fdatasync(fd); /* dirty pages are not forgotten */
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

/* ---- a plain read ---- */

typedef struct {
    const bench *b;
    const int *fds;
    atomic_uint_fast64_t next; /* chunk, over all files */
    atomic_int bad;
} reading;

static void *read_chunks(void *arg)
{
    reading *r = arg;
    unsigned char *buffer = malloc(CHUNK);
    uint64_t mine;
    while (buffer != NULL && (mine = atomic_fetch_add(&r->next, 1), 1)) {
        size_t i = 0;
        while (i < r->b->n_files && mine * CHUNK >= (r->b->sizes[i] + CHUNK - 1) / CHUNK * CHUNK)
            mine -= (r->b->sizes[i++] + CHUNK - 1) / CHUNK;
        if (i == r->b->n_files)
            break;
        uint64_t at = mine * CHUNK, left = r->b->sizes[i] - at;
        uint64_t want = left < CHUNK ? left : CHUNK;
        for (uint64_t got = 0; got < want;) {
            ssize_t n = pread(r->fds[i], buffer + got, want - got, (off_t)(at + got));
            if (n <= 0) {
                atomic_store(&r->bad, 1);
                break;
            }
            got += (uint64_t)n;
        }
    }
    if (buffer == NULL)
        atomic_store(&r->bad, 1);
    free(buffer);
    return NULL;
}

static td_status plain_read(const bench *b, double *rate, td_err *err)
{
    int fds[MAX_FILES];
    pthread_t threads[MAX_THREADS];
    uint32_t n = 0;
    reading r = {.b = b, .fds = fds};
    for (size_t i = 0; i < b->n_files; i++) {
        fds[i] = open(b->files[i], O_RDONLY | O_CLOEXEC);
        if (fds[i] < 0)
            atomic_store(&r.bad, 1);
    }
    int64_t start = td_now_ns();
    while (n < b->threads && pthread_create(&threads[n], NULL, read_chunks, &r) == 0)
        n++;
    for (uint32_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    *rate = (double)file_bytes(b) / ((double)(td_now_ns() - start) * 1e-9);
    for (size_t i = 0; i < b->n_files; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return atomic_load(&r.bad) == 0 && n == b->threads ? TD_OK
                                                       : td_fail(err, TD_IO, "plain read failed");
}

/* ---- a plain copy ---- */

static td_status plain_copy(const bench *b, double *best, td_err *err)
{
    void *host = NULL, *dev = NULL;
    td_stream *stream = td_device_stream(b->device);
    td_status st = td_device_alloc_host(b->device, COPY_BYTES, &host, err);
    if (st == TD_OK)
        st = td_device_alloc(b->device, COPY_BYTES, &dev, err);
    for (int i = 0; i < 4 && st == TD_OK; i++) {
        int64_t start = td_now_ns();
        for (int n = 0; n < 8 && st == TD_OK; n++)
            st = td_stream_write(stream, dev, host, COPY_BYTES);
        if (st == TD_OK)
            st = td_stream_sync(stream, err);
        double rate = 8.0 * COPY_BYTES / ((double)(td_now_ns() - start) * 1e-9);
        *best = rate > *best ? rate : *best;
    }
    td_device_free(b->device, dev);
    td_device_free_host(b->device, host);
    return st;
}

/* ---- both, neither waiting for the other: what the host's memory gives ---- */

typedef struct {
    const bench *b;
    atomic_int stop;
    double rate; /* of the slowest read */
    td_status st;
    td_err err;
} reader;

static void *read_on(void *arg)
{
    reader *r = arg;
    while (r->st == TD_OK && atomic_load(&r->stop) == 0) {
        double rate = 0;
        r->st = plain_read(r->b, &rate, &r->err);
        r->rate = r->rate == 0 || rate < r->rate ? rate : r->rate;
    }
    return NULL;
}

static td_status both(const bench *b, td_err *err)
{
    pthread_t thread;
    reader r = {.b = b};
    double copied = 0;
    if (pthread_create(&thread, NULL, read_on, &r) != 0)
        return td_fail(err, TD_NOMEM, "no thread");
    td_status st = plain_copy(b, &copied, err);
    atomic_store(&r.stop, 1);
    pthread_join(thread, NULL);
    if (st == TD_OK && r.st < 0)
        st = td_fail(err, r.st, "%s", r.err.text);
    if (st == TD_OK)
        printf("both at once: read %.2f GB/s, copy %.2f GB/s\n", r.rate * 1e-9, copied * 1e-9);
    return st;
}

/* ---- loading ---- */

/* The bytes of the tensors that loading reads: not the draft layer's copies of embedding and head.
 */
static uint64_t tensor_bytes(const td_checkpoint *ckpt)
{
    uint64_t n = 0;
    for (size_t i = 0; i < td_checkpoint_count(ckpt); i++) {
        const td_tensor *t = td_checkpoint_at(ckpt, i);
        int copy = strncmp(t->name, "model.layers.", 13) == 0 &&
                   (strstr(t->name, ".embed_tokens.") != NULL ||
                    strstr(t->name, ".shared_head.head.") != NULL);
        n += copy ? 0 : t->n_bytes;
    }
    return n;
}

static td_status load(const bench *b, const char *model, double *rate, td_err *err)
{
    td_model_config config;
    td_checkpoint *ckpt = NULL;
    td_weights *w = NULL;
    td_weights_options o = {
        .n_ranks = 1, .load_threads = b->threads, .load_buffer_bytes = b->o.buffer};
    td_status st = td_model_config_load(model, &config, err);
    if (st == TD_OK)
        st = td_checkpoint_open(model, &ckpt, err);
    int64_t start = td_now_ns();
    if (st == TD_OK)
        st = td_weights_load(ckpt, &config, &o, b->device, &w, err);
    if (st == TD_OK)
        *rate = (double)tensor_bytes(ckpt) / ((double)(td_now_ns() - start) * 1e-9);
    td_weights_destroy(w);
    td_checkpoint_close(ckpt);
    return st;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Reads and loads in turn; medians. */
static td_status compare(const bench *b, int cold, uint32_t n_rounds, td_err *err)
{
    double reads[MAX_ROUNDS], loads[MAX_ROUNDS];
    td_status st = TD_OK;
    for (uint32_t i = 0; i < n_rounds && st == TD_OK; i++) {
        if (cold)
            forget(b);
        st = plain_read(b, &reads[i], err);
        if (cold)
            forget(b);
        if (st == TD_OK)
            st = load(b, b->o.dir, &loads[i], err);
    }
    if (st < 0)
        return st;
    qsort(reads, n_rounds, sizeof(*reads), by_size);
    qsort(loads, n_rounds, sizeof(*loads), by_size);
    double read = reads[n_rounds / 2], got = loads[n_rounds / 2];
    double bound = read < b->copy_rate ? read : b->copy_rate;
    printf("%s: read %.2f GB/s, load %.2f GB/s: %.2f of the slower of read and copy\n",
           cold ? "cold" : "warm", read * 1e-9, got * 1e-9, got / bound);
    fflush(stdout);
    return TD_OK;
}

static td_status run(bench *b, td_err *err)
{
    char made[512];
    double rate = 0;
    bench one = {.threads = 1, .n_files = 1}; /* the first file, which stands in the cache */
    td_backend_options backend = {.kind = b->o.backend == 0 ? TD_BACKEND_CPU : TD_BACKEND_CUDA,
                                  .n_threads = 1,
                                  .index = b->o.gpu};
    b->threads = b->o.threads > 0 ? b->o.threads : td_weights_load_threads(1);
    td_status st = td_backend_open(&backend, &b->device, &b->ops, err);
    if (st == TD_OK)
        st = write_slice(b, err);
    if (st == TD_OK)
        st = list_files(b, err);
    if (st == TD_OK)
        st = plain_copy(b, &b->copy_rate, err);
    if (st < 0)
        return st;
    printf("%s; %s: %.2f GB in %zu files; %u readers, 5 buffers of %.2f MiB\n"
           "copy from page-locked memory %.2f GB/s\n",
           td_device_name(b->device), b->o.dir, (double)file_bytes(b) * 1e-9, b->n_files,
           b->threads, (double)b->o.buffer / 1048576.0, b->copy_rate * 1e-9);
    fflush(stdout);
    st = plain_read(b, &rate, err); /* makes it warm */
    one.files[0] = b->files[0];
    one.sizes[0] = b->sizes[0];
    if (st == TD_OK)
        st = plain_read(&one, &rate, err);
    if (st == TD_OK)
        printf("one thread reads %.2f GB/s\n", rate * 1e-9);
    if (st == TD_OK)
        st = both(b, err);
    if (st == TD_OK)
        st = compare(b, 0, b->o.rounds, err);
    if (st == TD_OK && b->o.cold)
        st = compare(b, 1, 1, err);
    snprintf(made, sizeof(made), TD_SLICE_PREFIX "%s", b->o.slice);
    if (st == TD_OK)
        st = load(b, made, &rate, err);
    if (st == TD_OK)
        printf("made: %s: load %.2f GB/s\n", made, rate * 1e-9);
    return st;
}

int main(int argc, char **argv)
{
    static bench b;
    td_err err = {0};
    td_status st = td_conf_load(&spec, argc, argv, &b.o, &err);
    if (st == TD_EMPTY)
        return 0;
    if (st == TD_OK)
        st = run(&b, &err);
    if (st < 0)
        fprintf(stderr, "bench_load: %s\n", err.text);
    for (size_t i = 0; i < b.n_files; i++)
        free(b.files[i]);
    td_device_close(b.device);
    td_conf_free(&spec, &b.o);
    return st == TD_OK ? 0 : 1;
}
