/* bench_attention.c - index_logits, topk, sparse_mla and sample beside the machine's own limits.
 * ./bench_attention [threads]. A share of peak is of multiply-adds in registers; a share of memory
 * is of a read of 400 MB. */
#include "tests/bench/kernels/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/index_logits/index_logits.h"
#include "kernels/numbers.h"
#include "kernels/random.h"
#include "kernels/sample/sample.h"
#include "kernels/sparse_mla/sparse_mla.h"
#include "kernels/topk/topk.h"

#define PAGE_ROWS 64
#define LATENT_ROW 656
#define KEY_ROW 132

typedef struct {
    td_stream *stream;
    double fma, read; /* per second */
} machine;

static void *allocate(size_t n_bytes)
{
    void *p = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    if (p == NULL)
        abort();
    memset(p, 0, n_bytes);
    return p;
}

static int below(int n)
{
    static int64_t i;
    return (int)td_random_below(td_random_u64(1, i++, TD_RANDOM_TEST), (uint64_t)n);
}

static float number(void)
{
    return (float)(below(2001) - 1000) * 1e-3f;
}

/* One request of `len` positions in pages that stand anywhere; latent and key planes alike. */
typedef struct {
    unsigned char *slab;
    int32_t *table, *row_seq, *row_len;
    int n_pages;
} context;

static context make_context(int len, int T, size_t row_bytes, int prefill)
{
    context c = {.n_pages = td_ceil_div(len, PAGE_ROWS)};
    size_t n = (size_t)c.n_pages * PAGE_ROWS * row_bytes;
    c.slab = allocate(n);
    for (size_t i = 0; i < n; i++) /* small numbers, whatever they stand for: no NaN */
        c.slab[i] = (unsigned char)(i % 4 == 3 ? 0x3b : i * 37 % 64);
    c.table = allocate((size_t)c.n_pages * 4);
    for (int i = 0; i < c.n_pages; i++) {
        int j = below(i + 1);
        c.table[i] = c.table[j];
        c.table[j] = i;
    }
    c.row_seq = allocate((size_t)T * 4);
    c.row_len = allocate((size_t)T * 4);
    for (int t = 0; t < T; t++)
        c.row_len[t] = prefill ? len - T + 1 + t : len;
    return c;
}

static void drop_context(context *c)
{
    free(c->slab);
    free(c->table);
    free(c->row_seq);
    free(c->row_len);
}

typedef struct {
    td_stream *stream;
    const void *args;
    td_status (*op)(const void *args, td_stream *stream);
} job;

static void call(void *arg)
{
    job *j = arg;
    if (j->op(j->args, j->stream) != TD_OK)
        abort();
}

static td_status run_logits(const void *a, td_stream *s)
{
    return td_index_logits_cpu(a, s);
}

static td_status run_topk(const void *a, td_stream *s)
{
    return td_topk_cpu(a, s);
}

static td_status run_mla(const void *a, td_stream *s)
{
    return td_sparse_mla_cpu(a, s);
}

static td_status run_sample(const void *a, td_stream *s)
{
    return td_sample_cpu(a, s);
}

static double seconds(const machine *m, const void *args,
                      td_status (*op)(const void *args, td_stream *stream))
{
    job j = {m->stream, args, op};
    return bench_time(call, &j, 0.05);
}

static void bench_logits(const machine *m, int T, int Hi, int len, int prefill)
{
    context c = make_context(len, T, KEY_ROW, prefill);
    size_t n = (size_t)T * (size_t)Hi;
    uint8_t *q = allocate(n * 128);
    float *w = allocate(n * 4), *y = allocate((size_t)T * (size_t)len * 4);
    for (size_t i = 0; i < n * 128; i++)
        q[i] = (uint8_t)(below(112) | below(2) << 7);
    for (size_t i = 0; i < n; i++)
        w[i] = number();
    td_index_logits_args a = {.q = q,
                              .w = w,
                              .kv = {c.slab, PAGE_ROWS * KEY_ROW, PAGE_ROWS, 0},
                              .rows = {c.row_seq, c.row_len, c.table, c.n_pages},
                              .y = y,
                              .T = T,
                              .Hi = Hi,
                              .dim = 128,
                              .y_stride = len};
    double s = seconds(m, &a, run_logits), pairs = 0.0;
    for (int t = 0; t < T; t++)
        pairs += c.row_len[t];
    double rate = pairs * Hi * 128 / s;
    printf(
        "index_logits  T %4d  Hi %3d  len %6d  %10.1f us  %7.1f GFLOP/s %3.0f%%  keys %5.2f GB/s\n",
        T, Hi, len, s * 1e6, 2e-9 * rate, 100 * rate / m->fma, 1e-9 * len * KEY_ROW / s);
    drop_context(&c);
    free(q);
    free(w);
    free(y);
}

static void bench_topk(const machine *m, int T, int k, int len)
{
    size_t n = (size_t)T * (size_t)len;
    float *x = allocate(n * 4);
    int32_t *row_len = allocate((size_t)T * 4), *selected = allocate((size_t)T * (size_t)k * 4);
    for (size_t i = 0; i < n; i++)
        x[i] = number() + number() * number();
    for (int t = 0; t < T; t++)
        row_len[t] = len;
    td_topk_args a = {x, row_len, selected, T, k, len};
    double s = seconds(m, &a, run_topk);
    double rate = (double)n * 4 / s;
    printf("topk          T %4d  k %4d  len %6d  %10.1f us  %7.2f GB/s %3.0f%% of memory\n", T, k,
           len, s * 1e6, 1e-9 * rate, 100 * rate / m->read);
    free(x);
    free(row_len);
    free(selected);
}

