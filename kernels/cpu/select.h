/* select.h - the k-th largest of many sort keys (lanes.h, vkey), exactly; shared by topk and
 * sample. */
#ifndef TD_KERNELS_CPU_SELECT_H
#define TD_KERNELS_CPU_SELECT_H
#include <stdint.h>

#define TD_SELECT_BINS 2048

/* Scratch: candidates [n], histograms [2 * TD_SELECT_BINS]. keys: [n], left alone; 1 <= k <= n.
 * *threshold: the k-th largest key; returns how many keys equal to it are among the k largest. */
int64_t td_select_largest(const int32_t *keys, int64_t n, int64_t k, int32_t *candidates,
                          uint32_t *histograms, int32_t *threshold);
#endif
