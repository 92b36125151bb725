/* wide_tile.cuh - tiles of y = x w^T with e4m3 and block scales for many tokens: the sums of
 * exact_tile.cuh, bit for bit (the same elements of K in every product of 16, the same order), by
 * blocks of threads that stay and take one tile after the other.
 *
 * A tile is 128 rows of w by up to 128 tokens, of which it computes as many as it has, rounded up
 * to a multiple of 32. Two warpgroups fetch: copies of w and x as e4m3 run TD_WIDE_AHEAD blocks
 * of K ahead, over the end of a tile, too; they widen x into one of two operands of wgmma. Two
 * warpgroups with 64 rows of w each multiply: they widen w in registers, and while the products of
 * one half of the tokens run, they add up those of the other. Neither waits for the other: while
 * one is between two blocks, the tensor cores work for the other.
 *
 * Block g (counted over all tiles of the block of threads) is full when its w, its scales and its
 * widened x are there. free(g): products of block g - 1 are done and codes of w of block g were
 * read. At block g the fetching threads wait for free(g - 1): then the operand of g - 2 can be
 * written, and the stage of g - 1, whose x they have widened, can be filled. Scales stay two blocks
 * longer. */
#ifndef TD_KERNELS_CUDA_WIDE_TILE_CUH
#define TD_KERNELS_CUDA_WIDE_TILE_CUH
#include "kernels/cuda/exact_tile.cuh"
#include "kernels/cuda/pipe.cuh"

#define TD_WIDE_ROWS 128    /* of w in a tile */
#define TD_WIDE_TOKENS 128  /* at most */
#define TD_WIDE_SUMMERS 256 /* threads that multiply; they come first */
#define TD_WIDE_FETCHERS 256
#define TD_WIDE_THREADS (TD_WIDE_SUMMERS + TD_WIDE_FETCHERS)
#define TD_WIDE_AHEAD 3
#define TD_WIDE_STAGES (TD_WIDE_AHEAD + 1)
#define TD_WIDE_RING 8 /* of scales; TD_WIDE_STAGES + 2 are enough, powers of two are quicker */
#define TD_WIDE_STAGE_BYTES ((TD_WIDE_ROWS + TD_WIDE_TOKENS) * TD_TILE_K)
#define TD_WIDE_OPERAND_BYTES (TD_WIDE_TOKENS * TD_TILE_K * 2)
#define TD_WIDE_SCALES (TD_WIDE_TOKENS + 4) /* as in td_exact_tile */
#define TD_WIDE_BYTES                                                                              \
    ((size_t)TD_SWIZZLE_ATOM + 2 * TD_WIDE_OPERAND_BYTES + TD_WIDE_STAGES * TD_WIDE_STAGE_BYTES +  \
     4 * sizeof(uint64_t) + TD_WIDE_RING * TD_WIDE_SCALES * sizeof(float))
/* A thread has 128 to begin with. */
#define TD_WIDE_FETCHER_REGISTERS 56
#define TD_WIDE_SUMMER_REGISTERS 200

/* What a tile's threads multiply. w, ws: as in td_tile_args; x, K and strides are the job's. */
struct td_wide_place {
    const uint8_t *w;
    const float *ws;
    int n_rows;   /* of w that there are */
    int n_tokens; /* 1 .. TD_WIDE_TOKENS */
};

/* Tokens that a tile computes for n: 32, 64, 96 or 128. */
__device__ inline int td_wide_width(int n)
{
    return (n + 31) / 32 * 32;
}

struct td_wide_shared {
    unsigned char *operands; /* [2] x as operands of wgmma: halves of K of TD_WIDE_TOKENS rows */
    unsigned char *stages;   /* [TD_WIDE_STAGES] rows of w, then of x, of 128 bytes */
    uint64_t *full, *free;   /* [2] barriers */
    uint64_t operand;        /* descriptor of the first */
    float *scales;           /* [TD_WIDE_RING] xs, then xs * ws, of the tokens; ws */
    __device__ explicit td_wide_shared(unsigned char *dynamic)
    {
        const uint32_t at = (uint32_t)__cvta_generic_to_shared(dynamic);
        operands = dynamic + ((0u - at) & (TD_SWIZZLE_ATOM - 1));
        operand = td_wgmma_desc(operands);
        stages = operands + 2 * TD_WIDE_OPERAND_BYTES;
        full = (uint64_t *)(stages + TD_WIDE_STAGES * TD_WIDE_STAGE_BYTES);
        free = full + 2;
        scales = (float *)(free + 2);
    }
    __device__ unsigned char *stage(uint32_t g) const
    {
        return stages + g % TD_WIDE_STAGES * TD_WIDE_STAGE_BYTES;
    }
    __device__ float *scales_of(uint32_t g) const
    {
        return scales + g % TD_WIDE_RING * TD_WIDE_SCALES;
    }
};

