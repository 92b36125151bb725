/* page_crc_sm90.cu - blocks of 256 threads share out a page in chunks. CRC is linear: with x^n for
 * "n zero bits follow" and the start value left out, a message is the sum (XOR) of its words times
 * powers of x modulo the polynomial. So a thread takes a 16-byte piece of every 4096 bytes,
 * coalesced with its neighbours', multiplies what it has by x^(8*4096) (four table look-ups, as
 * many as slicing-by-4 needs) and adds the next; a tree joins the threads, atomic XORs the chunks,
 * in any order. Zeros in front change nothing: pieces are counted from the end, and what stands
 * before the first byte is masked. The start value and the final inversion are one constant per
 * length. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/page_crc/page_crc.h"
}

#define POLY 0x82f63b78u /* reflected: bit 31 is x^0 */
#define THREADS 256
#define WARPS (THREADS / 32)
#define ROUND (THREADS * 16)
#define CHUNK (32 * ROUND) /* bytes of a block */

/* a * b modulo the polynomial; with a constant b, 32 masks and XORs. */
static __host__ __device__ constexpr uint32_t times(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (int i = 31; i >= 0; i--) {
        sum ^= (a >> i) & 1 ? b : 0;
        b = (b >> 1) ^ ((b & 1) ? POLY : 0);
    }
    return sum;
}

static __host__ __device__ constexpr uint32_t x_to_the(uint64_t n)
{
    uint32_t power = 1u << 30, product = 1u << 31; /* x, 1 */
    for (; n > 0; n >>= 1) {
        if (n & 1)
            product = times(product, power);
        power = times(power, power);
    }
    return product;
}

/* v * x^N */
template <uint64_t N> __device__ inline uint32_t shift(uint32_t v)
{
    constexpr uint32_t power = x_to_the(N);
    return times(v, power);
}

/* step[b][v] = (v << 8*b) * x^(8*ROUND): all threads of the block. */
__device__ inline void fill_step(uint32_t step[4][256], uint32_t *bit)
{
    if (threadIdx.x < 32)
        bit[threadIdx.x] = shift<8 * ROUND>(1u << threadIdx.x);
    __syncthreads();
    for (int at = (int)threadIdx.x; at < 1024; at += THREADS) {
        uint32_t sum = 0;
        for (int i = 0; i < 8; i++)
            sum ^= bit[at / 256 * 8 + i] & (0u - ((unsigned)at >> i & 1));
        step[at / 256][at % 256] = sum;
    }
    __syncthreads();
}

__device__ inline uint32_t stepped(const uint32_t step[4][256], uint32_t v)
{
    return step[0][v & 255] ^ step[1][(v >> 8) & 255] ^ step[2][(v >> 16) & 255] ^ step[3][v >> 24];
}

/* A word at address `at` without its bytes before `start`. */
__device__ inline uint32_t masked(uint32_t word, uintptr_t at, uintptr_t start)
{
    if (at >= start)
        return word;
    return start - at >= 4 ? 0 : word & (0xffffffffu << (8 * (unsigned)(start - at)));
}

typedef struct {
    uintptr_t begin, end; /* multiples of 16 */
    uintptr_t start;      /* bytes before it do not count: some of a page's first piece */
} range;

/* This thread's 16 bytes of the round-th round from the end, 1, 2, ..; zeros where there is none.
 */
__device__ inline uint4 piece(range r, int round)
{
    uint4 v = make_uint4(0, 0, 0, 0);
    const intptr_t back = (intptr_t)round * ROUND - (intptr_t)threadIdx.x * 16;
    if (round == 0 || back > (intptr_t)(r.end - r.begin))
        return v;
    const uintptr_t at = r.end - (uintptr_t)back;
    v = *(const uint4 *)at;
    if (at < r.start) {
        v.x = masked(v.x, at, r.start);
        v.y = masked(v.y, at + 4, r.start);
        v.z = masked(v.z, at + 8, r.start);
        v.w = masked(v.w, at + 12, r.start);
    }
    return v;
}

