/* random.h - counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a
 * function of (seed, position, purpose): there is no state to carry, and neither drafts nor batch
 * nor worker change what a position draws. */
#ifndef TD_KERNELS_RANDOM_H
#define TD_KERNELS_RANDOM_H
#include "kernels/fn.h"

#include <stdint.h>

/* What a number is for: different purposes at one position are independent. */
typedef enum {
    TD_RANDOM_TOKEN = 0,  /* the token at this absolute position */
    TD_RANDOM_TEST = 1,   /* tests and benchmarks */
    TD_RANDOM_WEIGHT = 2, /* weights of a slice (model/slice.h) */
} td_random_purpose;

typedef struct {
    uint32_t x[4];
} td_random_words;

TD_FN td_random_words td_philox4x32_10(td_random_words counter, uint32_t key0, uint32_t key1)
{
    td_random_words c = counter;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c.x[0], p1 = (uint64_t)0xcd9e8d57u * c.x[2];
        td_random_words next = {{(uint32_t)(p1 >> 32) ^ c.x[1] ^ key0, (uint32_t)p1,
                                 (uint32_t)(p0 >> 32) ^ c.x[3] ^ key1, (uint32_t)p0}};
        c = next;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return c;
}

TD_FN td_random_words td_random(uint64_t seed, int64_t position, td_random_purpose purpose)
{
    td_random_words counter = {
        {(uint32_t)(uint64_t)position, (uint32_t)((uint64_t)position >> 32), (uint32_t)purpose, 0}};
    return td_philox4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

/* 64 uniform bits. */
TD_FN uint64_t td_random_u64(uint64_t seed, int64_t position, td_random_purpose purpose)
{
    td_random_words w = td_random(seed, position, purpose);
    return (uint64_t)w.x[1] << 32 | w.x[0];
}

/* floor( r * n / 2^64 ): a uniform integer below n, from 64 uniform bits. */
TD_FN uint64_t td_random_below(uint64_t r, uint64_t n)
{
    uint64_t r0 = r & 0xffffffffu, r1 = r >> 32, n0 = n & 0xffffffffu, n1 = n >> 32;
    uint64_t mid = r1 * n0 + ((r0 * n0) >> 32);
    uint64_t low = r0 * n1 + (mid & 0xffffffffu);
    return r1 * n1 + (mid >> 32) + (low >> 32);
}
#endif
