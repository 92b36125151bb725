/* head_gemm_cpu.c - (head, tile of columns, block of rows) per item, over the product that gemm
 * uses. Bound: memory (the weights) for few rows, multiply-adds for many. */
#include "kernels/head_gemm/head_gemm.h"

#include "kernels/cpu/convert.h"
#include "kernels/cpu/tiles.h"

typedef struct {
    const td_head_gemm_args *a;
    td_stream *stream;
    td_tiles tiles;
} job;

static void part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_head_gemm_args *a = j->a;
    const td_tiles *t = &j->tiles;
    const td_isa isa = td_cpu_isa(j->stream);
    const int64_t size = (int64_t)td_dtype_bytes(a->act);
    unsigned char *scratch = td_cpu_scratch(j->stream, thread, t->n_bytes);
    float *result = (void *)(scratch + t->dot_bytes);
    for (int64_t item = begin; item < end; item++) {
        const int64_t m0 = item % t->n_blocks * t->m_block;
        const int64_t n0 = item / t->n_blocks % t->n_tiles * t->n_tile;
        const int64_t h = item / t->n_blocks / t->n_tiles;
        td_dot_args d = {.x_stride = a->x_row, .K = a->K, .dtype = a->act};
        d.m = (int)(a->T - m0 < t->m_block ? a->T - m0 : t->m_block);
        d.n = (int)(a->N - n0 < t->n_tile ? a->N - n0 : t->n_tile);
        if (a->K > 0) {
            d.x = (const unsigned char *)a->x + (m0 * a->x_row + h * a->x_head) * size;
            d.w = (const unsigned char *)a->w + (h * a->N + n0) * a->K * size;
        }
        td_dot(isa, &d, scratch, result, t->n_tile);
        for (int m = 0; m < d.m; m++) {
            const int64_t at = (m0 + m) * a->y_row + h * a->y_head + n0;
            td_cpu_narrow(isa, a->act, result + (int64_t)m * t->n_tile, d.n,
                          (unsigned char *)a->y + at * size);
        }
    }
}

td_status td_head_gemm_cpu(const td_head_gemm_args *a, td_stream *stream)
{
    if (!td_head_gemm_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->H == 0 || a->N == 0)
        return TD_OK;
    job j = {a, stream, td_tiles_plan(stream, a->T, a->N, a->K, a->H)};
    td_status st = td_cpu_reserve(stream, j.tiles.n_bytes);
    if (st < 0)
        return st;
    td_cpu_for(stream, (int64_t)a->H * j.tiles.n_blocks * j.tiles.n_tiles, j.tiles.grain, part, &j);
    return TD_OK;
}
