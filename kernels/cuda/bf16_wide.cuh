/* bf16_wide.cuh - tiles of y = x w^T in bf16 for many tokens: the sums of bf16_tile.cuh, bit for
 * bit (the same elements of K in every product, the same order), by blocks of threads that stay and
 * take one tile after the other. A tile is 128 rows of w by WIDTH tokens: the larger, the less
 * comes from the L2 cache for each product, which is what limits it.
 *
 * One warpgroup fetches: it copies halves of blocks of K (64 elements: a row of an operand of
 * wgmma) to a ring of stages, over the end of a tile, too. Two warpgroups with 64 rows of w each
 * multiply. Neither waits for the other: while one adds up, the tensor cores work for the other.
 *
 * A stage is full when every fetching thread's copies have come, and free when every multiplying
 * warp's products are done. Those wait for both halves of a block; so AHEAD, the copies that may be
 * on their way when a thread waits for a free stage, is two less than there are stages: the pair
 * that the stage's last user belongs to has been told of, or nobody would go on. */
#ifndef TD_KERNELS_CUDA_BF16_WIDE_CUH
#define TD_KERNELS_CUDA_BF16_WIDE_CUH
#include "kernels/cuda/bf16_tile.cuh"
#include "kernels/cuda/pipe.cuh"

#define TD_BF16_WIDE_ROWS 128    /* of w in a tile */
#define TD_BF16_WIDE_SUMMERS 256 /* threads that multiply; they come first */
#define TD_BF16_WIDE_FETCHERS 128
#define TD_BF16_WIDE_THREADS (TD_BF16_WIDE_SUMMERS + TD_BF16_WIDE_FETCHERS)
/* A thread has 168 to begin with. */
#define TD_BF16_WIDE_FETCHER_REGISTERS 56
#define TD_BF16_WIDE_SUMMER_REGISTERS 224

template <int WIDTH> struct td_bf16_wide {
    static_assert(WIDTH == 64 || WIDTH == 128 || WIDTH == 192, "an N of wgmma");
    static constexpr int W_BYTES = TD_BF16_WIDE_ROWS * TD_SWIZZLE_ROW;
    static constexpr int STAGE_BYTES = W_BYTES + WIDTH * TD_SWIZZLE_ROW;
    static constexpr int BUDGET = 225 << 10; /* of a block's 227 KiB */
    static constexpr int FIT = (BUDGET - TD_SWIZZLE_ATOM) / STAGE_BYTES;
    static constexpr int STAGES = FIT < 8 ? FIT : 8;
    static constexpr int AHEAD = STAGES - 2;
    static constexpr size_t BYTES =
        TD_SWIZZLE_ATOM + (size_t)STAGES * STAGE_BYTES + 2 * STAGES * sizeof(uint64_t);
};

template <int WIDTH> struct td_bf16_wide_shared {
    typedef td_bf16_wide<WIDTH> T;
    unsigned char *stages; /* rows of w, then of x */
    uint64_t *full, *free; /* [STAGES] barriers */
    __device__ explicit td_bf16_wide_shared(unsigned char *dynamic)
    {
        stages = td_bf16_stages(dynamic);
        full = (uint64_t *)(stages + T::STAGES * T::STAGE_BYTES);
        free = full + T::STAGES;
    }
};

/* A place in the ring, and whether the round that it belongs to is odd. */
template <int STAGES> struct td_bf16_turn {
    int stage;
    uint32_t odd;
    __device__ void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            odd ^= 1;
        }
    }
};

/* ---- fetching ---- */

