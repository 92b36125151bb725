/* bench_cuda - the CUDA operations in V3.2's shapes, beside the limit of the shape (bytes at the
 * copy rate of the same run, multiply-adds at the nominal tensor rate of an H100 or H200 SXM: 1979
 * TFLOP/s e4m3, 989.5 bf16). Random data; weights rotate through more than the caches hold. A row
 * is the median of 7 rounds of calls one behind the other; calls below some 5 us are bound by
 * launches. Usage: bench_cuda [gpu [gemm | moe | attention | few | bf16]] */
#include "common/base/clock.h"
#include "kernels/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)64 << 20)
#define ROTATE_BYTES ((size_t)256 << 20)
#define N_ROUNDS 7
#define FP8_RATE 1979e12
#define BF16_RATE 989.5e12

typedef struct {
    td_device *device;
    td_stream *stream;
    const td_ops *ops;
    void *random; /* BLOCK_BYTES of e4m3 codes that are finite, as bf16 small numbers */
    double copy_rate;
} gpu;

static void must(td_status st, const td_err *err, const char *what)
{
    if (st == TD_OK)
        return;
    fprintf(stderr, "bench_cuda: %s: %s\n", what, err != NULL ? err->text : td_status_text(st));
    exit(1);
}

static void finish(gpu *g)
{
    td_err err;
    must(td_stream_sync(g->stream, &err), &err, "waiting");
}

static void *device_memory(gpu *g, size_t n_bytes)
{
    void *p = NULL;
    td_err err;
    must(td_device_alloc(g->device, n_bytes, &p, &err), &err, "memory");
    return p;
}

/* Random bytes of which every one is an ordinary e4m3 and every pair a bf16 between 2^-3 and 2. */
static void make_random(gpu *g)
{
    uint8_t *host = malloc(BLOCK_BYTES);
    uint64_t z = 88172645463325252u;
    td_err err;
    if (host == NULL)
        exit(1);
    for (size_t i = 0; i < BLOCK_BYTES; i++) {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        host[i] = i % 2 ? (uint8_t)(0x3e | (z >> 20 & 0x81)) : (uint8_t)(z >> 30 & 0xbf);
    }
    g->random = device_memory(g, BLOCK_BYTES);
    must(td_stream_write(g->stream, g->random, host, BLOCK_BYTES), NULL, "writing");
    must(td_stream_sync(g->stream, &err), &err, "writing");
    free(host);
}

static void *random_memory(gpu *g, size_t n_bytes)
{
    unsigned char *p = device_memory(g, n_bytes);
    for (size_t at = 0; at < n_bytes; at += BLOCK_BYTES) {
        size_t n = n_bytes - at < BLOCK_BYTES ? n_bytes - at : BLOCK_BYTES;
        must(td_stream_copy(g->stream, p + at, g->random, n), NULL, "copying");
    }
    return p;
}

static void *host_memory(gpu *g, const void *host, size_t n_bytes)
{
    void *p = device_memory(g, n_bytes);
    must(td_stream_write(g->stream, p, host, n_bytes), NULL, "writing");
    finish(g);
    return p;
}

