/* index_key_write_sm90.cu - a warp per key, as hadamard_quant; an f32 cache is a copy. */
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/index_key_write/index_key_write.h"
}

#define WARPS 4 /* keys of a block */

__global__ void __launch_bounds__(WARPS * 32) index_key_write_kernel(td_index_key_write_args a)
{
    const int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const int32_t slot = t < a.T ? a.slots[t] : -1;
    if (slot < 0)
        return; /* the whole warp: warps do not meet */
    unsigned char *page = a.kv.plane + (uint64_t)(slot / a.kv.page_rows) * a.kv.page_stride;
    const int64_t row = slot % a.kv.page_rows;
    if (a.kv.dtype == 2) {
        const int64_t row_bytes = 4 * (int64_t)a.dim;
        td_copy(page + row * row_bytes, (const float *)a.k + t * a.dim, row_bytes, lane, 32);
        return;
    }
    const td_bf16 *k = (const td_bf16 *)a.k + t * 128;
    const td_group z = td_group_hadamard(td_group_load(k, 0, 128));
    const float scale = td_group_scale(z, 1);
    td_group_codes(z, scale, 4, page + row * 128 + lane * 4);
    if (lane == 0) /* behind all codes of the page; page_stride may be any number */
        memcpy(page + (int64_t)a.kv.page_rows * 128 + row * 4, &scale, sizeof(scale));
}

extern "C" td_status td_index_key_write_cuda(const td_index_key_write_args *a, td_stream *s)
{
    if (!td_index_key_write_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    index_key_write_kernel<<<td_grid(a->T, WARPS), WARPS * 32, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "index_key_write");
}
