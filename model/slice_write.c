#include "model/slice.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 4096
#define SHARD_NAME_BYTES 80
#define MAX_THREADS 64

typedef struct { /* tensors [first, first + n) of the slice */
    size_t first, n;
} shard;

typedef struct {
    const char *dir;
    const td_slice *slice;
    td_tensor *tensors; /* [..] of the slice, side by side */
    shard *shards;      /* [n_shards] */
    size_t n_shards;
    atomic_size_t next;
    atomic_int failed;
} job;

typedef struct {
    job *job;
    pthread_t thread;
    int started;
    td_status st;
    td_err err;
} writer;

static void shard_name(const job *j, size_t i, char name[SHARD_NAME_BYTES])
{
    snprintf(name, SHARD_NAME_BYTES, "model-%05zu-of-%06zu.safetensors", i + 1, j->n_shards);
}

static td_status path_of(const char *dir, const char *name, char path[PATH_BYTES], td_err *err)
{
    return (size_t)snprintf(path, PATH_BYTES, "%s/%s", dir, name) < PATH_BYTES
               ? TD_OK
               : td_fail(err, TD_INVALID, "%s: path too long", dir);
}

static td_status cut(job *j, uint64_t shard_bytes, td_err *err)
{
    size_t n = td_slice_count(j->slice);
    uint64_t at = 0;
    j->tensors = calloc(n, sizeof(*j->tensors));
    j->shards = calloc(n, sizeof(*j->shards));
    if (j->tensors == NULL || j->shards == NULL)
        return td_fail(err, TD_NOMEM, "slice: no memory for %zu tensors", n);
    for (size_t i = 0; i < n; i++) {
        j->tensors[i] = *td_slice_at(j->slice, i);
        if (i == 0 || at + j->tensors[i].n_bytes > shard_bytes) {
            j->shards[j->n_shards++].first = i;
            at = 0;
        }
        j->shards[j->n_shards - 1].n++;
        at += j->tensors[i].n_bytes;
    }
    return TD_OK;
}

static void *work(void *arg)
{
    writer *w = arg;
    job *j = w->job;
    char name[SHARD_NAME_BYTES], path[PATH_BYTES];
    while (w->st == TD_OK && !atomic_load(&j->failed)) {
        size_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n_shards)
            break;
        shard_name(j, i, name);
        w->st = path_of(j->dir, name, path, &w->err);
        if (w->st == TD_OK)
            w->st = td_safetensors_write(path, j->tensors + j->shards[i].first, j->shards[i].n,
                                         &w->err);
    }
    if (w->st < 0)
        atomic_store(&j->failed, 1);
    return NULL;
}

static td_status write_shards(job *j, uint32_t n_threads, td_err *err)
{
    writer writers[MAX_THREADS];
    uint32_t n = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
    td_status st = TD_OK;
    memset(writers, 0, sizeof(writers));
    writers[0].job = j;
    for (uint32_t i = 1; i < n && i < j->n_shards; i++) {
        writers[i].job = j;
        writers[i].started = pthread_create(&writers[i].thread, NULL, work, &writers[i]) == 0;
    }
    work(&writers[0]); /* this thread does what the others leave */
    for (uint32_t i = 1; i < n; i++)
        if (writers[i].started)
            pthread_join(writers[i].thread, NULL);
    for (uint32_t i = 0; i < n && st == TD_OK; i++)
        if (writers[i].st < 0)
            st = td_fail(err, writers[i].st, "%s", writers[i].err.text);
    return st;
}

static int print_index(const job *j, FILE *out)
{
    char name[SHARD_NAME_BYTES];
    uint64_t total = 0;
    for (size_t i = 0; i < td_slice_count(j->slice); i++)
        total += j->tensors[i].n_bytes;
    int n = fprintf(out, "{\"metadata\": {\"total_size\": %" PRIu64 "}, \"weight_map\": {", total);
    for (size_t s = 0; s < j->n_shards && n >= 0; s++) {
        shard_name(j, s, name);
        for (size_t i = j->shards[s].first; i < j->shards[s].first + j->shards[s].n && n >= 0; i++)
            n = fprintf(out, "%s\n\"%s\": \"%s\"", i == 0 ? "" : ",", j->tensors[i].name, name);
    }
    return n < 0 ? n : fprintf(out, "\n}}\n");
}

static td_status write_index(const job *j, td_err *err)
{
    char path[PATH_BYTES];
    td_status st = path_of(j->dir, "model.safetensors.index.json", path, err);
    if (st < 0)
        return st;
    FILE *out = fopen(path, "we");
    int bad = out == NULL || print_index(j, out) < 0;
    if (out != NULL && fclose(out) != 0)
        bad = 1;
    return bad ? td_fail(err, TD_IO, "%s: %s", path, strerror(errno)) : TD_OK;
}

/* Nothing that is there is written over. */
static td_status check_folder(const char *dir, td_err *err)
{
    static const char *const taken[] = {"config.json", "model.safetensors.index.json",
                                        "model.safetensors"};
    char path[PATH_BYTES];
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return td_fail(err, TD_IO, "%s: %s", dir, strerror(errno));
    for (size_t i = 0; i < sizeof(taken) / sizeof(*taken); i++) {
        td_status st = path_of(dir, taken[i], path, err);
        if (st < 0)
            return st;
        if (access(path, F_OK) == 0)
            return td_fail(err, TD_PRECONDITION, "%s is there already", path);
    }
    return TD_OK;
}

static td_status write_config(const td_slice_spec *spec, const char *dir, td_err *err)
{
    char text[TD_SLICE_MAX_CONFIG_BYTES], path[PATH_BYTES];
    size_t n = td_slice_config_text(spec, text);
    td_status st = path_of(dir, "config.json", path, err);
    if (st < 0)
        return st;
    FILE *out = fopen(path, "we");
    int bad = out == NULL || fwrite(text, 1, n, out) != n;
    if (out != NULL && fclose(out) != 0)
        bad = 1;
    return bad ? td_fail(err, TD_IO, "%s: %s", path, strerror(errno)) : TD_OK;
}

td_status td_slice_write(const td_slice_spec *spec, const char *dir, uint64_t shard_bytes,
                         uint32_t n_threads, td_err *err)
{
    job j = {.dir = dir};
    td_slice *slice = NULL;
    td_assert(n_threads > 0);
    td_status st = td_slice_create(spec, &slice, err);
    j.slice = slice;
    if (st == TD_OK)
        st = check_folder(dir, err);
    if (st == TD_OK)
        st = cut(&j, shard_bytes, err);
    if (st == TD_OK)
        st = write_config(spec, dir, err);
    if (st == TD_OK)
        st = write_shards(&j, n_threads, err);
    if (st == TD_OK)
        st = write_index(&j, err);
    free(j.tensors);
    free(j.shards);
    td_slice_destroy(slice);
    return st;
}

td_status td_slice_write_config(const td_slice_spec *spec, const char *dir, td_err *err)
{
    td_status st = td_slice_check(spec, err);
    if (st == TD_OK)
        st = check_folder(dir, err);
    return st == TD_OK ? write_config(spec, dir, err) : st;
}