/* ---- fetching ---- */

/* The next block of K to fetch, and where this thread's pieces of the tile it belongs to stand.
 * Rows of w and tokens that are not there repeat the last one: nobody looks at what they give. */
struct td_wide_fetch {
    int tile, kb, width;
    uint32_t g;
    const uint8_t *w[TD_WIDE_ROWS / 32], *x[TD_WIDE_TOKENS / 32]; /* of the block to come */
    const float *scale; /* of token t; t = TD_WIDE_TOKENS: of w */
};

template <typename Job>
__device__ inline void td_wide_fetch_tile(const Job &job, int n_blocks, td_wide_fetch &f)
{
    const int t = (int)threadIdx.x - TD_WIDE_SUMMERS, piece = t % 8, first = t / 8;
    const td_wide_place p = job.place(f.tile);
    f.width = td_wide_width(p.n_tokens);
#pragma unroll
    for (int i = 0; i < TD_WIDE_ROWS / 32; i++)
        f.w[i] = p.w + (int64_t)min(first + 32 * i, p.n_rows - 1) * job.K + piece * 16;
#pragma unroll
    for (int i = 0; i < TD_WIDE_TOKENS / 32; i++)
        if (32 * i < f.width)
            f.x[i] = job.x + piece * 16 +
                     job.row(f.tile, min(first + 32 * i, p.n_tokens - 1)) * job.x_stride;
    f.scale = t >= TD_WIDE_TOKENS
                  ? p.ws
                  : job.xs + (int64_t)job.row(f.tile, min(t, p.n_tokens - 1)) * n_blocks;
}

/* Copies the next block, if there is one; a group of copies in any case. K's pieces that are not
 * there become zeros. */
template <typename Job>
__device__ inline void td_wide_fetch_next(const Job &job, const td_wide_shared &sh, int n_tiles,
                                          int n_blocks, td_wide_fetch &f)
{
    const int t = (int)threadIdx.x - TD_WIDE_SUMMERS, piece = t % 8, first = t / 8;
    if (f.tile < n_tiles) {
        if (f.kb == 0)
            td_wide_fetch_tile(job, n_blocks, f);
        const bool there = f.kb * TD_TILE_K + piece * 16 < job.K;
        unsigned char *w = sh.stage(f.g) + td_exact_w_at(first, piece);
        unsigned char *x = sh.stage(f.g) + TD_WIDE_ROWS * TD_TILE_K + td_swizzle(first, piece);
        float *scales = sh.scales_of(f.g);
        if (t <= TD_WIDE_TOKENS)
            td_copy_async4(scales + t, f.scale++, 4);
#pragma unroll
        for (int i = 0; i < TD_WIDE_ROWS / 32; i++) {
            td_copy_async_all(w + i * 32 * TD_TILE_K, there ? f.w[i] : job.x, there);
            f.w[i] += TD_TILE_K;
        }
#pragma unroll
        for (int i = 0; i < TD_WIDE_TOKENS / 32; i++) {
            if (32 * i >= f.width)
                break;
            td_copy_async_all(x + i * 32 * TD_TILE_K, there ? f.x[i] : job.x, there);
            f.x[i] += TD_TILE_K;
        }
        f.g++;
        if (++f.kb == n_blocks) {
            f.kb = 0;
            f.tile += (int)gridDim.x;
        }
    }
    td_copy_commit();
}

/* Block g of x as f16, as td_exact_widen_x() has it. Rows of a thread are 32 apart, so that their
 * pieces stand in the same order. Scales become xs * ws. */