/* Half h of a tile's blocks of K to a stage. What is not there becomes zeros. */
template <int WIDTH>
__device__ inline void td_bf16_wide_fetch(const td_bf16_args &a, unsigned char *stage, int h)
{
    const int t = (int)threadIdx.x - TD_BF16_WIDE_SUMMERS, piece = t % 8, first = t / 8;
    const int step = TD_BF16_WIDE_FETCHERS / 8; /* rows at a time: atoms, so pieces stand alike */
    const int k = h * TD_BF16_K + piece * TD_BF16_PIECE;
    const int n_rows = k < a.K ? a.at.n_rows : 0, n_tokens = k < a.K ? a.at.n_tokens : 0;
    const td_bf16 *w = a.at.w + (int64_t)first * a.K + k, *x = a.at.x + first * a.x_stride + k;
    unsigned char *to = stage + td_swizzle(first, piece);
#pragma unroll
    for (int i = 0; i < TD_BF16_WIDE_ROWS; i += step, w += (int64_t)step * a.K)
        td_copy_async_all(to + i * TD_SWIZZLE_ROW, first + i < n_rows ? w : a.at.w,
                          first + i < n_rows);
    to += td_bf16_wide<WIDTH>::W_BYTES;
#pragma unroll
    for (int i = 0; i < WIDTH; i += step, x += step * a.x_stride)
        td_copy_async_all(to + i * TD_SWIZZLE_ROW, first + i < n_tokens ? x : a.at.w,
                          first + i < n_tokens);
}

template <int WIDTH, typename Job>
__device__ inline void td_bf16_wide_produce(const Job &job, const td_bf16_wide_shared<WIDTH> &sh,
                                            int n_tiles, int n_blocks)
{
    typedef td_bf16_wide<WIDTH> T;
    td_bf16_turn<T::STAGES> fill = {0, 0}, told = {0, 0};
    int on_their_way = 0;
    for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
        const td_bf16_args a = {job.place(tile), job.x_stride, job.K, NULL};
        for (int h = 0; h < 2 * n_blocks; h++) {
            td_pipe_wait(&sh.free[fill.stage], fill.odd ^ 1); /* at once in the first round */
            td_bf16_wide_fetch<WIDTH>(a, sh.stages + fill.stage * T::STAGE_BYTES, h);
            td_copy_commit();
            fill.next();
            if (on_their_way < T::AHEAD) {
                on_their_way++;
                continue;
            }
            td_copy_wait<T::AHEAD>();
            td_wgmma_publish();
            td_pipe_arrive(&sh.full[told.stage]);
            told.next();
        }
    }
    td_copy_wait<0>();
    td_wgmma_publish();
    for (; on_their_way > 0; on_their_way--, told.next())
        td_pipe_arrive(&sh.full[told.stage]);
}

/* ---- multiplying ---- */

/* What a thread holds of a tile: D of a block of K, the sum of a part of K, that of the parts. */
template <int WIDTH, bool PARTS> struct td_bf16_wide_held {
    float d[WIDTH / 2], acc[WIDTH / 2], parts[PARTS ? WIDTH / 2 : 1];
};

/* The descriptor of this warpgroup's rows of w in a stage. By way of lane 0, so that the compiler
 * knows it to be the same in all of them: it counts on from it once for the warp. */
__device__ inline uint64_t td_bf16_wide_operand(const unsigned char *stage)
{
    const int group = (int)threadIdx.x / 128;
    const uint64_t w = td_wgmma_desc(stage + group * TD_BF16_ROWS * TD_SWIZZLE_ROW);
    return (w >> 32 << 32) | __shfl_sync(0xffffffffu, (uint32_t)w, 0);
}

__device__ inline uint64_t td_bf16_wide_tokens(const unsigned char *stage)
{
    const uint64_t x = td_wgmma_desc(stage + TD_BF16_WIDE_ROWS * TD_SWIZZLE_ROW);
    return (x >> 32 << 32) | __shfl_sync(0xffffffffu, (uint32_t)x, 0);
}

/* Starts the products of half a block of K. */
template <int WIDTH>
__device__ inline void td_bf16_wide_start(uint64_t w, uint64_t x, int add, float d[WIDTH / 2])
{
#pragma unroll
    for (int k = 0; k < TD_BF16_K / TD_BF16_STEP; k++)
        td_wgmma_bf16_shared<WIDTH>(d, w + k * TD_SWIZZLE_K32, x + k * TD_SWIZZLE_K32,
                                    add || k > 0);
    td_wgmma_commit();
}

