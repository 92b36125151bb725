/* sparse_mla_fp8_launch.cuh - the passes of sparse_mla_fp8.cuh, for as many tokens at a time as the
 * scratch memory holds. */
#ifndef TD_KERNELS_SPARSE_MLA_FP8_LAUNCH_CUH
#define TD_KERNELS_SPARSE_MLA_FP8_LAUNCH_CUH
#include "kernels/sparse_mla/sparse_mla_fp8_scores.cuh"
#include "kernels/sparse_mla/sparse_mla_fp8_values.cuh"

namespace mla8
{

/* Tokens w->first .. w->first + w->tokens - 1. */
template <int HEADS>
static td_status launch_tokens(const td_sparse_mla_args *a, const work *w, td_stream *s)
{
    const unsigned blocks = (unsigned)w->tokens * (unsigned)w->n_groups;
    const unsigned rows = (unsigned)w->tokens * (unsigned)a->H;
    locate_kernel<<<(unsigned)w->tokens, THREADS, 0, s->stream>>>(*a, *w);
    td_status st = td_cuda_launched(s, "sparse_mla");
    if (st == TD_OK && w->keys > 0) {
        const int chunks = td_ceil_div(w->keys, w->chunk);
        score_kernel<HEADS>
            <<<blocks *(unsigned)chunks, THREADS, sizeof(score_room<HEADS>), s->stream>>>(*a, *w,
                                                                                          chunks);
        st = td_cuda_launched(s, "sparse_mla");
    }
    if (st == TD_OK && w->keys > 0) {
        softmax_kernel<<<rows, THREADS, 0, s->stream>>>(*a, *w);
        st = td_cuda_launched(s, "sparse_mla");
    }
    if (st == TD_OK && w->keys > 0) {
        value_kernel<HEADS><<<blocks *(unsigned)(w->n_parts * HALVES), THREADS,
                              sizeof(value_room<HEADS>), s->stream>>>(*a, *w);
        st = td_cuda_launched(s, "sparse_mla");
    }
    if (st < 0)
        return st;
    sum_kernel<<<rows, DIM_C / 4, 0, s->stream>>>(*a, *w);
    return td_cuda_launched(s, "sparse_mla");
}

template <int HEADS> static td_status launch(const td_sparse_mla_args *a, td_stream *s)
{
    td_status st = td_cuda_allow_shared(s, (const void *)score_kernel<HEADS>,
                                        sizeof(score_room<HEADS>), "sparse_mla");
    if (st == TD_OK)
        st = td_cuda_allow_shared(s, (const void *)value_kernel<HEADS>, sizeof(value_room<HEADS>),
                                  "sparse_mla");
    if (st < 0)
        return st;
    work w = {};
    w.n_parts = td_ceil_div(a->k, MOST_PART);
    w.n_parts = w.n_parts < MIN_PARTS ? MIN_PARTS : w.n_parts;
    w.part = td_ceil_div(td_ceil_div(a->k, w.n_parts), TILE) * TILE;
    w.keys = w.n_parts * w.part;
    w.n_groups = td_ceil_div(a->H, HEADS);
    w.heads = w.n_groups * HEADS;
    const size_t keys = (size_t)w.keys, rows = (size_t)w.heads;
    const size_t score_bytes = rows * keys * sizeof(float);
    const size_t u_bytes = keys > 0 ? rows * (size_t)w.n_parts * DIM_C * sizeof(float) : 0;
    const size_t both = score_bytes > u_bytes ? score_bytes : u_bytes;
    const size_t each = keys * sizeof(int64_t) + both + rows * keys * sizeof(td_bf16) + 4;
    size_t most = SCRATCH / each;
    most = most < 1 ? 1 : most > SMS ? most / SMS * SMS : most; /* whole rounds */
    const size_t tokens = (size_t)a->T < most ? (size_t)a->T : most;
    char *scratch = (char *)td_cuda_scratch(s, tokens * each);
    if (scratch == NULL)
        return TD_NOMEM;
    w.places = (int64_t *)scratch;
    w.scores = w.u = (float *)(scratch + tokens * keys * sizeof(int64_t));
    w.p = (td_bf16 *)((char *)w.scores + tokens * both);
    w.used = (int32_t *)((char *)w.p + tokens * rows * keys * sizeof(td_bf16));
    for (; w.first < a->T && st == TD_OK; w.first += (int64_t)tokens) {
        w.tokens = a->T - w.first < (int64_t)tokens ? (int)(a->T - w.first) : (int)tokens;
        /* Few tokens: many blocks; many: the queries are loaded once. */
        const int chunks = SMS / (w.tokens * w.n_groups) > 1 ? SMS / (w.tokens * w.n_groups) : 1;
        w.chunk = td_ceil_div(td_ceil_div(w.keys, chunks), 2 * TILE) * 2 * TILE;
        st = launch_tokens<HEADS>(a, &w, s);
    }
    return st;
}

/* Whether the shape is one of these. */
static bool fits(const td_sparse_mla_args *a)
{
    const uintptr_t places =
        (uintptr_t)a->kv.plane | (uintptr_t)a->kv.page_stride | (uintptr_t)a->q | (uintptr_t)a->u;
    return a->act == TD_BF16 && a->C == DIM_C && a->R == DIM_R && a->kv.dtype == 0 &&
           places % 16 == 0;
}

static td_status run(const td_sparse_mla_args *a, td_stream *s)
{
    if (a->H <= 16)
        return launch<16>(a, s);
    if (a->H <= 32)
        return launch<32>(a, s);
    return a->H <= 64 ? launch<64>(a, s) : launch<128>(a, s);
}

} // namespace mla8
#endif
