/* sparse_mla_fp8_values.cuh - u of fp8 keys. A block takes a token, HEADS heads and 256 columns, a
 * warpgroup 128 of them: the columns of one scale, as the rows of two
 * products. p, as the softmax left it, is the other operand. A tile of 64 keys is a stage of a
 * ring of copies; while the tensor cores work on a tile, the next one's codes become bf16 in
 * registers: the cache's value, rounded where bf16 cannot hold it. For scales that bf16 holds, as
 * every power of two, that is one multiplication of pairs. NaN codes are not looked for: their key
 * has made every p of the row NaN.
 *
 * A lane 4g + q of a warp has four neighbouring columns, 4g .. of the warp's 32: rows g and g + 8
 * of the first product, then of the second. */
#ifndef TD_KERNELS_SPARSE_MLA_FP8_VALUES_CUH
#define TD_KERNELS_SPARSE_MLA_FP8_VALUES_CUH
#include "kernels/sparse_mla/sparse_mla_fp8.cuh"

namespace mla8
{

constexpr int COLUMNS = 256, HALVES = DIM_C / COLUMNS;
constexpr int GROUPS = COLUMNS / TD_QUANT_GROUP; /* of scales, in a block */

template <int HEADS> struct value_room {
    /* Two tiles are worked on, the next is widened, others travel. Two blocks to an SM, or one. */
    static constexpr int STAGES = HEADS > 32 ? 6 : 4;
    unsigned char p[STAGES][HEADS * TD_SWIZZLE_ROW];
    unsigned char rows[STAGES][TILE * COLUMNS];
    float scales[STAGES][GROUPS][TILE];
};

template <int HEADS> constexpr int VALUE_BLOCKS = HEADS > 32 ? 1 : 2;

typedef struct { /* what a block works on */
    int64_t token;
    int head, column, n_tiles;
} value_place;

/* Where 32 bytes of a key's row stand in a stage: a load's four keys lie in different banks. */
__device__ inline int row_at(int key, int unit)
{
    return key * COLUMNS + (unit ^ (key >> 1 & 3)) * 32;
}

/* Which key of a tile lane % 8 of this warp looks after: two of each sixteen. */
__device__ inline int own_key()
{
    const int lane = threadIdx.x % 8;
    return lane / 2 * 16 + threadIdx.x / 32 * 2 + lane % 2;
}

/* Where own_key() stands; -1: nowhere. */
__device__ inline int64_t own_place(const work &w, const value_place &at, int tile)
{
    return tile < at.n_tiles ? w.places[at.token * w.keys + tile * TILE + own_key()] : -1;
}

/* Starts a tile on its way; place: own_place(). */
template <int HEADS>
__device__ inline void fetch_tile(const td_sparse_mla_args &a, const work &w, const value_place &at,
                                  int tile, int64_t place, value_room<HEADS> *r)
{
    const int stage = tile % value_room<HEADS>::STAGES, lane = threadIdx.x % 32;
    if (tile < at.n_tiles) {
        const int piece = lane % 16, pair = threadIdx.x / 16;
        const unsigned char *plane = a.kv.plane + at.column + piece * 16;
#pragma unroll
        for (int i = 0; i < TILE / 16; i++) {
            const int64_t from = __shfl_sync(0xffffffffu, place, 2 * i + lane / 16);
            td_copy_async(r->rows[stage] + row_at(i * 16 + pair, piece / 2) + piece % 2 * 16,
                          from < 0 ? a.kv.plane : plane + from, from < 0 ? 0 : 16);
        }
        if (lane < 8 * GROUPS) {
            const int group = lane / 8;
            const int scale = SCALES_AT + (at.column / TD_QUANT_GROUP + group) * 4;
            td_copy_async4(&r->scales[stage][group][own_key()],
                           a.kv.plane + (place < 0 ? 0 : place + scale), place < 0 ? 0 : 4);
        }
        const unsigned char *p = w.p + operand_at(w, at.token, at.head, tile, w.keys / TILE);
#pragma unroll
        for (int i = 0; i < HEADS * TD_SWIZZLE_ROW; i += THREADS * 16)
            if (HEADS * TD_SWIZZLE_ROW % (THREADS * 16) == 0 ||
                threadIdx.x * 16 < HEADS * TD_SWIZZLE_ROW)
                td_copy_async(r->p[stage] + i + threadIdx.x * 16, p + i + threadIdx.x * 16, 16);
    }
    td_copy_commit();
}

/* Codes AT of two keys, times their scales, as bf16; for any scale. */
template <int AT>
__device__ inline uint32_t widen_general(uint32_t a, uint32_t b, float s_a, float s_b)
{
    uint32_t pair, none;
    td_e4m3x4_to_f16(td_e4m3_pair<AT>(a, b), &pair, &none);
    const float2 v = td_f16_pair(pair);
    return td_bf16_pair(v.x * s_a, v.y * s_b);
}

/* The codes of this lane's columns of keys k and k + 1 of a stage, four each. */
__device__ inline void load_codes(const unsigned char *rows, int k, uint32_t *a, uint32_t *b)
{
    const int unit = threadIdx.x / 32, at = threadIdx.x % 32 / 4 * 4;
    *a = *(const uint32_t *)(rows + row_at(k, unit) + at);
    *b = *(const uint32_t *)(rows + row_at(k + 1, unit) + at);
}

/* This lane's columns of a tile, as operands of both products: of sixteen keys 2q and 2q + 1, then
 * those eight behind. */
template <int HEADS>
__device__ inline void widen_tile(const value_room<HEADS> *r, int tile, uint32_t x[TILE / 16][2][4])
{
    const int stage = tile % value_room<HEADS>::STAGES, key = threadIdx.x % 4 * 2;
    const unsigned char *rows = r->rows[stage];
    const float *scales = r->scales[stage][threadIdx.x / 128];
    uint32_t pairs[TILE / 8], low = 0, top = 0, a, b;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        const float2 s = *(const float2 *)(scales + key + 8 * i);
        const uint32_t s_a = __float_as_uint(s.x * 0x1p120f), s_b = __float_as_uint(s.y * 0x1p120f);
        pairs[i] = s_a >> 16 | (s_b & 0xffff0000u);
        low |= s_a | s_b;
        top = max(top, max(s_a, s_b));
    }
    if ((low & 0xffff) == 0 && top < 0x7f800000) { /* bf16 holds all of them */
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
            uint32_t(*to)[4] = x[i / 2];
            load_codes(rows, key + 8 * i, &a, &b);
            to[0][i % 2 * 2] = td_bf16_pair_mul(td_e4m3_pair_bf16<0>(a, b), pairs[i]);
            to[0][i % 2 * 2 + 1] = td_bf16_pair_mul(td_e4m3_pair_bf16<1>(a, b), pairs[i]);
            to[1][i % 2 * 2] = td_bf16_pair_mul(td_e4m3_pair_bf16<2>(a, b), pairs[i]);
            to[1][i % 2 * 2 + 1] = td_bf16_pair_mul(td_e4m3_pair_bf16<3>(a, b), pairs[i]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        uint32_t(*to)[4] = x[i / 2];
        const float2 s = *(const float2 *)(scales + key + 8 * i);
        load_codes(rows, key + 8 * i, &a, &b);
        to[0][i % 2 * 2] = widen_general<0>(a, b, s.x, s.y);
        to[0][i % 2 * 2 + 1] = widen_general<1>(a, b, s.x, s.y);
        to[1][i % 2 * 2] = widen_general<2>(a, b, s.x, s.y);
        to[1][i % 2 * 2 + 1] = widen_general<3>(a, b, s.x, s.y);
    }
}

/* u += the tile's values times p; runs. */
template <int HEADS>
__device__ inline void start_tile(const value_room<HEADS> *r, int tile, uint32_t x[TILE / 16][2][4],
                                  float u[2][HEADS / 2])
{
    const uint64_t p = td_wgmma_desc(r->p[tile % value_room<HEADS>::STAGES]);
    td_wgmma_hold<TILE / 16 * 8>(&x[0][0][0]);
    td_wgmma_hold<HEADS>(&u[0][0]);
    td_wgmma_begin();
#pragma unroll
    for (int s = 0; s < TILE / 16; s++)
#pragma unroll
        for (int m = 0; m < 2; m++)
            td_wgmma_bf16<HEADS>(u[m], x[s][m], p + s * TD_SWIZZLE_K32, 1);
    td_wgmma_commit();
}

/* Tile's products, with its values in x[ODD]; the next one's values to the other. An even tile's
 * products run on into the next round. */
template <int HEADS, int ODD>
__device__ inline void value_tile(const td_sparse_mla_args &a, const work &w, const value_place &at,
                                  int tile, int64_t *coming, value_room<HEADS> *r,
                                  uint32_t x[2][TILE / 16][2][4], float u[2][HEADS / 2])
{
    constexpr int STAGES = value_room<HEADS>::STAGES;
    start_tile<HEADS>(r, tile, x[ODD], u);
    const int64_t place = *coming;
    *coming = own_place(w, at, tile + STAGES - 1);
    fetch_tile<HEADS>(a, w, at, tile + STAGES - 2, place, r); /* where tile - 2 stood */
    if (ODD)
        td_wgmma_wait<1>(); /* on the other's reader */
    if (tile + 1 < at.n_tiles)
        widen_tile<HEADS>(r, tile + 1, x[1 - ODD]);
    td_wgmma_hold<TILE / 16 * 8>(&x[1 - ODD][0][0][0]); /* before the wait */
    td_copy_wait<STAGES - 4>();
    td_wgmma_publish();
    if (ODD) { /* the compiler gives up on products that run into the next round of a loop */
        td_wgmma_wait<0>();
        td_wgmma_hold<HEADS>(&u[0][0]);
    }
    __syncthreads(); /* tile + 2 is there; nobody works on tile - 1 any more */
}

template <int HEADS>
__global__ void __launch_bounds__(THREADS, VALUE_BLOCKS<HEADS>)
    value_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    value_room<HEADS> *r = (value_room<HEADS> *)shared;
    constexpr int STAGES = value_room<HEADS>::STAGES;
    const int64_t block = blockIdx.x / HALVES;
    const int n_groups = w.heads / HEADS;
    value_place at = {block / n_groups, (int)(block % n_groups) * HEADS,
                      (int)(blockIdx.x % HALVES) * COLUMNS, 0};
    at.n_tiles = (w.used[at.token] + 2 * TILE - 1) / (2 * TILE) * 2;
    for (int tile = 0; tile < STAGES - 2; tile++)
        fetch_tile<HEADS>(a, w, at, tile, own_place(w, at, tile), r);
    int64_t coming = own_place(w, at, STAGES - 2); /* of the tile that is fetched next */
    td_copy_wait<STAGES - 4>();
    td_wgmma_publish();
    __syncthreads();
    uint32_t x[2][TILE / 16][2][4];
    float u[2][HEADS / 2] = {};
    if (at.n_tiles > 0)
        widen_tile<HEADS>(r, 0, x[0]);
    for (int tile = 0; tile < at.n_tiles; tile += 2) {
        value_tile<HEADS, 0>(a, w, at, tile, &coming, r, x, u);
        value_tile<HEADS, 1>(a, w, at, tile + 1, &coming, r, x, u);
    }
    td_copy_wait<0>();
    const int lane = threadIdx.x % 32, head = at.head + lane % 4 * 2;
    td_bf16 *out = (td_bf16 *)a.u + ((w.first + at.token) * a.H + head) * DIM_C + at.column +
                   threadIdx.x / 32 * 32 + lane / 4 * 4;
#pragma unroll
    for (int j = 0; j < HEADS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (head + 8 * j + e < a.H)
                *(uint2 *)(out + (8 * j + e) * DIM_C) =
                    make_uint2(td_bf16_pair(u[0][4 * j + e], u[0][4 * j + 2 + e]),
                               td_bf16_pair(u[1][4 * j + e], u[1][4 * j + 2 + e]));
}

} // namespace mla8
#endif
