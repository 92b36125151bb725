/* fn.h - how the small functions that every form of an operation shares are declared: plain inline
 * C, and for the CUDA compiler callable on both sides. */
#ifndef TD_KERNELS_FN_H
#define TD_KERNELS_FN_H
#ifdef __CUDACC__
#define TD_FN static inline __host__ __device__
#else
#define TD_FN static inline
#endif
#endif