__device__ inline void td_wide_widen_x(const td_wide_shared &sh, uint32_t g, int width)
{
    const int t = (int)threadIdx.x - TD_WIDE_SUMMERS, i = t % 4, row = t / 4 % 32, h = t / 128;
    const unsigned char *from = sh.stage(g) + TD_WIDE_ROWS * TD_TILE_K + 4 * i;
    unsigned char *to =
        sh.operands + g % 2 * TD_WIDE_OPERAND_BYTES + h * TD_WIDE_TOKENS * TD_SWIZZLE_ROW;
    float *scales = sh.scales_of(g);
    if (t < TD_WIDE_TOKENS)
        scales[t] *= scales[TD_WIDE_TOKENS];
#pragma unroll
    for (int part = 0; part < TD_WIDE_TOKENS / 32; part++) {
        const int at = part * 32 * TD_SWIZZLE_ROW;
        uint32_t lo[4], hi[4];
        if (32 * part >= width)
            break;
#pragma unroll
        for (int q = 0; q < 4; q++)
            td_e4m3x4_to_f16(*(const uint32_t *)(from + at + td_swizzle(row, 4 * h + q)), &lo[q],
                             &hi[q]);
        *(uint4 *)(to + at + td_swizzle(row, 2 * i)) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
        *(uint4 *)(to + at + td_swizzle(row, 2 * i + 1)) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    }
}

template <typename Job>
__device__ inline void td_wide_produce(const Job &job, const td_wide_shared &sh, int n_tiles,
                                       int n_blocks)
{
    td_wide_fetch f = {};
    f.tile = (int)blockIdx.x;
    for (int s = 0; s < TD_WIDE_AHEAD; s++)
        td_wide_fetch_next(job, sh, n_tiles, n_blocks, f);
    uint32_t g = 0;
    for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
        const int width = td_wide_width(job.place(tile).n_tokens);
        for (int kb = 0; kb < n_blocks; kb++, g++) {
            td_copy_wait<TD_WIDE_AHEAD - 1>();
            td_pipe_sync<TD_WIDE_FETCHERS>(1); /* block g is there, and that before is widened */
            if (g > 0)
                td_pipe_wait(&sh.free[(g - 1) % 2], (g - 1) / 2 % 2);
            td_wide_widen_x(sh, g, width);
            td_wgmma_publish();
            td_pipe_arrive(&sh.full[g % 2]);
            td_wide_fetch_next(job, sh, n_tiles, n_blocks, f);
        }
    }
    td_copy_wait<0>();
}

/* ---- multiplying ---- */

/* This lane's codes of w of block g, when it is full: rows `row` and row + 8, pieces q and 4 + q.
 */
__device__ inline void td_wide_codes(const td_wide_shared &sh, uint32_t g, uint4 codes[4])
{
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const unsigned char *stage = sh.stage(g);
    td_pipe_wait(&sh.full[g % 2], g / 2 % 2);
#pragma unroll
    for (int i = 0; i < 4; i++)
        codes[i] = *(const uint4 *)(stage + td_exact_w_at(row + i % 2 * 8, i / 2 * 4 + q));
}

/* Codes as f16, as td_exact_widen_w() has it. */
__device__ inline void td_wide_widen_w(const uint4 codes[4], uint32_t a[TD_TILE_K / 16][4])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint4 top = codes[2 * h], low = codes[2 * h + 1];
        const uint32_t both[2][4] = {{top.x, top.y, top.z, top.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            td_e4m3x4_to_f16(both[0][i], &a[4 * h + i][0], &a[4 * h + i][2]);
            td_e4m3x4_to_f16(both[1][i], &a[4 * h + i][1], &a[4 * h + i][3]);
        }
    }
}

/* The warp is done with the operand of the block before g and has read its codes of w of g. */
__device__ inline void td_wide_release(const td_wide_shared &sh, uint32_t g)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        td_pipe_arrive(&sh.free[g % 2]);
}

/* The descriptor of block g's operand. By way of lane 0, so that the compiler knows it to be the
 * same in all of them: it counts on from it once for the warp, not in every lane. */
__device__ inline uint64_t td_wide_operand(const td_wide_shared &sh, uint32_t g)
{
    const uint32_t low = (uint32_t)sh.operand + g % 2 * (TD_WIDE_OPERAND_BYTES / 16);
    return (sh.operand >> 32 << 32) | __shfl_sync(0xffffffffu, low, 0);
}

