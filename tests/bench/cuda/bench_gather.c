/* bench_gather - sparse attention's gather out of a big pool, page-major against layer-major: a
 * layer's latents lie either 3.1 MB apart, page by page, all over the pool, or page behind page in
 * the layer's own part of it. The kernel and the bytes are the same, page stride and plane differ.
 * Calls go from layer to layer, as a step does, so that no cache holds what is read. The two
 * layouts take turns; a figure is the median of its rounds. Usage: bench_gather [gpu [GB]]: the
 * pool takes that many GB (60), or four fifths of what is free. */
#include "common/base/clock.h"
#include "common/kv/layout.h"
#include "kernels/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS 61
#define HEADS 128
#define TOPK 2048
#define CONTEXT 8192 /* positions of a request */
#define PAGES_EACH (CONTEXT / TD_KV_PAGE_ROWS)
#define MAX_ROWS 128
#define ROUNDS 7

typedef struct {
    td_device *device;
    td_stream *stream;
    const td_ops *ops;
    td_kv_layout layout;
    unsigned char *pool;
    uint64_t n_pages;
    td_sparse_mla_args mla;
} bench;

static void must(td_status st, const td_err *err, const char *what)
{
    if (st == TD_OK)
        return;
    fprintf(stderr, "bench_gather: %s: %s\n", what, err != NULL ? err->text : td_status_text(st));
    exit(1);
}

static void *memory(bench *b, size_t n_bytes)
{
    void *at = NULL;
    td_err err;
    must(td_device_alloc(b->device, n_bytes, &at, &err), &err, "memory");
    return at;
}

static void *upload(bench *b, const void *host, size_t n_bytes)
{
    void *at = memory(b, n_bytes);
    td_err err;
    must(td_stream_write(b->stream, at, host, n_bytes), NULL, "writing");
    must(td_stream_sync(b->stream, &err), &err, "writing");
    return at;
}

static uint32_t random_below(uint32_t n)
{
    static uint64_t z = 88172645463325252u;
    z ^= z << 13;
    z ^= z >> 7;
    z ^= z << 17;
    return (uint32_t)((z >> 32) * n >> 32);
}

/* Requests own pages from everywhere; each row selects positions of its request at random, sorted.
 */
static void make_rows(bench *b)
{
    int32_t *seq = malloc(MAX_ROWS * sizeof(*seq)), *len = malloc(MAX_ROWS * sizeof(*len));
    int32_t *table = malloc(sizeof(*table) * MAX_ROWS * PAGES_EACH);
    int32_t *selected = malloc(sizeof(*selected) * MAX_ROWS * TOPK);
    if (seq == NULL || len == NULL || table == NULL || selected == NULL)
        exit(1);
    for (int32_t t = 0; t < MAX_ROWS; t++) {
        seq[t] = t;
        len[t] = CONTEXT;
        for (int p = 0; p < PAGES_EACH; p++)
            table[t * PAGES_EACH + p] = (int32_t)random_below((uint32_t)b->n_pages);
        for (int32_t i = 0, left = TOPK; i < CONTEXT && left > 0; i++)
            if (random_below((uint32_t)(CONTEXT - i)) < (uint32_t)left)
                selected[t * TOPK + (TOPK - left--)] = i;
    }
    b->mla = (td_sparse_mla_args){
        .q = memory(b, (size_t)MAX_ROWS * HEADS * 576 * 2),
        .selected = upload(b, selected, sizeof(*selected) * MAX_ROWS * TOPK),
        .rows = {upload(b, seq, MAX_ROWS * sizeof(*seq)), upload(b, len, MAX_ROWS * sizeof(*len)),
                 upload(b, table, sizeof(*table) * MAX_ROWS * PAGES_EACH), PAGES_EACH},
        .u = memory(b, (size_t)MAX_ROWS * HEADS * 512 * 2),
        .H = HEADS,
        .C = 512,
        .R = 64,
        .k = TOPK,
        .scale = 0.07f,
        .act = TD_BF16,
    };
    free(seq);
    free(len);
    free(table);
    free(selected);
}

static td_kv_view view(const bench *b, uint32_t layer, int layer_major)
{
    const td_kv_plane *plane = td_kv_layout_plane(&b->layout, layer, TD_KV_LATENT);
    if (!layer_major)
        return (td_kv_view){b->pool + plane->offset, b->layout.page_stride, TD_KV_PAGE_ROWS,
                            TD_KV_FP8};
    return (td_kv_view){b->pool + layer * b->n_pages * plane->n_bytes, plane->n_bytes,
                        TD_KV_PAGE_ROWS, TD_KV_FP8};
}

/* Microseconds a layer. */
static double one_round(bench *b, int layer_major)
{
    td_err err;
    int64_t start_ns = td_now_ns();
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        b->mla.kv = view(b, layer, layer_major);
        must(b->ops->sparse_mla(&b->mla, b->stream), NULL, "sparse_mla");
    }
    must(td_stream_sync(b->stream, &err), &err, "sparse_mla");
    return (double)(td_now_ns() - start_ns) / 1e3 / LAYERS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(bench *b, int T)
{
    double us[2][ROUNDS];
    b->mla.T = T;
    one_round(b, 0);
    one_round(b, 1);
    for (int r = 0; r < ROUNDS; r++)
        for (int k = 0; k < 2; k++)
            us[k][r] = one_round(b, k);
    qsort(us[0], ROUNDS, sizeof(double), by_value);
    qsort(us[1], ROUNDS, sizeof(double), by_value);
    double page = us[0][ROUNDS / 2], layer = us[1][ROUNDS / 2], bytes = (double)T * TOPK * 656;
    printf("T %4d: page-major %8.1f us a layer (%6.0f GB/s)   layer-major %8.1f us (%6.0f GB/s)   "
           "page/layer %.3f\n",
           T, page, bytes / page / 1e3, layer, bytes / layer / 1e3, page / layer);
}

int main(int argc, char **argv)
{
    static const int rows[] = {1, 8, 32, 128};
    td_backend_options options = {.kind = TD_BACKEND_CUDA};
    bench b = {0};
    td_err err;
    double want = argc > 2 ? atof(argv[2]) : 60;
    if (argc > 1)
        options.index = (uint32_t)strtoul(argv[1], NULL, 10);
    must(td_backend_open(&options, &b.device, &b.ops, &err), &err, "device");
    must(td_kv_layout_init(&b.layout, TD_KV_FP8, LAYERS, 1, 512, 64, 128, &err), &err, "layout");
    b.stream = td_device_stream(b.device);
    uint64_t room = td_device_free_bytes(b.device) / 5 * 4;
    if (want * 1e9 < (double)room)
        room = (uint64_t)(want * 1e9);
    b.n_pages = room / b.layout.page_stride;
    b.pool = memory(&b, b.n_pages * b.layout.page_stride);
    /* Codes, scales and rotated dims that are ordinary numbers. */
    must(td_stream_fill(b.stream, b.pool, 0x38, b.n_pages * b.layout.page_stride), NULL, "filling");
    make_rows(&b);
    printf("%s: a pool of %.1f GB, %llu pages of %llu bytes; %d of %d positions for each row\n",
           td_device_name(b.device), (double)(b.n_pages * b.layout.page_stride) / 1e9,
           (unsigned long long)b.n_pages, (unsigned long long)b.layout.page_stride, TOPK, CONTEXT);
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        measure(&b, rows[i]);
    td_device_close(b.device);
    return 0;
}
