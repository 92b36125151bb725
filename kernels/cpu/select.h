/* select.h - the k-th largest of many sort keys (lanes.h, vkey), exactly; shared by topk and
 * sample. */
#ifndef TD_KERNELS_CPU_SELECT_H
#define TD_KERNELS_CPU_SELECT_H
#include <stdint.h>

#define TD_SELECT_BINS 2048
#define TD_SELECT_DIGITS 3

/* Digits of 11 bits from the top; the last repeats one bit of the one before it. */
static const int td_select_shifts[TD_SELECT_DIGITS] = {21, 10, 0};

/* The key's digit at `shift`, larger for larger keys. */
static inline uint32_t td_select_digit(int32_t key, int shift)
{
    return ((uint32_t)key ^ 0x80000000u) >> shift & (TD_SELECT_BINS - 1);
}

/* Scratch: candidates [n], histograms [2 * TD_SELECT_BINS]. keys: [n], left alone; 1 <= k <= n.
 * *threshold: the k-th largest key; returns how many keys equal to it are among the k largest. */
int64_t td_select_largest(const int32_t *keys, int64_t n, int64_t k, int32_t *candidates,
                          uint32_t *histograms, int32_t *threshold);
#endif