static float *scale_memory(gpu *g, size_t n)
{
    float *host = malloc(n * sizeof(*host));
    if (host == NULL)
        exit(1);
    for (size_t i = 0; i < n; i++)
        host[i] = 0.001f + 1e-6f * (float)(i % 1000);
    float *p = host_memory(g, host, n * sizeof(*host));
    free(host);
    return p;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Seconds of call(arg, i), i counting on. */
static double median_time(gpu *g, void (*call)(gpu *g, void *arg, int i), void *arg)
{
    double rounds[N_ROUNDS];
    int n = 1, i = 0;
    call(g, arg, i++); /* warm: scratch grows */
    finish(g);
    for (int r = -1; r < N_ROUNDS; r++) {
        int64_t start = td_now_ns();
        for (int k = 0; k < n; k++)
            call(g, arg, i++);
        finish(g);
        double s = (double)(td_now_ns() - start) * 1e-9;
        if (r >= 0)
            rounds[r] = s / n;
        else
            n = s > 0.02 ? 1 : (int)fmin(200.0, 0.02 / s) + 1;
    }
    qsort(rounds, N_ROUNDS, sizeof(*rounds), by_size);
    return rounds[N_ROUNDS / 2];
}

static void row(gpu *g, const char *what, double s, double flop, double rate, double bytes)
{
    const double compute = flop / rate, memory = bytes / g->copy_rate;
    const double limit = compute > memory ? compute : memory;
    printf("%-44s %10.1f us  limit %8.1f us (%s)  %5.1f%%  %7.1f TFLOP/s %7.0f GB/s\n", what,
           s * 1e6, limit * 1e6, compute > memory ? "tensor" : "memory", 100 * limit / s,
           flop / s * 1e-12, bytes / s * 1e-9);
    fflush(stdout);
}

/* ---- copy ---- */

static void call_copy(gpu *g, void *arg, int i)
{
    unsigned char *p = arg;
    (void)i;
    must(td_stream_copy(g->stream, p, p + ((size_t)1 << 30), (size_t)1 << 30), NULL, "copy");
}

static void measure_copy(gpu *g)
{
    void *p = random_memory(g, (size_t)2 << 30);
    double s = median_time(g, call_copy, p);
    g->copy_rate = 2.0 * (double)((size_t)1 << 30) / s;
    printf("copy of 1 GiB: %.0f GB/s read and written\n", g->copy_rate * 1e-9);
    td_device_free(g->device, p);
}

/* ---- gemm ---- */

typedef struct {
    td_gemm_args a;
    unsigned char *w;
    int n_copies;
} gemm_job;

static void call_gemm(gpu *g, void *arg, int i)
{
    gemm_job *j = arg;
    size_t bytes = (size_t)j->a.N * (size_t)j->a.K * td_dtype_bytes(j->a.dtype);
    j->a.w = j->w + (size_t)(i % j->n_copies) * bytes;
    must(g->ops->gemm(&j->a, g->stream), NULL, "gemm");
}

static void measure_gemm(gpu *g, td_dtype dtype, int M, int N, int K)
{
    const size_t es = td_dtype_bytes(dtype), w = (size_t)N * (size_t)K * es;
    const size_t x = (size_t)M * (size_t)K * es;
    gemm_job j = {.a = {.M = M, .N = N, .K = K, .x_stride = K, .y_stride = N}};
    char what[80];
    j.a.dtype = dtype;
    j.a.y_dtype = TD_BF16;
    j.n_copies = (int)(ROTATE_BYTES / w) + 1;
    j.w = random_memory(g, w * (size_t)j.n_copies);
    j.a.x = random_memory(g, x);
    j.a.xs = scale_memory(g, (size_t)M * (size_t)td_ceil_div(K, 128));
    j.a.ws = scale_memory(g, (size_t)td_ceil_div(N, 128) * (size_t)td_ceil_div(K, 128));
    j.a.y = device_memory(g, (size_t)M * (size_t)N * 2);
    snprintf(what, sizeof(what), "gemm %s %dx%d M %d", dtype == TD_E4M3 ? "e4m3" : "bf16", N, K, M);
    double s = median_time(g, call_gemm, &j);
    row(g, what, s, 2.0 * M * N * K, dtype == TD_E4M3 ? FP8_RATE : BF16_RATE,
        (double)w + (double)x + 2.0 * M * N);
    td_device_free(g->device, j.w);
    td_device_free(g->device, (void *)(uintptr_t)j.a.x);
    td_device_free(g->device, (void *)(uintptr_t)j.a.xs);
    td_device_free(g->device, (void *)(uintptr_t)j.a.ws);
    td_device_free(g->device, j.a.y);
}

/* ---- head_gemm: 128 heads, as attention has it ---- */

#define HEADS 128

typedef struct {
    td_head_gemm_args a;
    unsigned char *w;
    int n_copies;
} heads_job;

static void call_heads(gpu *g, void *arg, int i)
{
    heads_job *j = arg;
    j->a.w = j->w + (size_t)(i % j->n_copies) * HEADS * (size_t)j->a.N * (size_t)j->a.K * 2;
    must(g->ops->head_gemm(&j->a, g->stream), NULL, "head_gemm");
}

static void measure_heads(gpu *g, int T, int N, int K)
{
    const size_t w = (size_t)HEADS * (size_t)N * (size_t)K * 2;
    const size_t x = (size_t)HEADS * (size_t)T * (size_t)K * 2;
    const size_t y = (size_t)HEADS * (size_t)T * (size_t)N * 2;
    heads_job j = {.a = {.T = T, .H = HEADS, .N = N, .K = K, .act = TD_BF16}};
    char what[80];
    j.a.x_head = K;
    j.a.x_row = (int64_t)HEADS * K;
    j.a.y_head = N;
    j.a.y_row = (int64_t)HEADS * N;
    j.n_copies = (int)(ROTATE_BYTES / w) + 1;
    j.w = random_memory(g, w * (size_t)j.n_copies);
    j.a.x = random_memory(g, x);
    j.a.y = device_memory(g, y);
    snprintf(what, sizeof(what), "head_gemm bf16 %d of %dx%d T %d", HEADS, N, K, T);
    row(g, what, median_time(g, call_heads, &j), 2.0 * HEADS * T * N * K, BF16_RATE,
        (double)w + (double)x + (double)y);
    td_device_free(g->device, j.w);
    td_device_free(g->device, (void *)(uintptr_t)j.a.x);
    td_device_free(g->device, j.a.y);
}

static void measure_bf16(gpu *g)
{
    static const int sizes[][2] = {/* N, K */
                                   {64, 7168},
                                   {256, 7168},
                                   {4096, 7168},
                                   {7168, 14336}};
    static const int Ms[] = {1, 8, 16, 32, 64, 128, 256, 1024, 4096};
    for (size_t m = 0; m < sizeof(Ms) / sizeof(*Ms); m++) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
            measure_gemm(g, TD_BF16, Ms[m], sizes[i][0], sizes[i][1]);
        measure_heads(g, Ms[m], 512, 128);
        measure_heads(g, Ms[m], 128, 512);
    }
}

