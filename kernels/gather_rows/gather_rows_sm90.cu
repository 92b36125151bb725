/* gather_rows_sm90.cu - as many threads to a row as it has 16-byte pieces, up to a block; copies.
 * Rows of a few bytes share a block. */
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/gather_rows/gather_rows.h"
}

__global__ void __launch_bounds__(TD_COPY_THREADS) gather_rows_kernel(td_gather_rows_args a)
{
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= a.T)
        return;
    const int32_t row = a.rows[t];
    const unsigned char *from =
        row < 0 ? NULL : (const unsigned char *)a.x + row * a.x_stride_bytes;
    td_copy((unsigned char *)a.y + t * a.y_stride_bytes, from, a.row_bytes, threadIdx.x,
            blockDim.x);
}

extern "C" td_status td_gather_rows_cuda(const td_gather_rows_args *a, td_stream *s)
{
    if (!td_gather_rows_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->row_bytes == 0)
        return TD_OK;
    const dim3 block = td_copy_block(a->row_bytes);
    gather_rows_kernel<<<td_grid(a->T, block.y), block, 0, s->stream>>>(*a);
    return td_cuda_launched(s, "gather_rows");
}