static void bench_mla(const machine *m, int T, int H, int k, int len)
{
    context c = make_context(len, T, LATENT_ROW, 0);
    size_t n = (size_t)T * (size_t)H;
    td_bf16 *q = allocate(n * 576 * 2), *u = allocate(n * 512 * 2);
    int32_t *selected = allocate((size_t)T * (size_t)k * 4);
    for (size_t i = 0; i < n * 576; i++)
        q[i] = td_f32_to_bf16(number());
    for (int t = 0; t < T; t++)
        for (int i = 0; i < k; i++) /* ascending, one in each k-th of the context */
            selected[t * k + i] = (int)((int64_t)len * i / k) + below(len / k > 0 ? len / k : 1);
    td_sparse_mla_args a = {.q = q,
                            .selected = selected,
                            .kv = {c.slab, PAGE_ROWS * LATENT_ROW, PAGE_ROWS, 0},
                            .rows = {c.row_seq, c.row_len, c.table, c.n_pages},
                            .u = u,
                            .T = T,
                            .H = H,
                            .C = 512,
                            .R = 64,
                            .k = k,
                            .scale = 0.135f,
                            .act = TD_BF16};
    double s = seconds(m, &a, run_mla);
    double rate = (double)n * k * (512 + 576) / s, bytes = (double)T * k * LATENT_ROW / s;
    printf("sparse_mla    T %4d  H %4d  k %5d  len %6d  %10.1f us  %7.1f GFLOP/s %3.0f%%  keys "
           "%5.2f GB/s %3.0f%% of memory\n",
           T, H, k, len, s * 1e6, 2e-9 * rate, 100 * rate / m->fma, 1e-9 * bytes,
           100 * bytes / m->read);
    drop_context(&c);
    free(q);
    free(u);
    free(selected);
}

static void bench_sample(const machine *m, int T, int V, float temperature, float top_p, int top_k)
{
    size_t n = (size_t)T * (size_t)V;
    float *x = allocate(n * 4), *t32 = allocate((size_t)T * 4), *p32 = allocate((size_t)T * 4);
    int32_t *k = allocate((size_t)T * 4), *position = allocate((size_t)T * 4);
    int32_t *token = allocate((size_t)T * 4);
    uint64_t *seed = allocate((size_t)T * 8);
    for (size_t i = 0; i < n; i++)
        x[i] = 4.0f * (number() + number() + number());
    for (int t = 0; t < T; t++) {
        t32[t] = temperature;
        p32[t] = top_p;
        k[t] = top_k;
    }
    td_sample_args a = {x, t32, p32, k, seed, position, NULL, token, T, V, V};
    double s = seconds(m, &a, run_sample);
    printf("sample        T %4d  V %6d  temperature %.1f top-p %.2f top-k %3d  %10.1f us  %6.2f "
           "GB/s\n",
           T, V, (double)temperature, (double)top_p, top_k, s * 1e6, 4e-9 * (double)n / s);
    free(x);
    free(t32);
    free(p32);
    free(k);
    free(position);
    free(token);
    free(seed);
}

static void bench_all(const machine *m)
{
    bench_logits(m, 1, 4, 3000, 0);
    bench_logits(m, 1, 64, 32768, 0);
    bench_logits(m, 4, 64, 131072, 0);
    bench_logits(m, 3000, 4, 3000, 1); /* a whole prompt of a small model, one layer */
    bench_logits(m, 3000, 16, 3000, 1);
    bench_logits(m, 128, 64, 4096, 1);
    bench_topk(m, 1, 2048, 131072);
    bench_topk(m, 16, 2048, 131072);
    bench_topk(m, 3000, 256, 3000);
    bench_topk(m, 512, 2048, 3000);
    bench_mla(m, 1, 4, 256, 3000);
    bench_mla(m, 3000, 4, 256, 3000);
    bench_mla(m, 64, 4, 2048, 3000);
    bench_mla(m, 64, 16, 256, 3000);
    bench_mla(m, 1, 128, 2048, 131072);
    bench_mla(m, 4, 128, 2048, 131072);
    bench_sample(m, 4, 129280, 0.0f, 1.0f, 0);
    bench_sample(m, 4, 129280, 0.8f, 1.0f, 0);
    bench_sample(m, 4, 129280, 0.8f, 0.95f, 0);
    bench_sample(m, 4, 129280, 0.8f, 0.95f, 50);
}

int main(int argc, char **argv)
{
    td_device *device;
    td_err err;
    if (td_device_open_cpu(argc > 1 ? (uint32_t)atoi(argv[1]) : 0, 50, &device, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    machine m = {.stream = td_device_stream(device)};
    m.read = bench_read_rate(m.stream, 400 << 20);
    printf("%s\nread %.1f GB/s, copy %.1f GB/s\n", td_device_name(device), 1e-9 * m.read,
           1e-9 * bench_copy_rate(m.stream, 200 << 20));
    for (int isa = TD_ISA_AVX512; isa >= TD_ISA_PORTABLE; isa--) {
        td_cpu_set_isa(m.stream, (td_isa)isa);
        if (td_cpu_isa(m.stream) != (td_isa)isa)
            continue;
        m.fma = bench_fma_rate(m.stream);
        printf("-- instruction set %d: peak %.1f GFLOP/s\n", isa, 2e-9 * m.fma);
        bench_all(&m);
    }
    td_device_close(device);
    return 0;
}
