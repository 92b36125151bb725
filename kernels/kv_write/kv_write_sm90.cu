/* kv_write_sm90.cu - a block of 4 warps per row: a warp quantises a group of 128 in an fp8 cache
 * (V3.2 has four), then all copy the rotated dims; other caches take the row as it is. */
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/group.cuh"
extern "C" {
#include "kernels/kv_write/kv_write.h"
}

#define WARPS 4

/* Codes, scales, rotated dims. R may be odd: a row's scales stand at any address. */
__device__ inline void write_fp8(unsigned char *row, const td_bf16 *c, int C, int R)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_groups = C / TD_QUANT_GROUP;
    for (int g = warp; g < n_groups; g += WARPS) {
        const td_group z = td_group_load(c, g, C);
        const float scale = td_group_scale(z, 1);
        td_group_codes(z, scale, 4, row + g * TD_QUANT_GROUP + lane * 4);
        if (lane == 0)
            memcpy(row + C + 4 * g, &scale, sizeof(scale));
    }
    td_copy(row + C + 4 * n_groups, c + C, 2 * (int64_t)R, threadIdx.x, WARPS * 32);
}

__global__ void __launch_bounds__(WARPS * 32) kv_write_kernel(td_kv_write_args a)
{
    const int64_t t = blockIdx.x;
    const int32_t slot = a.slots[t];
    if (slot < 0)
        return;
    const int64_t dims = a.C + a.R, row = slot % a.kv.page_rows;
    unsigned char *page = a.kv.plane + (uint64_t)(slot / a.kv.page_rows) * a.kv.page_stride;
    if (a.kv.dtype == 0) {
        const int64_t row_bytes = a.C + a.C / TD_QUANT_GROUP * 4 + 2 * (int64_t)a.R;
        write_fp8(page + row * row_bytes, (const td_bf16 *)a.c + t * a.c_stride, a.C, a.R);
        return;
    }
    const int64_t size = a.kv.dtype == 1 ? 2 : 4;
    td_copy(page + row * dims * size, (const unsigned char *)a.c + t * a.c_stride * size,
            dims * size, threadIdx.x, WARPS * 32);
}

extern "C" td_status td_kv_write_cuda(const td_kv_write_args *a, td_stream *s)
{
    if (!td_kv_write_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    kv_write_kernel<<<(unsigned)a->T, WARPS * 32, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "kv_write");
}
