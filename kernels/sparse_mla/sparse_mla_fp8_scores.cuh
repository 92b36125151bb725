/* sparse_mla_fp8_scores.cuh - scores of fp8 keys, as f32. A block takes a token, HEADS heads and a
 * chunk of keys: its two warpgroups take tiles of 64 keys by turns, a warp 16 keys of each. The
 * keys' codes become f16 in registers, as in exact_tile.cuh: each block of 128 is summed by itself
 * and taken times its scale. Queries stand in shared memory as f16, a head's taken times the power
 * of two that brings its largest into [2^14, 2^15): what f16 cannot hold beside that is below 2^-39
 * of it. The last 64 dims are bf16 on both sides.
 *
 * A row comes in pieces of 128 bytes, the rotated part first, then its codes. Each has a stage of
 * its own in each warp's part of shared memory: as soon as one was read, the next tile's is on its
 * way. Warps share nothing but the queries; one warpgroup's products run while the other one sums.
 *
 * A sum may take its terms in any order that both operands share: with lane = 4g + q, step 4h + i
 * of 128 codes takes, for its columns 2q, 2q + 1, 2q + 8 and 2q + 9, elements 4i .. 4i + 3 of the
 * sixteen at (4h + q) * 16, and step 2h + i of the rotated part elements 4i .. of the eight at
 * (4h + q) * 8: a lane loads sixteen bytes at a time. Its rows g and g + 8 are keys 2g and 2g + 1.
 */
#ifndef TD_KERNELS_SPARSE_MLA_FP8_SCORES_CUH
#define TD_KERNELS_SPARSE_MLA_FP8_SCORES_CUH
#include "kernels/sparse_mla/sparse_mla_fp8.cuh"

namespace mla8
{

constexpr int STAGE_BYTES = 16 * TD_SWIZZLE_ROW; /* a warp's keys */
constexpr int PIECES = 1 + DIM_C / TD_QUANT_GROUP;
constexpr int KEY_SCALES = DIM_C / TD_QUANT_GROUP; /* floats */

template <int HEADS> struct score_room {
    unsigned char q[OPERANDS][HEADS * TD_SWIZZLE_ROW];
    unsigned char stages[THREADS / 32][PIECES][STAGE_BYTES];
    float scales[THREADS / 32][16][KEY_SCALES];
    float back[HEADS]; /* from a sum to the score */
};

/* Blocks to an SM; and how many pieces are widened at a time: the next one while products run, or
 * none then, where it is the other block's turn (which still spills 12 bytes). */
template <int HEADS> constexpr int SCORE_BLOCKS = HEADS > 16 ? 1 : 2;
template <int HEADS> constexpr int WIDENED = HEADS > 16 ? 2 : 1;

typedef struct { /* what a block works on */
    int64_t token;
    int head;   /* the first */
    int lo, hi; /* keys */
} score_place;

/* Where piece (16 bytes) of a key's row stands in a stage: the rows of a load, every other one,
 * lie in different halves of the banks. */
__device__ inline int stage_at(int row, int piece)
{
    return row * TD_SWIZZLE_ROW + (piece ^ (row & 2) * 2) * 16;
}

/* Starts the block's queries on their way. */
template <int HEADS>
__device__ inline void fetch_queries(const work &w, const score_place &at, score_room<HEADS> *r)
{
    const unsigned char *from = w.q + operand_at(w, at.token, at.head, 0, OPERANDS);
#pragma unroll 2
    for (int i = threadIdx.x * 16; i < OPERANDS * HEADS * TD_SWIZZLE_ROW; i += THREADS * 16)
        td_copy_async(r->q[0] + i, from + i, 16);
    for (int h = threadIdx.x; h < HEADS; h += THREADS)
        r->back[h] = w.back[at.token * w.heads + at.head + h];
    td_copy_commit();
}

/* Starts piece (0: the rotated part, and the scales) of this warp's keys on its way; place: of row
 * lane % 16, -1: zeros. */
template <int HEADS>
__device__ inline void fetch_keys(const td_sparse_mla_args &a, int64_t place, int piece,
                                  score_room<HEADS> *r)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int from = piece == 0 ? ROPE_AT : (piece - 1) * TD_QUANT_GROUP;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = lane / 8 + 4 * i;
        const int64_t at = __shfl_sync(0xffffffffu, place, row);
        td_copy_async(r->stages[warp][piece] + stage_at(row, lane % 8),
                      a.kv.plane + (at < 0 ? 0 : at + from + lane % 8 * 16), at < 0 ? 0 : 16);
    }
    if (piece == 0 && lane < 16)
        td_copy_async(r->scales[warp][lane], a.kv.plane + (place < 0 ? 0 : place + SCALES_AT),
                      place < 0 ? 0 : 16);
    td_copy_commit();
}

