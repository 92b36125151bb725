/* wgmma_store.cuh - results of wgmma to where they belong: a thread's elements lie scattered over
 * the tile (see wgmma.cuh), so they go through shared memory and leave it in order. */
#ifndef TD_KERNELS_CUDA_WGMMA_STORE_CUH
#define TD_KERNELS_CUDA_WGMMA_STORE_CUH
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/mma.cuh"

template <int R, int BT> struct td_wgmma_results {
    static constexpr int PITCH = R + 4; /* floats to a token: no bank conflicts */
    static constexpr int BYTES = BT * PITCH * (int)sizeof(float);
};

/* The tile to shared memory, element (token, row of w) at token * PITCH + row. acc: D of a product
 * with BT tokens, R rows of w; result: td_wgmma_results::BYTES, which others may still be reading;
 * the block sees it behind its next barrier. */
template <int R, int BT>
__device__ inline void td_wgmma_leave(float *result, const float acc[BT / 2])
{
    const int pitch = td_wgmma_results<R, BT>::PITCH;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < BT / 2; i++) {
        const int r = row + i % 4 / 2 * 8;
        if (R >= 64 || r < R)
            result[(i / 4 * 8 + col + i % 2) * pitch + r] = acc[i];
    }
}

/* The tile's elements to store(token, row of w, value), neighbours along y's rows to neighbouring
 * threads. acc, result: as above. */
template <int R, int BT, int THREADS, typename Store>
__device__ inline void td_wgmma_store(float *result, const float acc[BT / 2], Store store)
{
    const int pitch = td_wgmma_results<R, BT>::PITCH;
    td_wgmma_leave<R, BT>(result, acc);
    __syncthreads();
    for (int i = threadIdx.x; i < BT * R; i += THREADS)
        store(i / R, i % R, result[i / R * pitch + i % R]);
}

/* Elements `row` and row + 8 of a token's row of y, of which n_rows exist; add: to what stands
 * there (f32). */
__device__ inline void td_wgmma_put(td_bf16 *y, int row, int n_rows, int, float v, float v8)
{
    const uint32_t both = td_bf16_pair(v, v8);
    if (row < n_rows)
        y[row] = (td_bf16)both;
    if (row + 8 < n_rows)
        y[row + 8] = (td_bf16)(both >> 16);
}

__device__ inline void td_wgmma_put(float *y, int row, int n_rows, int add, float v, float v8)
{
    if (row < n_rows)
        y[row] = add ? y[row] + v : v;
    if (row + 8 < n_rows)
        y[row + 8] = add ? y[row + 8] + v8 : v8;
}
#endif