/* ---- moe_experts: whole experts, and a rank's share of TP8 ---- */

#define EXPERTS 256
#define HIDDEN 7168
#define TOP_K 8

static void call_moe(gpu *g, void *arg, int i)
{
    (void)i;
    must(g->ops->moe_experts(arg, g->stream), NULL, "moe_experts");
}

static int32_t *random_ids(gpu *g, int T)
{
    const size_t n = (size_t)T * TOP_K;
    int32_t *host = malloc(n * sizeof(*host));
    uint64_t z = 1234567;
    if (host == NULL)
        exit(1);
    for (size_t i = 0; i < n; i++) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        host[i] = (int32_t)(i % TOP_K * (EXPERTS / TOP_K) + (z >> 33) % (EXPERTS / TOP_K));
    }
    int32_t *p = host_memory(g, host, n * sizeof(*host));
    free(host);
    return p;
}

static void measure_moe(gpu *g, int width, int first)
{
    const size_t matrix = (size_t)EXPERTS * (size_t)width * HIDDEN;
    const size_t n_scales = (size_t)EXPERTS * (size_t)(width / 128) * (HIDDEN / 128);
    td_moe_experts_args a = {.D = HIDDEN, .I = width, .K = TOP_K, .expert_hi = EXPERTS, .ue8m0 = 1};
    a.dtype = TD_E4M3;
    a.gate = random_memory(g, matrix);
    a.up = random_memory(g, matrix);
    a.down = random_memory(g, matrix);
    a.gate_s = a.up_s = a.down_s = scale_memory(g, n_scales);
    for (int T = first; T <= 4096; T *= 4) {
        char what[80];
        double touched = EXPERTS * (1 - pow(1 - (double)TOP_K / EXPERTS, T));
        a.T = T;
        a.x = random_memory(g, (size_t)T * HIDDEN);
        a.xs = scale_memory(g, (size_t)T * (HIDDEN / 128));
        a.ids = random_ids(g, T);
        a.weights = scale_memory(g, (size_t)T * TOP_K);
        a.y = device_memory(g, (size_t)T * HIDDEN * 4);
        snprintf(what, sizeof(what), "moe_experts E 256 I %d D 7168 top-8 T %d", width, T);
        row(g, what, median_time(g, call_moe, &a), 6.0 * TOP_K * T * width * HIDDEN, FP8_RATE,
            touched * 3 * width * HIDDEN + T * (7168.0 + 8 * 2 * 256 + 2 * 7168));
        td_device_free(g->device, (void *)(uintptr_t)a.x);
        td_device_free(g->device, (void *)(uintptr_t)a.xs);
        td_device_free(g->device, (void *)(uintptr_t)a.ids);
        td_device_free(g->device, (void *)(uintptr_t)a.weights);
        td_device_free(g->device, a.y);
    }
    td_device_free(g->device, (void *)(uintptr_t)a.gate);
    td_device_free(g->device, (void *)(uintptr_t)a.up);
    td_device_free(g->device, (void *)(uintptr_t)a.down);
    td_device_free(g->device, (void *)(uintptr_t)a.gate_s);
}