__device__ inline void td_bf16_wide_release(uint64_t *free)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        td_pipe_arrive(free);
}

/* acc += a block of K, whose halves are the next two stages. */
template <int WIDTH>
__device__ inline void td_bf16_wide_block(const td_bf16_wide_shared<WIDTH> &sh,
                                          td_bf16_turn<td_bf16_wide<WIDTH>::STAGES> &turn,
                                          float d[WIDTH / 2], float acc[WIDTH / 2])
{
    typedef td_bf16_wide<WIDTH> T;
    const int s0 = turn.stage;
    td_pipe_wait(&sh.full[s0], turn.odd);
    turn.next();
    const int s1 = turn.stage;
    td_pipe_wait(&sh.full[s1], turn.odd);
    turn.next();
    const unsigned char *half0 = sh.stages + s0 * T::STAGE_BYTES;
    const unsigned char *half1 = sh.stages + s1 * T::STAGE_BYTES;
    const uint64_t w0 = td_bf16_wide_operand(half0), x0 = td_bf16_wide_tokens(half0);
    const uint64_t w1 = td_bf16_wide_operand(half1), x1 = td_bf16_wide_tokens(half1);
    td_wgmma_hold<WIDTH / 2>(d);
    td_wgmma_begin();
    td_bf16_wide_start<WIDTH>(w0, x0, 0, d);
    td_bf16_wide_start<WIDTH>(w1, x1, 1, d);
    td_wgmma_wait<1>();
    td_bf16_wide_release(&sh.free[s0]);
    td_wgmma_wait<0>();
    td_bf16_wide_release(&sh.free[s1]);
    td_wgmma_hold<WIDTH / 2>(d);
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++)
        acc[i] += d[i];
}

/* Eight tokens' elements of a warp's 16 rows of w, v as D of wgmma.cuh, to out from token `first`
 * on. f32: a lane's are two tokens' and eight lanes' stand side by side. */
template <typename Out>
__device__ inline void td_bf16_wide_put(const Out &out, float *, int first, const float v[4])
{
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float *y = out.token(first + (int)threadIdx.x % 4 * 2 + c);
        if (y != NULL)
            td_wgmma_put(y, row, out.n_rows, out.add, v[c], v[c + 2]);
    }
}

/* bf16: transposed, so that a lane's are one token's, in pairs. */
template <typename Out>
__device__ inline void td_bf16_wide_put(const Out &out, td_bf16 *, int first, const float v[4])
{
    const int lane = threadIdx.x % 32;
    td_bf16 *y = out.token(first + lane / 4);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = threadIdx.x / 32 * 16 + 8 * i + lane % 4 * 2;
        const uint32_t pair = td_transpose_8x8(td_bf16_pair(v[2 * i], v[2 * i + 1]));
        if (y == NULL || row >= out.n_rows)
            continue;
        if (row + 1 < out.n_rows && (uintptr_t)(y + row) % sizeof(pair) == 0) {
            *(uint32_t *)(y + row) = pair;
            continue;
        }
        y[row] = (td_bf16)pair;
        if (row + 1 < out.n_rows)
            y[row + 1] = (td_bf16)(pair >> 16);
    }
}

template <int WIDTH, typename Job>
__device__ inline void td_bf16_wide_store(const Job &job, int tile, const float acc[WIDTH / 2])
{
    const auto out = job.out(tile);
    decltype(out.token(0)) kind = NULL;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i += 4)
        td_bf16_wide_put(out, kind, 2 * i, acc + i);
}