/* This thread's pieces: one number, as if they were the last 16 bytes. */
__device__ inline uint32_t sum_of_thread(const uint32_t step[4][256], range r)
{
    const int n_rounds = (int)((r.end - r.begin + ROUND - 1) / ROUND);
    uint32_t a = 0, b = 0, c = 0, d = 0;
    uint4 next = piece(r, n_rounds);
    for (int round = n_rounds; round > 0; round--) {
        const uint4 v = next;
        next = piece(r, round - 1); /* on its way during the look-ups */
        a = stepped(step, a) ^ v.x;
        b = stepped(step, b) ^ v.y;
        c = stepped(step, c) ^ v.z;
        d = stepped(step, d) ^ v.w;
    }
    return shift<32>(shift<32>(shift<32>(a) ^ b) ^ c) ^ d;
}

/* Lane 0: what lanes 0 .. LANES - 1 have as one message, N bits to a lane; all lanes take part. */
template <uint64_t N, int LANES, int NEXT = 1> __device__ inline uint32_t join(uint32_t v)
{
    if constexpr (NEXT < LANES) {
        const uint32_t next = __shfl_down_sync(0xffffffffu, v, NEXT);
        return join<2 * N, LANES, 2 * NEXT>(shift<N>(v) ^ next);
    } else {
        return v;
    }
}

/* v * x^(8*CHUNK*n) */
__device__ inline uint32_t shift_chunks(uint32_t v, int n)
{
    constexpr uint32_t chunk = x_to_the(8 * CHUNK); /* computed by the compiler */
    uint32_t power = chunk;
    for (; n > 0; n >>= 1) {
        if (n & 1)
            v = times(v, power);
        if (n > 1)
            power = times(power, power);
    }
    return v;
}

/* crc holds the start values; chunks: blocks of a page, the last chunk's first. */
__global__ void __launch_bounds__(THREADS) page_crc_kernel(td_page_crc_args a, int chunks)
{
    __shared__ uint32_t step[4][256], bit[32], part[WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t i = blockIdx.x / chunks;
    const int behind = (int)(blockIdx.x % chunks);
    const uintptr_t start =
        (uintptr_t)a.base + (uint64_t)a.pages[i] * a.page_stride + (uintptr_t)a.offset;
    const uintptr_t stop = start + (uintptr_t)a.n_bytes;
    const uintptr_t first = start / 16 * 16, last = stop / 16 * 16; /* 0..15 bytes behind it */
    const uintptr_t skip = (uintptr_t)behind * CHUNK;
    if (behind > 0 && last - first <= skip)
        return; /* the whole block */
    const uintptr_t end = last - skip;
    const range r = {end - first > CHUNK ? end - CHUNK : first, end, start};
    fill_step(step, bit);
    uint32_t v = join<128, 32>(sum_of_thread(step, r));
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    if (warp > 0)
        return;
    v = join<128 * 32, WARPS>(lane < WARPS ? part[lane] : 0);
    if (lane > 0)
        return;
    v = shift_chunks(shift<32>(v), behind);
    for (uintptr_t at = last > start ? last : start; at < stop; at++)
        v = shift<8>(v ^ (behind == 0 ? *(const unsigned char *)at : 0));
    atomicXor(&a.crc[i], v);
}

__global__ void __launch_bounds__(THREADS)
    page_crc_start_kernel(uint32_t *crc, int n, uint32_t value)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        crc[i] = value;
}

extern "C" td_status td_page_crc_cuda(const td_page_crc_args *a, td_stream *s)
{
    if (!td_page_crc_valid(a))
        return TD_BAD_SHAPE;
    if (a->n == 0)
        return TD_OK;
    const uint32_t start = ~times(x_to_the(8 * a->n_bytes), 0xffffffffu);
    const int chunks = (int)(a->n_bytes / CHUNK) + 1;
    page_crc_start_kernel<<<td_grid(a->n, THREADS), THREADS, 0, s->stream>>>(a->crc, a->n, start);
    if (a->n_bytes > 0)
        page_crc_kernel<<<(unsigned)a->n *(unsigned)chunks, THREADS, 0, s->stream>>>(*a, chunks);
    return td_cuda_launched(s, "page_crc");
}