/* ---- attention: T rows of one request that see `len` positions each ---- */

typedef struct {
    td_sparse_mla_args mla;
    td_index_logits_args index;
    td_topk_args topk;
} attention;

static void call_mla(gpu *g, void *arg, int i)
{
    (void)i;
    must(g->ops->sparse_mla(&((attention *)arg)->mla, g->stream), NULL, "sparse_mla");
}

static void call_index(gpu *g, void *arg, int i)
{
    (void)i;
    must(g->ops->index_logits(&((attention *)arg)->index, g->stream), NULL, "index_logits");
}

static void call_topk(gpu *g, void *arg, int i)
{
    (void)i;
    must(g->ops->topk(&((attention *)arg)->topk, g->stream), NULL, "topk");
}

#define TOPK 2048
#define LATENT_ROW 656
#define KEY_ROW 132

static int32_t *filled(gpu *g, size_t n, int32_t first, int32_t step)
{
    int32_t *host = malloc(n * sizeof(*host));
    if (host == NULL)
        exit(1);
    for (size_t i = 0; i < n; i++)
        host[i] = first + (int32_t)i * step;
    int32_t *p = host_memory(g, host, n * sizeof(*host));
    free(host);
    return p;
}

/* Cached rows with scales as kv_write makes them: powers of two. */
static unsigned char *latent_memory(gpu *g, size_t n_rows)
{
    unsigned char *p = random_memory(g, n_rows * LATENT_ROW), *host = malloc(n_rows * LATENT_ROW);
    if (host == NULL)
        exit(1);
    must(td_stream_read(g->stream, host, p, n_rows * LATENT_ROW), NULL, "reading");
    finish(g);
    for (size_t i = 0; i < n_rows * 4; i++) {
        const float scale = ldexpf(1.0f, -(int)(i % 3));
        memcpy(host + i / 4 * LATENT_ROW + 512 + i % 4 * 4, &scale, 4);
    }
    must(td_stream_write(g->stream, p, host, n_rows * LATENT_ROW), NULL, "writing");
    finish(g);
    free(host);
    return p;
}