template <int WIDTH, bool PARTS, typename Job>
__device__ inline void td_bf16_wide_consume(const Job &job, const td_bf16_wide_shared<WIDTH> &sh,
                                            int n_tiles, int n_blocks)
{
    td_bf16_turn<td_bf16_wide<WIDTH>::STAGES> turn = {0, 0};
    int n_parts = 1;
    if constexpr (PARTS)
        n_parts = job.n_parts;
    for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
        td_bf16_wide_held<WIDTH, PARTS> h = {};
        for (int part = 0, kb = 0; part < n_parts; part++) {
            const int end = n_blocks * (part + 1) / n_parts;
            for (; kb < end; kb++)
                td_bf16_wide_block<WIDTH>(sh, turn, h.d, h.acc);
            if constexpr (PARTS) {
#pragma unroll
                for (int i = 0; i < WIDTH / 2; i++) {
                    h.parts[i] = part == 0 ? h.acc[i] : h.parts[i] + h.acc[i];
                    h.acc[i] = 0.0f;
                }
            }
        }
        if constexpr (PARTS)
            td_bf16_wide_store<WIDTH>(job, tile, h.parts);
        else
            td_bf16_wide_store<WIDTH>(job, tile, h.acc);
    }
}

/* A block of threads' share of the job's tiles: TD_BF16_WIDE_THREADS threads, td_bf16_wide::BYTES
 * of dynamic shared memory, any grid. A Job has K > 0, x_stride (of rows that start at multiples of
 * 16 bytes, as w's do), with PARTS n_parts (of K: part i is blocks n i / n_parts to n (i + 1) /
 * n_parts, each summed by itself, then all added in their order) and
 *   n_tiles()
 *   place(tile) -> td_bf16_place
 *   out(tile)   -> where the tile goes: token(i): that token's first element (bf16 or f32), NULL:
 *                  nowhere, i may be n_tokens and more; n_rows: of w, that there are; add: to what
 *                  stands there (f32) */
template <int WIDTH, bool PARTS, typename Job>
__device__ inline void td_bf16_wide_run(const Job &job, unsigned char *dynamic)
{
    typedef td_bf16_wide<WIDTH> T;
    const td_bf16_wide_shared<WIDTH> sh(dynamic);
    const int n_blocks = (job.K + TD_TILE_K - 1) / TD_TILE_K, n_tiles = job.n_tiles();
    if ((int)blockIdx.x >= n_tiles)
        return;
    if (threadIdx.x == 0)
        for (int i = 0; i < T::STAGES; i++) {
            td_pipe_init(&sh.full[i], TD_BF16_WIDE_FETCHERS);
            td_pipe_init(&sh.free[i], TD_BF16_WIDE_SUMMERS / 32);
        }
    __syncthreads();
    if (threadIdx.x >= TD_BF16_WIDE_SUMMERS) {
        td_pipe_fewer_registers<TD_BF16_WIDE_FETCHER_REGISTERS>();
        td_bf16_wide_produce<WIDTH>(job, sh, n_tiles, n_blocks);
    } else {
        td_pipe_more_registers<TD_BF16_WIDE_SUMMER_REGISTERS>();
        td_bf16_wide_consume<WIDTH, PARTS>(job, sh, n_tiles, n_blocks);
    }
}

/* One block of threads to an SM, of an H100; fewer SMs take longer, and that is all. */
#define TD_BF16_WIDE_BLOCKS TD_CUDA_SMS

static inline unsigned td_bf16_wide_grid(int64_t n_tiles)
{
    return n_tiles < TD_BF16_WIDE_BLOCKS ? (unsigned)n_tiles : TD_BF16_WIDE_BLOCKS;
}

/* The width that M tokens are fastest with, by what tiles fetch: 64, .. max. No bit depends on it.
 */
static inline int td_bf16_wide_width(int64_t row_tiles, int M, int max)
{
    int best = 0;
    int64_t least = 0;
    for (int width = 64; width <= max; width += 64) {
        const int64_t n_tiles = row_tiles * td_grid(M, width);
        const int64_t cost =
            (n_tiles + TD_BF16_WIDE_BLOCKS - 1) / TD_BF16_WIDE_BLOCKS * (TD_BF16_WIDE_ROWS + width);
        if (best == 0 || cost < least) {
            best = width;
            least = cost;
        }
    }
    return best;
}

/* Whether tiles keep most SMs busy; where not, the smaller ones of bf16_tile.cuh are better. */
static inline bool td_bf16_wide_enough(int64_t n_tiles)
{
    return n_tiles >= TD_BF16_WIDE_BLOCKS / 2;
}
#endif