/* Starts the products of the operand's tokens first .. first + N - 1. */
template <int N>
__device__ inline void td_wide_start(uint64_t operand, int first, uint32_t a[TD_TILE_K / 16][4],
                                     float d[N / 2])
{
    const uint64_t x = operand + (uint32_t)first * TD_SWIZZLE_ROW / 16;
    td_wgmma_hold<N / 2>(d);
    if (first == 0) /* later ones share them, and products may be reading them already */
        td_wgmma_hold<TD_TILE_K / 4>(&a[0][0]);
    td_wgmma_begin();
#pragma unroll
    for (int k = 0; k < TD_TILE_K / 16; k++)
        td_wgmma_f16<N>(d, a[k],
                        x + k / 4 * (TD_WIDE_TOKENS * TD_SWIZZLE_ROW >> 4) + k % 4 * TD_SWIZZLE_K32,
                        k > 0);
    td_wgmma_commit();
}

/* acc += what block g gave for tokens first .. first + N - 1. */
template <int N>
__device__ inline void td_wide_sum(const td_wide_shared &sh, uint32_t g, int first, float d[N / 2],
                                   float acc[N / 2])
{
    const float *scales = sh.scales_of(g) + first + threadIdx.x % 4 * 2;
    td_wgmma_hold<N / 2>(d);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const float2 s = *(const float2 *)(scales + 8 * j);
        acc[4 * j] = fmaf(d[4 * j], s.x, acc[4 * j]);
        acc[4 * j + 1] = fmaf(d[4 * j + 1], s.y, acc[4 * j + 1]);
        acc[4 * j + 2] = fmaf(d[4 * j + 2], s.x, acc[4 * j + 2]);
        acc[4 * j + 3] = fmaf(d[4 * j + 3], s.y, acc[4 * j + 3]);
    }
}

/* What a thread holds of a tile of WIDTH tokens: sums, and D of one block of K, both in halves. */
template <int WIDTH> struct td_wide_held {
    static constexpr int HALVES = WIDTH > 64 ? 2 : 1, N = WIDTH / HALVES;
    float acc[HALVES][N / 2], d[HALVES][N / 2];
};

/* Block g of a tile; codes: its own, then those of block g + 1 of n_all. The first block of a tile
 * has no other half to add up. */
template <int WIDTH, bool FIRST>
__device__ inline void td_wide_block(const td_wide_shared &sh, uint32_t g, uint32_t n_all,
                                     uint4 codes[4], td_wide_held<WIDTH> &h)
{
    typedef td_wide_held<WIDTH> H;
    constexpr int N = H::N, last = H::HALVES - 1;
    const uint64_t x = td_wide_operand(sh, g);
    uint32_t a[TD_TILE_K / 16][4];
    td_wide_widen_w(codes, a);
    td_wide_start<N>(x, 0, a, h.d[0]);
    if (H::HALVES == 2) {
        if (!FIRST)
            td_wide_sum<N>(sh, g - 1, N, h.d[last], h.acc[last]);
        td_wide_start<N>(x, N, a, h.d[last]);
    }
    if (g + 1 < n_all)
        td_wide_codes(sh, g + 1, codes);
    if (H::HALVES == 2) {
        td_wgmma_wait<1>();
        td_wide_sum<N>(sh, g, 0, h.d[0], h.acc[0]);
    }
    td_wgmma_wait<0>();
    td_wide_release(sh, g + 1);
    if (H::HALVES == 1)
        td_wide_sum<N>(sh, g, 0, h.d[0], h.acc[0]);
}

template <int WIDTH, typename Job>
__device__ inline void td_wide_store(const Job &job, int tile, const td_wide_held<WIDTH> &h)
{
    typedef td_wide_held<WIDTH> H;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const auto out = job.out(tile);
#pragma unroll
    for (int half = 0; half < H::HALVES; half++)
#pragma unroll
        for (int i = 0; i < H::N / 2; i += 4)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                auto *y = out.token(half * H::N + 2 * i + (int)threadIdx.x % 4 * 2 + c);
                if (y != NULL)
                    td_wgmma_put(y, row, out.n_rows, out.add, h.acc[half][i + c],
                                 h.acc[half][i + c + 2]);
            }
}

