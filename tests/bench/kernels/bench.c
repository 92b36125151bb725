#include "tests/bench/kernels/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "kernels/cpu/isa.h"

#if TD_X86
#include <immintrin.h>
#endif

#define ROUNDS 9
#define PIECE (1 << 20)

double bench_time(void (*call)(void *arg), void *arg, double min_s)
{
    double best_s = INFINITY;
    call(arg);
    int64_t n = 1;
    for (int r = 0; r < ROUNDS;) {
        int64_t start_ns = td_now_ns();
        for (int64_t i = 0; i < n; i++)
            call(arg);
        double took_s = (double)(td_now_ns() - start_ns) * 1e-9;
        if (took_s < min_s) {
            n = took_s > min_s / 10 ? (int64_t)((double)n * min_s / took_s * 1.2) + 1 : n * 8;
            continue;
        }
        r++;
        best_s = fmin(best_s, took_s / (double)n);
    }
    return best_s;
}

typedef struct {
    td_stream *stream;
    unsigned char *src, *dst;
    size_t n_bytes;
    uint64_t sink;
} memory_job;

static void read_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    memory_job *j = arg;
    uint64_t sum[8] = {0};
    (void)thread;
    for (int64_t p = begin; p < end; p++) {
        const uint64_t *v = (const uint64_t *)(j->src + p * PIECE);
        for (int i = 0; i < PIECE / 8; i += 8)
            for (int l = 0; l < 8; l++)
                sum[l] += v[i + l];
    }
    __atomic_fetch_add(&j->sink,
                       sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7],
                       __ATOMIC_RELAXED);
}

static void copy_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    memory_job *j = arg;
    (void)thread;
    memcpy(j->dst + begin * PIECE, j->src + begin * PIECE, (size_t)(end - begin) * PIECE);
}

static void read_all(void *arg)
{
    memory_job *j = arg;
    td_cpu_for(j->stream, (int64_t)(j->n_bytes / PIECE), 1, read_part, j);
}

static void copy_all(void *arg)
{
    memory_job *j = arg;
    td_cpu_for(j->stream, (int64_t)(j->n_bytes / PIECE), 1, copy_part, j);
}

static double memory_rate(td_stream *stream, size_t n_bytes, void (*call)(void *), int times)
{
    memory_job j = {stream, malloc(n_bytes), malloc(n_bytes), n_bytes / PIECE * PIECE, 0};
    if (j.src == NULL || j.dst == NULL)
        abort();
    memset(j.src, 1, n_bytes);
    memset(j.dst, 2, n_bytes);
    double s = bench_time(call, &j, 0.1);
    free(j.src);
    free(j.dst);
    return (double)j.n_bytes * times / s;
}

double bench_read_rate(td_stream *stream, size_t n_bytes)
{
    return memory_rate(stream, n_bytes, read_all, 1);
}

double bench_copy_rate(td_stream *stream, size_t n_bytes)
{
    return memory_rate(stream, n_bytes, copy_all, 2);
}

#define STEPS 4096
#define CHAINS 12

#if TD_X86
TD_AVX512 static float fma_avx512(float x)
{
    __m512 acc[CHAINS], v = _mm512_set1_ps(x);
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm512_set1_ps((float)c);
    for (int i = 0; i < STEPS; i++)
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++)
            acc[c] = _mm512_fmadd_ps(acc[c], v, v);
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm512_add_ps(acc[0], acc[c]);
    return _mm512_cvtss_f32(acc[0]);
}

TD_AVX2 static float fma_avx2(float x)
{
    __m256 acc[CHAINS], v = _mm256_set1_ps(x);
    for (int c = 0; c < CHAINS; c++)
        acc[c] = _mm256_set1_ps((float)c);
    for (int i = 0; i < STEPS; i++)
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++)
            acc[c] = _mm256_fmadd_ps(acc[c], v, v);
    for (int c = 1; c < CHAINS; c++)
        acc[0] = _mm256_add_ps(acc[0], acc[c]);
    return _mm256_cvtss_f32(acc[0]);
}
#endif

static float fma_portable(float x)
{
    float acc[CHAINS * 4];
    for (int c = 0; c < CHAINS * 4; c++)
        acc[c] = (float)c;
    for (int i = 0; i < STEPS; i++)
        for (int c = 0; c < CHAINS * 4; c++)
            acc[c] = acc[c] * x + x;
    for (int c = 1; c < CHAINS * 4; c++)
        acc[0] += acc[c];
    return acc[0];
}

typedef struct {
    td_stream *stream;
    td_isa isa;
    int64_t n;
    float sink[1024];
} fma_job;

static void fma_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    fma_job *j = arg;
    for (int64_t i = begin; i < end; i++) {
#if TD_X86
        if (j->isa == TD_ISA_AVX512) {
            j->sink[thread] += fma_avx512(0.25f);
            continue;
        }
        if (j->isa == TD_ISA_AVX2) {
            j->sink[thread] += fma_avx2(0.25f);
            continue;
        }
#endif
        j->sink[thread] += fma_portable(0.25f);
    }
}

static void fma_all(void *arg)
{
    fma_job *j = arg;
    td_cpu_for(j->stream, j->n, 1, fma_part, j);
}

double bench_fma_rate(td_stream *stream)
{
    td_isa isa = td_cpu_isa(stream);
    int lanes = isa == TD_ISA_AVX512 ? 16 : isa == TD_ISA_AVX2 ? 8 : 4;
    fma_job j = {.stream = stream, .isa = isa, .n = 256};
    double s = bench_time(fma_all, &j, 0.05);
    return (double)j.n * STEPS * CHAINS * lanes / s;
}