/* This lane's part of a piece: its two rows, sixteen bytes of each half. */
__device__ inline void load_piece(const unsigned char *stage, uint4 top[2], uint4 low[2])
{
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = *(const uint4 *)(stage + stage_at(2 * g, 4 * h + q));
        low[h] = *(const uint4 *)(stage + stage_at(2 * g + 1, 4 * h + q));
    }
}

/* Waits for a piece of this warp's keys, takes it, and starts the next tile's. */
template <int HEADS>
__device__ inline void next_piece(const td_sparse_mla_args &a, int64_t next, int piece,
                                  score_room<HEADS> *r, uint4 top[2], uint4 low[2])
{
    td_copy_wait<PIECES - 1>();
    __syncwarp();
    load_piece(r->stages[threadIdx.x / 32][piece], top, low);
    if (piece > 0) {
        __syncwarp(); /* everybody has taken it */
        fetch_keys(a, next, piece, r);
    }
}

/* A piece's codes as f16, for eight products. */
__device__ inline void widen_piece(const uint4 top[2], const uint4 low[2], uint32_t x[8][4])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t codes[2][4] = {{top[h].x, top[h].y, top[h].z, top[h].w},
                                      {low[h].x, low[h].y, low[h].z, low[h].w}};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            td_e4m3x4_to_f16(codes[0][i], &x[4 * h + i][0], &x[4 * h + i][2]);
            td_e4m3x4_to_f16(codes[1][i], &x[4 * h + i][1], &x[4 * h + i][3]);
        }
    }
}

/* sum = the rotated part's products; they run. */
template <int HEADS>
__device__ inline void start_rotated(const score_room<HEADS> *r, uint32_t x[4][4],
                                     float sum[HEADS / 2])
{
    const uint64_t q = td_wgmma_desc(r->q[OPERANDS - 1]);
    td_wgmma_hold<16>(&x[0][0]);
    td_wgmma_hold<HEADS / 2>(sum);
    td_wgmma_begin();
#pragma unroll
    for (int s = 0; s < 4; s++)
        td_wgmma_bf16<HEADS>(sum, x[s], q + s * TD_SWIZZLE_K32, s > 0);
    td_wgmma_commit();
}

/* d = products of 128 codes; they run. */
template <int HEADS>
__device__ inline void start_codes(const score_room<HEADS> *r, int group, uint32_t x[8][4],
                                   float d[HEADS / 2])
{
    const uint64_t q = td_wgmma_desc(r->q[2 * group]);
    td_wgmma_hold<32>(&x[0][0]);
    td_wgmma_hold<HEADS / 2>(d);
    td_wgmma_begin();
#pragma unroll
    for (int s = 0; s < 8; s++)
        td_wgmma_f16<HEADS>(
            d, x[s], q + s / 4 * (HEADS * TD_SWIZZLE_ROW >> 4) + s % 4 * TD_SWIZZLE_K32, s > 0);
    td_wgmma_commit();
}

/* This lane's scores: of two neighbouring keys (bits of `there`) and HEADS / 4 heads. */
template <int HEADS>
__device__ inline void store_scores(const work &w, const score_place &at,
                                    const score_room<HEADS> *r, int first, int there,
                                    const float sum[HEADS / 2])
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = lane % 4 * 2;
    const float none = __uint_as_float(NO_KEY);
    float *to = w.scores + (at.token * w.heads + at.head + head) * (int64_t)w.keys + first +
                warp % 4 * 16 + lane / 4 * 2;
#pragma unroll
    for (int j = 0; j < HEADS / 8; j++) {
        const float2 back = *(const float2 *)(r->back + 8 * j + head);
        const float x[2][2] = {{sum[4 * j] * back.x, sum[4 * j + 2] * back.x},
                               {sum[4 * j + 1] * back.y, sum[4 * j + 3] * back.y}};
#pragma unroll
        for (int e = 0; e < 2; e++)
            *(float2 *)(to + (8 * j + e) * (int64_t)w.keys) =
                float2{there & 1 ? x[e][0] : none, there & 2 ? x[e][1] : none};
    }
}

