/* swizzle.cuh - operands of wgmma.cuh's products in shared memory: rows of 128 bytes (a block of
 * K), K along the row ("K-major"), eight rows to an atom of 1024 bytes that starts at a multiple of
 * 1024, atoms of neighbouring rows side by side. Within an atom the eight 16-byte pieces of row r
 * stand in order piece ^ (r % 8) ("128-byte swizzle"): rows and columns are both free of bank
 * conflicts. */
#ifndef TD_KERNELS_CUDA_SWIZZLE_CUH
#define TD_KERNELS_CUDA_SWIZZLE_CUH
#include "kernels/cuda/cuda.cuh"

#define TD_SWIZZLE_ROW 128   /* bytes */
#define TD_SWIZZLE_ATOM 1024 /* bytes: eight rows */

/* Where piece (0..7) of a row stands, in bytes from the operand's first atom. */
__device__ inline int td_swizzle(int row, int piece)
{
    return row * TD_SWIZZLE_ROW + (piece ^ (row & 7)) * 16;
}

/* The descriptor (PTX ISA, matrix descriptor of wgmma) of an operand whose first atom is at
 * `shared`. Addresses and distances in units of 16 bytes: bits 0-13 the start, 16-29 the leading
 * distance (not used with this layout), 32-45 the distance of atoms, 62-63 the swizzle, 1: 128
 * bytes. To step along K by 32 elements add TD_SWIZZLE_K32: the swizzle is a function of the
 * address. */
__device__ inline uint64_t td_wgmma_desc(const void *shared)
{
    const uint64_t start = ((uint32_t)__cvta_generic_to_shared(shared) & 0x3ffff) >> 4;
    return start | (uint64_t)1 << 16 | (uint64_t)(TD_SWIZZLE_ATOM >> 4) << 32 | (uint64_t)1 << 62;
}

#define TD_SWIZZLE_K32 (32 >> 4)
#endif
