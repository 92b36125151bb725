/* rope_sm90.cu - a thread per pair; the pairs of a row's heads stand side by side in blocks, a head
 * of 64 dims to a warp. Interleaved pairs are loaded and stored as one piece. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/rope/rope.h"
}

#define THREADS 256

template <typename T> struct alignas(2 * sizeof(T)) pair_of {
    T first, second;
};

template <typename T> __device__ inline void rotate(T *x1, T *x2, float c, float s)
{
    const float a = td_load(x1), b = td_load(x2);
    td_store(x1, a * c - b * s);
    td_store(x2, a * s + b * c);
}

/* chunks: blocks of a row. */
template <typename T>
__global__ void __launch_bounds__(THREADS) rope_kernel(td_rope_args a, int chunks)
{
    const int64_t t = blockIdx.x / chunks;
    const int half = a.R / 2, at = (int)(blockIdx.x % chunks) * (int)blockDim.x + (int)threadIdx.x;
    const int h = at / half, i = at % half;
    const int32_t position = a.positions[t];
    if (h >= a.heads || position < 0 || position >= a.max_pos)
        return;
    const float *cos_sin = a.cos_sin + (int64_t)position * a.R + 2 * i;
    T *head = (T *)a.x + t * a.row_stride + h * a.head_stride;
    if (!a.interleaved) {
        rotate(head + i, head + i + half, cos_sin[0], cos_sin[1]);
        return;
    }
    T *p = head + 2 * i;
    if ((uintptr_t)p % sizeof(pair_of<T>) != 0) {
        rotate(p, p + 1, cos_sin[0], cos_sin[1]);
        return;
    }
    pair_of<T> z = *(const pair_of<T> *)p;
    rotate(&z.first, &z.second, cos_sin[0], cos_sin[1]);
    *(pair_of<T> *)p = z;
}

extern "C" td_status td_rope_cuda(const td_rope_args *a, td_stream *s)
{
    if (!td_rope_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->heads == 0 || a->R == 0)
        return TD_OK;
    const int pairs = a->heads * (a->R / 2); /* of a row */
    const unsigned block = pairs < THREADS ? (unsigned)td_ceil_div(pairs, 32) * 32 : THREADS;
    const int chunks = td_ceil_div(pairs, (int)block);
    const unsigned grid = (unsigned)a->T * (unsigned)chunks;
    if (a->act == TD_F32)
        rope_kernel<float><<<grid, block, 0, s->stream>>>(*a, chunks);
    else
        rope_kernel<td_bf16><<<grid, block, 0, s->stream>>>(*a, chunks);
    return td_cuda_launched(s, "rope");
}
