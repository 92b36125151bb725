/* gemm_cpu.c - (tile of columns, block of rows) per item, over the product in cpu/dot.h. Bound:
 * memory (the weights) for few rows, multiply-adds for many. Measured on one thread of a Xeon whose
 * AVX-512 peak is 177-204 GFLOP/s and whose memory reads 11 GB/s, 2026-11-21 (tests/bench/kernels):
 * one row, 7168 x 2048: e4m3 11, bf16 28, f32 29 GB/s of weights (in the last-level cache); 256
 * rows, 2048 x 2048: e4m3 and bf16 73 % of the peak, f32 66 %. */
#include "kernels/gemm/gemm.h"

#include "kernels/cpu/convert.h"
#include "kernels/cpu/tiles.h"

typedef struct {
    const td_gemm_args *a;
    td_stream *stream;
    td_tiles tiles;
} job;

static void store(td_isa isa, const td_gemm_args *a, int64_t m, int64_t n0, int n,
                  const float *result)
{
    unsigned char *y =
        (unsigned char *)a->y + (m * a->y_stride + n0) * (int64_t)td_dtype_bytes(a->y_dtype);
    if (a->accumulate)
        td_cpu_add(isa, result, n, (void *)y);
    else
        td_cpu_narrow(isa, a->y_dtype, result, n, y);
}

static void part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_gemm_args *a = j->a;
    const td_tiles *t = &j->tiles;
    const td_isa isa = td_cpu_isa(j->stream);
    const int64_t n_kb = td_ceil_div(a->K, TD_QUANT_GROUP),
                  size = (int64_t)td_dtype_bytes(a->dtype);
    unsigned char *scratch = td_cpu_scratch(j->stream, thread, t->n_bytes);
    float *result = (void *)(scratch + t->dot_bytes);
    for (int64_t item = begin; item < end; item++) {
        const int64_t m0 = item % t->n_blocks * t->m_block, n0 = item / t->n_blocks * t->n_tile;
        td_dot_args d = {.x_stride = a->x_stride, .K = a->K, .dtype = a->dtype};
        d.m = (int)(a->M - m0 < t->m_block ? a->M - m0 : t->m_block);
        d.n = (int)(a->N - n0 < t->n_tile ? a->N - n0 : t->n_tile);
        if (a->K > 0) {
            d.x = (const unsigned char *)a->x + m0 * a->x_stride * size;
            d.w = (const unsigned char *)a->w + n0 * a->K * size;
        }
        if (a->K > 0 && a->dtype == TD_E4M3) {
            d.xs = a->xs + m0 * n_kb;
            d.ws = a->ws + n0 / TD_QUANT_GROUP * n_kb;
        }
        td_dot(isa, &d, scratch, result, t->n_tile);
        for (int m = 0; m < d.m; m++)
            store(isa, a, m0 + m, n0, d.n, result + (int64_t)m * t->n_tile);
    }
}

td_status td_gemm_cpu(const td_gemm_args *a, td_stream *stream)
{
    if (!td_gemm_valid(a))
        return TD_BAD_SHAPE;
    if (a->M == 0 || a->N == 0)
        return TD_OK;
    job j = {a, stream, td_tiles_plan(stream, a->M, a->N, a->K, 1)};
    td_status st = td_cpu_reserve(stream, j.tiles.n_bytes);
    if (st < 0)
        return st;
    td_cpu_for(stream, (int64_t)j.tiles.n_blocks * j.tiles.n_tiles, j.tiles.grain, part, &j);
    return TD_OK;
}
