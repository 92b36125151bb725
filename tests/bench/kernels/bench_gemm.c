/* bench_gemm - matrix products in the model's shapes against what the machine can do: multiply-adds
 * against its peak in registers, bytes of weights against a plain read of the same size.
 * Usage: bench_gemm [threads [M N K]] */
#include "kernels/gemm/gemm.h"
#include "tests/bench/kernels/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    td_stream *stream;
    td_gemm_args a;
} job;

static void call(void *arg)
{
    job *j = arg;
    if (td_gemm_cpu(&j->a, j->stream) != TD_OK)
        abort();
}

static void *filled(size_t n_bytes, td_dtype dtype)
{
    unsigned char *p = malloc(n_bytes + 64);
    uint32_t state = 1;
    if (p == NULL)
        abort();
    for (size_t i = 0; i < n_bytes / td_dtype_bytes(dtype); i++) {
        state = state * 1664525u + 1013904223u;
        float f = (float)(int32_t)state * 0x1p-31f;
        if (dtype == TD_F32)
            ((float *)p)[i] = f;
        else if (dtype == TD_BF16)
            ((uint16_t *)p)[i] = (uint16_t)(0x3f00 | (state >> 24));
        else
            p[i] = (uint8_t)(state >> 25 == 0x7f ? 0 : state >> 25 | (state & 0x80));
    }
    return p;
}

static void measure(td_stream *stream, td_dtype dtype, int M, int N, int K, double peak)
{
    const size_t size = td_dtype_bytes(dtype);
    const size_t n_kb = (size_t)td_ceil_div(K, 128), n_nb = (size_t)td_ceil_div(N, 128);
    const size_t w_bytes = (size_t)N * (size_t)K * size;
    job j = {stream, {.M = M, .N = N, .K = K, .x_stride = K, .y_stride = N, .dtype = dtype}};
    j.a.y_dtype = TD_BF16;
    void *x = filled((size_t)M * (size_t)K * size, dtype), *w = filled(w_bytes, dtype);
    float *xs = filled((size_t)M * n_kb * 4, TD_F32), *ws = filled(n_nb * n_kb * 4, TD_F32);
    j.a.x = x;
    j.a.w = w;
    j.a.xs = xs;
    j.a.ws = ws;
    j.a.y = malloc((size_t)M * (size_t)N * 4);
    double s = bench_time(call, &j, 0.03);
    double rate = (double)M * N * K / s;
    static const char *const names[] = {"f32", "bf16", "e4m3"};
    printf("%5s %5d %6d %6d %10.1f us %7.1f GFLOP/s %3.0f%% %7.2f GB/s of weights\n", names[dtype],
           M, N, K, s * 1e6, 2e-9 * rate, 100 * rate / peak, 1e-9 * (double)w_bytes / s);
    fflush(stdout);
    free(x);
    free(w);
    free(xs);
    free(ws);
    free(j.a.y);
}

int main(int argc, char **argv)
{
    static const int shapes[][3] = {
        {1, 1536, 512},   {1, 512, 1536},    {1, 7168, 2048},    {1, 24576, 7168},
        {4, 24576, 7168}, {6, 7168, 2048},   {16, 7168, 2048},   {64, 7168, 2048},
        {96, 1536, 512},  {256, 7168, 2048}, {1024, 2048, 7168}, {1024, 512, 512},
    };
    td_device *device;
    td_err err;
    if (td_device_open_cpu(argc > 1 ? (uint32_t)atoi(argv[1]) : 0, 50, &device, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    td_stream *stream = td_device_stream(device);
    printf("%s\n", td_device_name(device));
    printf("read %.1f GB/s (400 MB), %.1f GB/s (1 MB a thread); copy %.1f GB/s\n",
           1e-9 * bench_read_rate(stream, 400 << 20),
           1e-9 * bench_read_rate(stream, (size_t)td_cpu_threads(stream) << 20),
           1e-9 * bench_copy_rate(stream, 200 << 20));
    for (int isa = TD_ISA_AVX512; isa >= TD_ISA_PORTABLE; isa--) {
        td_cpu_set_isa(stream, (td_isa)isa);
        if (td_cpu_isa(stream) != (td_isa)isa)
            continue;
        double peak = bench_fma_rate(stream);
        printf("-- instruction set %d: peak %.1f GFLOP/s\n", isa, 2e-9 * peak);
        if (argc > 4) {
            for (int d = TD_F32; d <= TD_E4M3; d++)
                measure(stream, (td_dtype)d, atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), peak);
            continue;
        }
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
            for (int d = TD_F32; d <= TD_E4M3; d++)
                measure(stream, (td_dtype)d, shapes[i][0], shapes[i][1], shapes[i][2], peak);
    }
    td_device_close(device);
    return 0;
}