static void measure_attention(gpu *g, int T, int heads, int len)
{
    const size_t n_pages = (size_t)len / 64;
    char what[80];
    attention a = {.mla = {.T = T, .H = heads, .C = 512, .R = 64, .k = TOPK, .scale = 0.07f}};
    unsigned char *latents = latent_memory(g, n_pages * 64);
    unsigned char *keys = random_memory(g, n_pages * 64 * KEY_ROW);
    int32_t *selected = device_memory(g, (size_t)T * TOPK * 4);
    td_rows_view rows = {filled(g, (size_t)T, 0, 0), filled(g, (size_t)T, len, 0),
                         filled(g, n_pages, 0, 1), (int)n_pages};
    a.index = (td_index_logits_args){.q = random_memory(g, (size_t)T * 64 * 128),
                                     .w = scale_memory(g, (size_t)T * 64),
                                     .kv = {keys, 64 * KEY_ROW, 64, 0},
                                     .rows = rows,
                                     .y = device_memory(g, (size_t)T * (size_t)len * 4),
                                     .T = T,
                                     .Hi = 64,
                                     .dim = 128,
                                     .skip_len = TOPK,
                                     .y_stride = len};
    a.topk = (td_topk_args){a.index.y, rows.row_len, selected, T, TOPK, len};
    a.mla.q = random_memory(g, (size_t)T * (size_t)heads * 576 * 2);
    a.mla.u = device_memory(g, (size_t)T * (size_t)heads * 512 * 2);
    a.mla.selected = selected;
    a.mla.kv = (td_kv_view){latents, 64 * LATENT_ROW, 64, 0};
    a.mla.rows = rows;
    a.mla.act = TD_BF16;
    snprintf(what, sizeof(what), "index_logits T %d, 64 heads, %d keys", T, len);
    row(g, what, median_time(g, call_index, &a), 2.0 * T * len * 64 * 128, FP8_RATE,
        132.0 * len + 8192.0 * T + 4.0 * T * len);
    snprintf(what, sizeof(what), "topk 2048 T %d of %d", T, len);
    row(g, what, median_time(g, call_topk, &a), 0, 1, 4.0 * T * len);
    snprintf(what, sizeof(what), "sparse_mla fp8 T %d, %d heads, 2048 of %d", T, heads, len);
    row(g, what, median_time(g, call_mla, &a), 2.0 * T * TOPK * heads * (576 + 512), BF16_RATE,
        (double)T * TOPK * LATENT_ROW);
    void *all[] = {latents, keys, selected, a.index.y, a.mla.u};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        td_device_free(g->device, all[i]);
}

