/* select.c - radix selection, digit by digit; after each digit only the keys of the bin that holds
 * the k-th largest go on. */
#include "kernels/cpu/select.h"

#include <string.h>

/* The digit of the k-th largest; *above: keys with a larger one. Two histograms take turns, so that
 * runs of equal digits do not wait for each other. */
static uint32_t find_digit(const int32_t *keys, int64_t n, int64_t k, int shift,
                           uint32_t *histograms, int64_t *above)
{
    uint32_t *even = histograms, *odd = histograms + TD_SELECT_BINS;
    memset(histograms, 0, 2 * TD_SELECT_BINS * sizeof(*histograms));
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) {
        even[td_select_digit(keys[i], shift)]++;
        odd[td_select_digit(keys[i + 1], shift)]++;
    }
    if (i < n)
        even[td_select_digit(keys[i], shift)]++;
    int64_t seen = 0;
    uint32_t digit = TD_SELECT_BINS - 1;
    while (seen + even[digit] + odd[digit] < k) {
        seen += even[digit] + odd[digit];
        digit--;
    }
    *above = seen;
    return digit;
}

int64_t td_select_largest(const int32_t *keys, int64_t n, int64_t k, int32_t *candidates,
                          uint32_t *histograms, int32_t *threshold)
{
    for (int d = 0; d < TD_SELECT_DIGITS; d++) {
        const int shift = td_select_shifts[d];
        int64_t above, kept = 0;
        uint32_t digit = find_digit(keys, n, k, shift, histograms, &above);
        k -= above;
        for (int64_t i = 0; i < n; i++) {
            int32_t key = keys[i];
            candidates[kept] = key; /* in place from the second digit on: kept <= i */
            kept += td_select_digit(key, shift) == digit;
        }
        keys = candidates;
        n = kept;
    }
    *threshold = keys[0]; /* all that are left are equal */
    return k;
}
