/* bench_mlp - routed experts against the machine's peak and a plain read of the experts' weights;
 * routing, quantiser and SiLU against a copy. Usage: bench_mlp [threads] */
#include "kernels/moe_experts/moe_experts.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/quant/quant.h"
#include "kernels/silu_mul/silu_mul.h"
#include "tests/bench/kernels/bench.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct {
    td_stream *stream;
    const void *args;
    td_status (*run)(const void *args, td_stream *stream);
} job;

static void call(void *arg)
{
    job *j = arg;
    if (j->run(j->args, j->stream) != TD_OK)
        abort();
}

static uint32_t draw(uint32_t *state)
{
    return (*state = *state * 1664525u + 1013904223u) >> 8;
}

/* Numbers of size about 1 in any of the types. */
static void *filled(size_t n, td_dtype dtype)
{
    void *p = malloc(n * td_dtype_bytes(dtype) + 64);
    uint32_t state = 1;
    if (p == NULL)
        abort();
    for (size_t i = 0; i < n; i++) {
        uint32_t r = draw(&state);
        if (dtype == TD_F32)
            ((float *)p)[i] = (float)r * 0x1p-24f;
        else if (dtype == TD_BF16)
            ((uint16_t *)p)[i] = (uint16_t)((r & 0x8000) | 0x3f00 | (r & 0xff));
        else
            ((uint8_t *)p)[i] = (uint8_t)((r & 0x80) | 0x30 | (r & 15));
    }
    return p;
}

static td_status run_experts(const void *args, td_stream *stream)
{
    return td_moe_experts_cpu(args, stream);
}

static td_status run_gate(const void *args, td_stream *stream)
{
    return td_moe_gate_cpu(args, stream);
}

static td_status run_quant(const void *args, td_stream *stream)
{
    return td_quant_cpu(args, stream);
}

static td_status run_silu(const void *args, td_stream *stream)
{
    return td_silu_mul_cpu(args, stream);
}

static void experts(td_stream *stream, td_dtype dtype, int T, double peak)
{
    enum { D = 2048, I = 1024, K = 8, E = 32 };
    const size_t w = (size_t)E * D * I, s = (size_t)E * (D / 128) * (I / 128);
    td_moe_experts_args a = {.T = T, .D = D, .I = I, .K = K, .expert_hi = E, .ue8m0 = 1};
    a.dtype = dtype;
    void *owned[] = {filled((size_t)T * D, dtype),
                     filled((size_t)T * (D / 128), TD_F32),
                     filled(w, dtype),
                     filled(w, dtype),
                     filled(w, dtype),
                     filled(s, TD_F32),
                     filled((size_t)T * K, TD_F32),
                     malloc((size_t)T * D * sizeof(float)),
                     malloc((size_t)T * K * sizeof(int32_t))};
    uint32_t state = 7, used = 0;
    int32_t *ids = owned[8];
    for (int t = 0; t < T; t++) {
        uint32_t first = draw(&state) % E; /* K different ones */
        for (uint32_t k = 0; k < K; k++) {
            ids[t * K + (int)k] = (int32_t)((first + k * 5) % E);
            used |= 1u << ids[t * K + (int)k];
        }
    }
    a.x = owned[0];
    a.xs = owned[1];
    a.gate = owned[2];
    a.up = owned[3];
    a.down = owned[4];
    a.gate_s = a.up_s = a.down_s = owned[5];
    a.weights = owned[6];
    a.y = owned[7];
    a.ids = ids;
    job j = {stream, &a, run_experts};
    double took_s = bench_time(call, &j, 0.03), work = 3.0 * T * K * D * I;
    double bytes = 3.0 * D * I * (double)td_dtype_bytes(dtype) * __builtin_popcount(used);
    static const char *const names[] = {"f32", "bf16", "e4m3"};
    printf("experts %5s %5d rows %10.1f us %7.1f GFLOP/s %3.0f%% %7.2f GB/s of weights\n",
           names[dtype], T, took_s * 1e6, 2e-9 * work / took_s, 100 * work / took_s / peak,
           1e-9 * bytes / took_s);
    fflush(stdout);
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        free(owned[i]);
}

static void report(const char *name, job j, double bytes)
{
    double took_s = bench_time(call, &j, 0.03);
    printf("%-8s %10.1f us %7.2f GB/s read and written\n", name, took_s * 1e6,
           1e-9 * bytes / took_s);
}

static void rows(td_stream *stream)
{
    enum { T = 1024, N = 2048, E = 256, K = 8 };
    void *x = filled((size_t)T * N, TD_BF16), *u = filled((size_t)T * N, TD_BF16);
    void *y = malloc((size_t)T * N * 2), *q = malloc((size_t)T * N);
    void *qs = malloc((size_t)T * (N / 128) * 4);
    float *logits = filled((size_t)T * E, TD_F32), *bias = filled(E, TD_F32);
    td_quant_args quant = {x, q, qs, T, N, N, 1};
    report("quant", (job){stream, &quant, run_quant}, 3.0 * T * N);
    td_silu_mul_args silu = {x, u, y, q, qs, T, N, 1, TD_BF16};
    report("silu_mul", (job){stream, &silu, run_silu}, 7.0 * T * N);
    td_moe_gate_args gate = {logits, bias, y, q, T, E, K, 8, 4, 1, 2.5f, 0};
    report("moe_gate", (job){stream, &gate, run_gate}, 4.0 * T * (E + 2 * K));
    free(x);
    free(u);
    free(y);
    free(q);
    free(qs);
    free(logits);
    free(bias);
}

int main(int argc, char **argv)
{
    static const int sizes[] = {1, 4, 32, 512};
    td_device *device;
    td_err err;
    if (td_device_open_cpu(argc > 1 ? (uint32_t)atoi(argv[1]) : 0, 50, &device, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    td_stream *stream = td_device_stream(device);
    printf("%s\n", td_device_name(device));
    printf("read %.1f GB/s; copy %.1f GB/s read and written\n",
           1e-9 * bench_read_rate(stream, 400 << 20), 1e-9 * bench_copy_rate(stream, 200 << 20));
    for (int isa = TD_ISA_AVX512; isa >= TD_ISA_PORTABLE; isa--) {
        td_cpu_set_isa(stream, (td_isa)isa);
        if (td_cpu_isa(stream) != (td_isa)isa)
            continue;
        double peak = bench_fma_rate(stream);
        printf("-- instruction set %d: peak %.1f GFLOP/s\n", isa, 2e-9 * peak);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
            for (int d = TD_BF16; d <= TD_E4M3; d++)
                experts(stream, (td_dtype)d, sizes[i], peak);
        rows(stream);
    }
    td_device_close(device);
    return 0;
}