static void measure_all_attention(gpu *g)
{
    static const int shapes[][3] = {/* T, heads, keys of the cache */
                                    {1, 128, 65536},  {8, 128, 65536},  {128, 128, 16384},
                                    {128, 64, 16384}, {128, 16, 16384}, {1024, 128, 16384},
                                    {4096, 128, 4096}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        measure_attention(g, shapes[i][0], shapes[i][1], shapes[i][2]);
}

/* ---- what a decode step has for few rows ---- */

static void call_norm(gpu *g, void *arg, int i)
{
    (void)i;
    must(g->ops->rmsnorm(arg, g->stream), NULL, "rmsnorm");
}

static void measure_norm(gpu *g, int T, int D)
{
    const size_t n = (size_t)T * (size_t)D;
    td_rmsnorm_args a = {.T = T, .D = D, .x_stride = D, .y_stride = D, .eps = 1e-6f, .ue8m0 = 1};
    char what[80];
    a.act = TD_BF16;
    a.x = random_memory(g, n * 2);
    a.res = a.res_out = random_memory(g, n * 2);
    a.w = scale_memory(g, (size_t)D);
    a.y = device_memory(g, n * 2);
    a.q = device_memory(g, n);
    a.qs = device_memory(g, (size_t)T * (size_t)td_ceil_div(D, 128) * 4);
    snprintf(what, sizeof(what), "rmsnorm D %d T %d", D, T);
    row(g, what, median_time(g, call_norm, &a), 0, 1, 9.0 * (double)n);
    void *all[] = {(void *)(uintptr_t)a.x, a.res_out, (void *)(uintptr_t)a.w, a.y, a.q, a.qs};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        td_device_free(g->device, all[i]);
}

static void measure_topk(gpu *g, int T, int len, int stride)
{
    const size_t n = (size_t)T * (size_t)stride;
    float *scores = malloc(n * sizeof(*scores));
    int32_t *lens = malloc((size_t)T * sizeof(*lens));
    uint64_t z = 88172645463325252u;
    char what[80];
    if (scores == NULL || lens == NULL)
        exit(1);
    for (size_t i = 0; i < n; i++) { /* nearly normal, as scores are */
        double sum = -2.0;
        for (int k = 0; k < 4; k++) {
            z = z * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(z >> 40) * 0x1p-24;
        }
        scores[i] = (float)sum;
    }
    for (int t = 0; t < T; t++)
        lens[t] = len;
    td_topk_args a = {host_memory(g, scores, n * sizeof(*scores)),
                      host_memory(g, lens, (size_t)T * sizeof(*lens)),
                      device_memory(g, (size_t)T * 2048 * 4),
                      T,
                      2048,
                      stride};
    attention job = {.topk = a};
    snprintf(what, sizeof(what), "topk 2048 T %d of %d, room for %d", T, len, stride);
    row(g, what, median_time(g, call_topk, &job), 0, 1, 4.0 * T * len);
    td_device_free(g->device, (void *)(uintptr_t)a.logits);
    td_device_free(g->device, (void *)(uintptr_t)a.row_len);
    td_device_free(g->device, a.selected);
    free(scores);
    free(lens);
}

static void measure_few(gpu *g)
{
    static const int products[][2] = {/* N, K */
                                      {128, 7168},   {576, 7168},   {1536, 7168}, {2048, 7168},
                                      {24576, 1536}, {18432, 7168}, {7168, 16384}};
    static const int Ms[] = {1, 8, 32, 128, 4096};
    static const int lens[] = {4096, 16384, 65536, 163840};
    for (size_t i = 0; i < sizeof(products) / sizeof(*products); i++)
        for (size_t m = 0; m < sizeof(Ms) / sizeof(*Ms); m++)
            measure_gemm(g, TD_E4M3, Ms[m], products[i][0], products[i][1]);
    for (size_t m = 0; m < sizeof(Ms) / sizeof(*Ms); m++) {
        measure_norm(g, Ms[m], 7168);
        measure_norm(g, Ms[m], 1536);
    }
    for (size_t m = 0; m < 4; m++)
        for (size_t l = 0; l < sizeof(lens) / sizeof(*lens); l++) {
            measure_topk(g, Ms[m], lens[l], lens[l]);
            if (m == 0 && lens[l] < 163840) /* as in a recorded step */
                measure_topk(g, Ms[m], lens[l], 163840);
        }
}

/* The second argument names one group of rows; without it all are measured. */
static int wanted(int argc, char **argv, const char *group)
{
    return argc < 3 || strcmp(argv[2], group) == 0;
}

int main(int argc, char **argv)
{
    static const int shapes[][2] = {
        {2112, 7168}, {24576, 1536}, {7168, 16384}, {4096, 7168}, {7168, 2048}};
    static const int Ms[] = {1, 16, 64, 128, 256, 1024, 4096};
    td_backend_options options = {.kind = TD_BACKEND_CUDA};
    gpu g = {0};
    td_err err;
    if (argc > 1)
        options.index = (uint32_t)strtoul(argv[1], NULL, 10);
    must(td_backend_open(&options, &g.device, &g.ops, &err), &err, "device");
    g.stream = td_device_stream(g.device);
    printf("%s\n", td_device_name(g.device));
    make_random(&g);
    measure_copy(&g);
    for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes) && wanted(argc, argv, "gemm"); s++)
        for (size_t m = 0; m < sizeof(Ms) / sizeof(*Ms); m++)
            measure_gemm(&g, TD_E4M3, Ms[m], shapes[s][0], shapes[s][1]);
    if (wanted(argc, argv, "bf16"))
        measure_bf16(&g);
    if (wanted(argc, argv, "moe")) {
        measure_moe(&g, 256, 1);
        measure_moe(&g, 2048, 64);
    }
    if (wanted(argc, argv, "attention"))
        measure_all_attention(&g);
    if (wanted(argc, argv, "few"))
        measure_few(&g);
    td_device_close(g.device);
    return 0;
}
