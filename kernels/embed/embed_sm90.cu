/* embed_sm90.cu - as many threads to a row as it has 16-byte pieces, up to a block; copies. */
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/embed/embed.h"
}

__global__ void __launch_bounds__(TD_COPY_THREADS) embed_kernel(td_embed_args a, int64_t row_bytes)
{
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= a.T)
        return;
    const int32_t id = a.ids[t];
    const unsigned char *from = NULL;
    if (id >= 0 && id < a.V)
        from = (const unsigned char *)a.table + id * row_bytes;
    td_copy((unsigned char *)a.y + t * row_bytes, from, row_bytes, threadIdx.x, blockDim.x);
}

extern "C" td_status td_embed_cuda(const td_embed_args *a, td_stream *s)
{
    if (!td_embed_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->D == 0)
        return TD_OK;
    const int64_t row_bytes = a->D * (int64_t)td_dtype_bytes(a->act);
    const dim3 block = td_copy_block(row_bytes);
    embed_kernel<<<td_grid(a->T, block.y), block, 0, s->stream>>>(*a, row_bytes);
    return td_cuda_launched(s, "embed");
}
