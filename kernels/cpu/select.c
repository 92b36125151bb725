/* select.c - radix selection in digits of 11, 11 and 10 bits from the top; after each digit only
 * the keys of the bin that holds the k-th largest go on. */
#include "kernels/cpu/select.h"

#include <string.h>

/* Order-preserving map to unsigned. */
static uint32_t rank_of(int32_t key)
{
    return (uint32_t)key ^ 0x80000000u;
}

/* The bin of digit (shift, mask) that holds the k-th largest; *above: keys in higher bins. Two
 * histograms take turns, so that runs of equal digits do not wait for each other. */
static uint32_t find_bin(const int32_t *keys, int64_t n, int64_t k, int shift, uint32_t *histograms,
                         int64_t *above)
{
    uint32_t *even = histograms, *odd = histograms + TD_SELECT_BINS;
    memset(histograms, 0, 2 * TD_SELECT_BINS * sizeof(*histograms));
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) {
        even[rank_of(keys[i]) >> shift & (TD_SELECT_BINS - 1)]++;
        odd[rank_of(keys[i + 1]) >> shift & (TD_SELECT_BINS - 1)]++;
    }
    if (i < n)
        even[rank_of(keys[i]) >> shift & (TD_SELECT_BINS - 1)]++;
    int64_t seen = 0;
    uint32_t bin = TD_SELECT_BINS - 1;
    while (seen + even[bin] + odd[bin] < k) {
        seen += even[bin] + odd[bin];
        bin--;
    }
    *above = seen;
    return bin;
}

int64_t td_select_largest(const int32_t *keys, int64_t n, int64_t k, int32_t *candidates,
                          uint32_t *histograms, int32_t *threshold)
{
    static const int shifts[] = {21, 10, 0}; /* the last digit repeats one known bit */
    uint32_t prefix = 0;
    for (int d = 0; d < 3; d++) {
        int64_t above, kept = 0;
        uint32_t bin = find_bin(keys, n, k, shifts[d], histograms, &above);
        k -= above;
        prefix |= bin << shifts[d];
        if (d == 2)
            break;
        for (int64_t i = 0; i < n; i++) {
            int32_t key = keys[i];
            candidates[kept] = key; /* in place from the second digit on: kept <= i */
            kept += (rank_of(key) >> shifts[d] & (TD_SELECT_BINS - 1)) == bin;
        }
        keys = candidates;
        n = kept;
    }
    *threshold = (int32_t)(prefix ^ 0x80000000u);
    return k;
}