/* One tile from block g on; codes: those of its first block, then those of the first behind it. */
template <int WIDTH, typename Job>
__device__ inline void td_wide_tile(const Job &job, const td_wide_shared &sh, int tile,
                                    int n_blocks, uint32_t n_all, uint32_t &g, uint4 codes[4])
{
    typedef td_wide_held<WIDTH> H;
    constexpr int N = H::N, last = H::HALVES - 1;
    const uint32_t end = g + (uint32_t)n_blocks;
    H h = {};
    td_wide_block<WIDTH, true>(sh, g, n_all, codes, h);
    for (g++; g < end; g++)
        td_wide_block<WIDTH, false>(sh, g, n_all, codes, h);
    if (H::HALVES == 2)
        td_wide_sum<N>(sh, g - 1, N, h.d[last], h.acc[last]);
    td_wide_store<WIDTH>(job, tile, h);
}

template <typename Job>
__device__ inline void td_wide_consume(const Job &job, const td_wide_shared &sh, int n_tiles,
                                       int n_blocks)
{
    const int n_mine = (n_tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    const uint32_t n_all = (uint32_t)n_mine * (uint32_t)n_blocks;
    uint32_t g = 0;
    uint4 codes[4];
    td_wide_codes(sh, 0, codes);
    td_wide_release(sh, 0);
    for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
        switch (td_wide_width(job.place(tile).n_tokens)) {
        case 32: td_wide_tile<32>(job, sh, tile, n_blocks, n_all, g, codes); break;
        case 64: td_wide_tile<64>(job, sh, tile, n_blocks, n_all, g, codes); break;
        case 96: td_wide_tile<96>(job, sh, tile, n_blocks, n_all, g, codes); break;
        default: td_wide_tile<128>(job, sh, tile, n_blocks, n_all, g, codes); break;
        }
    }
}

/* A block of threads' share of the job's tiles: TD_WIDE_THREADS threads, TD_WIDE_BYTES of dynamic
 * shared memory, any grid. A Job has x, xs, x_stride (of rows that start at multiples of 16 bytes,
 * as w's do), K > 0 and
 *   n_tiles()
 *   place(tile)         -> td_wide_place
 *   row(tile, token)    -> the row of x that is the tile's token, below n_tokens
 *   out(tile)           -> where the tile goes: token(i): that token's first element (bf16 or
 *                          f32), NULL: nowhere, i may be n_tokens and more; n_rows: of w, that
 *                          there are; add: to what stands there (f32) */
template <typename Job> __device__ inline void td_wide_run(const Job &job, unsigned char *dynamic)
{
    const td_wide_shared sh(dynamic);
    const int n_blocks = (job.K + TD_TILE_K - 1) / TD_TILE_K, n_tiles = job.n_tiles();
    if ((int)blockIdx.x >= n_tiles)
        return;
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; i++) {
            td_pipe_init(&sh.full[i], TD_WIDE_FETCHERS);
            td_pipe_init(&sh.free[i], TD_WIDE_SUMMERS / 32);
        }
    __syncthreads();
    if (threadIdx.x >= TD_WIDE_SUMMERS) {
        td_pipe_fewer_registers<TD_WIDE_FETCHER_REGISTERS>();
        td_wide_produce(job, sh, n_tiles, n_blocks);
    } else {
        td_pipe_more_registers<TD_WIDE_SUMMER_REGISTERS>();
        td_wide_consume(job, sh, n_tiles, n_blocks);
    }
}

/* One block of threads to an SM, of an H100; fewer SMs take longer, and that is all. */
#define TD_WIDE_BLOCKS TD_CUDA_SMS

static inline unsigned td_wide_grid(int64_t n_tiles)
{
    return n_tiles < TD_WIDE_BLOCKS ? (unsigned)n_tiles : TD_WIDE_BLOCKS;
}

/* For the choice of a width, which no bit depends on: a tile's time goes with its tokens and
 * something for each block of K. */
static inline int64_t td_wide_cost(int64_t n_tiles, int width)
{
    const int64_t each = 80; /* measured */
    return (n_tiles + TD_WIDE_BLOCKS - 1) / TD_WIDE_BLOCKS * (width + each);
}
#endif
