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
    const unsigned tokens = (unsigned)w->tokens, blocks = tokens * (unsigned)(w->heads / HEADS);
    prepare_kernel<<<tokens *(unsigned)(1 + w->heads / PREPARED), THREADS, 0, s->stream>>>(*a, *w);
    td_status st = td_cuda_launched(s, "sparse_mla");
    if (st == TD_OK && w->keys > 0) {
        const int chunks = td_ceil_div(w->keys, w->chunk);
        score_kernel<HEADS>
            <<<blocks *(unsigned)chunks, THREADS, sizeof(score_room<HEADS>), s->stream>>>(*a, *w,
                                                                                          chunks);
        st = td_cuda_launched(s, "sparse_mla");
    }
    if (st == TD_OK && w->keys > 0) {
        softmax_kernel<<<tokens *(unsigned)w->heads, THREADS, 0, s->stream>>>(*a, *w);
        st = td_cuda_launched(s, "sparse_mla");
    }
    if (st < 0)
        return st;
    value_kernel<HEADS><<<blocks * HALVES, THREADS, sizeof(value_room<HEADS>), s->stream>>>(*a, *w);
    return td_cuda_launched(s, "sparse_mla");
}

/* The scratch memory's parts, each whole multiples of 256 bytes; how many bytes. */
static size_t divide(work *w, size_t tokens, char *scratch)
{
    const size_t keys = (size_t)w->keys, heads = (size_t)w->heads;
    const size_t sizes[] = {keys * sizeof(int64_t),       heads * DIMS * 2,
                            heads * keys * sizeof(float), heads * keys * 2,
                            heads * sizeof(float),        sizeof(int32_t)};
    char *at[sizeof(sizes) / sizeof(*sizes)];
    size_t bytes = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        at[i] = scratch + bytes;
        bytes += (tokens * sizes[i] + 255) / 256 * 256;
    }
    w->places = (int64_t *)at[0];
    w->q = (unsigned char *)at[1];
    w->scores = (float *)at[2];
    w->p = (unsigned char *)at[3];
    w->back = (float *)at[4];
    w->used = (int32_t *)at[5];
    return bytes;
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
    w.group = HEADS;
    w.heads = td_ceil_div(a->H, HEADS) * HEADS;
    w.keys = td_ceil_div(a->k, 2 * TILE) * 2 * TILE;
    size_t most = SCRATCH / divide(&w, 1, NULL);
    most = most < 1 ? 1 : most > SMS ? most / SMS * SMS : most; /* whole rounds */
    const size_t tokens = (size_t)a->T < most ? (size_t)a->T : most;
    char *scratch = (char *)td_cuda_scratch(s, divide(&w, tokens, NULL));
    if (scratch == NULL)
        return TD_NOMEM;
    divide(&w, tokens, scratch);
    for (; w.first < a->T && st == TD_OK; w.first += (int64_t)tokens) {
        w.tokens = a->T - w.first < (int64_t)tokens ? (int)(a->T - w.first) : (int)tokens;
        /* Few tokens: many blocks; many: the queries are loaded once. */
        const int room = SMS * SCORE_BLOCKS<HEADS> / (w.tokens * (w.heads / HEADS));
        w.chunk = td_ceil_div(td_ceil_div(w.keys, room > 1 ? room : 1), 2 * TILE) * 2 * TILE;
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

/* The widest groups that fill the heads and leave most of the GPU something to do. */
static td_status run(const td_sparse_mla_args *a, td_stream *s)
{
    int heads = 128;
    while (heads > 16 &&
           (heads / 2 >= a->H || (int64_t)a->T * td_ceil_div(a->H, heads) * HALVES < SMS * 3 / 4))
        heads /= 2;
    switch (heads) {
    case 16: return launch<16>(a, s);
    case 32: return launch<32>(a, s);
    case 64: return launch<64>(a, s);
    default: return launch<128>(a, s);
    }
}

} // namespace mla8
#endif
