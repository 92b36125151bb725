/* wgmma.cuh - Hopper's tensor-core products of a warpgroup (4 warps): D[64][N] (+)= A[64][16]
 * B[N][16]^T of f16 or bf16 with f32 results, A in registers, B in shared memory as swizzle.cuh
 * lays it out. Warp w of the group holds rows 16w .. 16w + 15 of D; with g = lane / 4 and
 * q = lane % 4: d[4j] and d[4j + 1] are row 16w + g, columns 8j + 2q and 8j + 2q + 1; d[4j + 2] and
 * d[4j + 3] row 16w + 8 + g, the same columns. The products run beside the threads:
 * td_wgmma_begin(), products,
 * td_wgmma_commit(), td_wgmma_wait(), td_wgmma_hold() on what they gave; d must not be touched in
 * between. Every warp of the group must come along, with the same arguments. Products are exact,
 * sums are kept as f32 keeps them (but cut where f32 rounds). Rows and columns do not touch each
 * other. */
#ifndef TD_KERNELS_CUDA_WGMMA_CUH
#define TD_KERNELS_CUDA_WGMMA_CUH
#include "kernels/cuda/cuda.cuh"

/* What this thread wrote to shared memory (copies that it waited for, too) is there for products
 * that start behind the next barrier. */
__device__ inline void td_wgmma_publish()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Before the first product, and after registers of D were written. */
__device__ inline void td_wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Closes a group of products. */
__device__ inline void td_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits for all but the last PENDING groups. */
template <int PENDING> __device__ inline void td_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* The compiler keeps its reads of d behind this, and its writes before. */
template <int N> __device__ inline void td_wgmma_hold(float *d)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* The same for A in registers: what is in a was computed before this. */
template <int N> __device__ inline void td_wgmma_hold(uint32_t *a)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i])::"memory");
}

/* One product, d[N / 2]; add 0: D starts as zero. A's registers: a[0]: row 16w + g, k 2q and 2q + 1
 * (the lower half first); a[1]: row 16w + g + 8; a[2], a[3]: the same rows, k 2q + 8 and 2q + 9.
 * They must not be touched before the product was waited for, either. b: td_wgmma_desc(). */
template <int N>
__device__ inline void td_wgmma_f16(float *d, const uint32_t *a, uint64_t b, int add);
template <int N>
__device__ inline void td_wgmma_bf16(float *d, const uint32_t *a, uint64_t b, int add);

#define TD_WGMMA_FORM_8(TYPE)                                                                      \
    template <>                                                                                    \
    __device__ inline void td_wgmma_##TYPE<8>(float *d, const uint32_t *a, uint64_t b, int add)    \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %9, 0; "                                       \
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32." #TYPE "." #TYPE " {"             \
                     "%0, %1, %2, %3}, "                                                           \
                     "{%4, %5, %6, %7}, %8, p, 1, 1, 0;}"                                          \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
    }

#define TD_WGMMA_FORM_16(TYPE)                                                                     \
    template <>                                                                                    \
    __device__ inline void td_wgmma_##TYPE<16>(float *d, const uint32_t *a, uint64_t b, int add)   \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %13, 0; "                                      \
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32." #TYPE "." #TYPE " {"            \
                     "%0, %1, %2, %3, %4, %5, %6, %7}, "                                           \
                     "{%8, %9, %10, %11}, %12, p, 1, 1, 0;}"                                       \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),     \
                       "+f"(d[6]), "+f"(d[7])                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
    }

#define TD_WGMMA_FORM_32(TYPE)                                                                     \
    template <>                                                                                    \
    __device__ inline void td_wgmma_##TYPE<32>(float *d, const uint32_t *a, uint64_t b, int add)   \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %21, 0; "                                      \
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32." #TYPE "." #TYPE " {"            \
                     "%0, %1, %2, %3, %4, %5, %6, %7, "                                            \
                     "%8, %9, %10, %11, %12, %13, %14, %15}, "                                     \
                     "{%16, %17, %18, %19}, %20, p, 1, 1, 0;}"                                     \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),     \
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),   \
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
    }

#define TD_WGMMA_FORM_48(TYPE)                                                                     \
    template <>                                                                                    \
    __device__ inline void td_wgmma_##TYPE<48>(float *d, const uint32_t *a, uint64_t b, int add)   \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %29, 0; "                                      \
                     "wgmma.mma_async.sync.aligned.m64n48k16.f32." #TYPE "." #TYPE " {"            \
                     "%0, %1, %2, %3, %4, %5, %6, %7, "                                            \
                     "%8, %9, %10, %11, %12, %13, %14, %15, "                                      \
                     "%16, %17, %18, %19, %20, %21, %22, %23}, "                                   \
                     "{%24, %25, %26, %27}, %28, p, 1, 1, 0;}"                                     \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),     \
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),   \
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),            \
                       "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),            \
                       "+f"(d[22]), "+f"(d[23])                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
    }

#define TD_WGMMA_FORM_64(TYPE)                                                                     \
    template <>                                                                                    \
    __device__ inline void td_wgmma_##TYPE<64>(float *d, const uint32_t *a, uint64_t b, int add)   \
    {                                                                                              \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; "                                      \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." #TYPE "." #TYPE " {"            \
                     "%0, %1, %2, %3, %4, %5, %6, %7, "                                            \
                     "%8, %9, %10, %11, %12, %13, %14, %15, "                                      \
                     "%16, %17, %18, %19, %20, %21, %22, %23, "                                    \
                     "%24, %25, %26, %27, %28, %29, %30, %31}, "                                   \
                     "{%32, %33, %34, %35}, %36, p, 1, 1, 0;}"                                     \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),     \
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),   \
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),            \
                       "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),            \
                       "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]),            \
                       "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])             \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
    }

#define TD_WGMMA_FORM_128(TYPE)                                                                    \
    template <>                                                                                    \
    __device__ inline void td_wgmma_##TYPE<128>(float *d, const uint32_t *a, uint64_t b, int add)  \
    {                                                                                              \
        asm volatile(                                                                              \
            "{.reg .pred p; setp.ne.b32 p, %69, 0; "                                               \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." #TYPE "." #TYPE " {"                    \
            "%0, %1, %2, %3, %4, %5, %6, %7, "                                                     \
            "%8, %9, %10, %11, %12, %13, %14, %15, "                                               \
            "%16, %17, %18, %19, %20, %21, %22, %23, "                                             \
            "%24, %25, %26, %27, %28, %29, %30, %31, "                                             \
            "%32, %33, %34, %35, %36, %37, %38, %39, "                                             \
            "%40, %41, %42, %43, %44, %45, %46, %47, "                                             \
            "%48, %49, %50, %51, %52, %53, %54, %55, "                                             \
            "%56, %57, %58, %59, %60, %61, %62, %63}, "                                            \
            "{%64, %65, %66, %67}, %68, p, 1, 1, 0;}"                                              \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),  \
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),           \
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),        \
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),        \
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),        \
              "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),        \
              "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),        \
              "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),        \
              "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),        \
              "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),        \
              "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                                                \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                       \
    }

TD_WGMMA_FORM_8(f16)
TD_WGMMA_FORM_16(f16)
TD_WGMMA_FORM_32(f16)
TD_WGMMA_FORM_48(f16)
TD_WGMMA_FORM_64(f16)
TD_WGMMA_FORM_128(f16)
TD_WGMMA_FORM_16(bf16)
TD_WGMMA_FORM_32(bf16)
TD_WGMMA_FORM_64(bf16)
TD_WGMMA_FORM_128(bf16)

#endif