template <int HEADS>
__global__ void __launch_bounds__(THREADS, SCORE_BLOCKS<HEADS>)
    score_kernel(const __grid_constant__ td_sparse_mla_args a, const __grid_constant__ work w,
                 int n_chunks)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    score_room<HEADS> *r = (score_room<HEADS> *)shared;
    const int64_t block = blockIdx.x / n_chunks;
    const int n_groups = w.heads / HEADS;
    score_place at = {block / n_groups, (int)(block % n_groups) * HEADS,
                      (int)(blockIdx.x % n_chunks) * w.chunk, 0};
    const int used = w.used[at.token], warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    at.hi = at.lo + w.chunk < used ? at.lo + w.chunk : used;
    if (at.lo >= at.hi)
        return;
    fetch_queries<HEADS>(w, at, r);
    /* This warp's keys of its warpgroup's tiles; keys behind the end of the scratch are none. */
    const int64_t *places = w.places + at.token * w.keys;
    const int mine = warp % 4 * 16 + lane % 16, step = THREADS / 128 * TILE;
    int first = at.lo + warp / 4 * TILE;
    /* Of this tile and of the next, row lane % 16. */
    int64_t place = first < at.hi ? places[first + mine] : -1;
    int64_t coming = first + step < at.hi ? places[first + step + mine] : -1;
    for (int piece = 0; piece < PIECES; piece++)
        fetch_keys(a, place, piece, r);
    td_copy_wait<PIECES>(); /* the queries */
    td_wgmma_publish();
    __syncthreads();
    constexpr int BUFFERS = WIDENED<HEADS>;
    uint32_t x[BUFFERS][8][4];
    float d[HEADS / 2] = {}, sum[HEADS / 2] = {};
    for (; first < at.hi; first += step) {
        const unsigned there = __ballot_sync(0xffffffffu, place >= 0) >> lane / 4 * 2;
        const int64_t next = coming;
        if (first + 2 * step < at.hi)
            coming = places[first + 2 * step + mine];
        else
            coming = -1;
        uint4 top[2], low[2];
        next_piece(a, next, 0, r, top, low);
        const float4 s_top = *(const float4 *)r->scales[warp][lane / 4 * 2];
        const float4 s_low = *(const float4 *)r->scales[warp][lane / 4 * 2 + 1];
        const float scales[2][KEY_SCALES] = {{s_top.x, s_top.y, s_top.z, s_top.w},
                                             {s_low.x, s_low.y, s_low.z, s_low.w}};
        __syncwarp();
        fetch_keys(a, next, 0, r);
        uint32_t rotated[4][4] = {{top[0].x, low[0].x, top[0].y, low[0].y},
                                  {top[0].z, low[0].z, top[0].w, low[0].w},
                                  {top[1].x, low[1].x, top[1].y, low[1].y},
                                  {top[1].z, low[1].z, top[1].w, low[1].w}};
        start_rotated<HEADS>(r, rotated, sum);
        next_piece(a, next, 1, r, top, low);
        widen_piece(top, low, x[0]);
#pragma unroll
        for (int group = 0; group < KEY_SCALES; group++) {
            start_codes<HEADS>(r, group, x[group % BUFFERS], d);
            if (group + 1 < KEY_SCALES)
                next_piece(a, next, group + 2, r, top, low);
            if (group + 1 < KEY_SCALES && BUFFERS > 1) {
                widen_piece(top, low, x[(group + 1) % BUFFERS]);
                td_wgmma_hold<32>(&x[(group + 1) % BUFFERS][0][0]); /* before the wait */
            }
            td_wgmma_wait<0>();
            td_wgmma_hold<HEADS / 2>(d);
            td_wgmma_hold<HEADS / 2>(sum);
            if (group + 1 < KEY_SCALES && BUFFERS == 1)
                widen_piece(top, low, x[0]);
#pragma unroll
            for (int j = 0; j < HEADS / 2; j++)
                sum[j] = fmaf(d[j], scales[j / 2 % 2][group], sum[j]);
        }
        store_scores<HEADS>(w, at, r, first, (int)there, sum);
        place = next;
    }
    td_copy_wait<0>();
}

} // namespace mla8
#endif
