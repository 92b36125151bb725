/* td_hard.h - what makes tests hard: allocations that fail on demand, memory that ends at a guard
 * page, damaged input. Link td_hard (DEPS td_hard): it wraps malloc, calloc, realloc,
 * aligned_alloc, strdup, strndup and open_memstream in everything that is linked statically. */
#ifndef TD_TESTS_TD_HARD_H
#define TD_TESTS_TD_HARD_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The k-th allocation from now (1: the next) fails, once. 0 disarms. */
void td_fault_arm(long k);
/* Disarms; true if an allocation was made to fail since td_fault_arm(). */
bool td_fault_disarm(void);
/* For cJSON_InitHooks() and other libraries that can be told what to call. */
void *td_fault_malloc(size_t n_bytes);

/* Runs `call` (an expression of type td_status) with its 1st, 2nd, ... allocation failing: each
 * must give `want`; ends when a run needs fewer allocations, which must be TD_OK. `undo` runs after
 * that success. */
#define TD_EACH_ALLOC_FAILS(want, call, undo)                                                      \
    do {                                                                                           \
        for (long k_ = 1;; k_++) {                                                                 \
            td_fault_arm(k_);                                                                      \
            td_status st_ = (call);                                                                \
            if (td_fault_disarm()) {                                                               \
                TD_EQ(want, st_);                                                                  \
                continue;                                                                          \
            }                                                                                      \
            TD_EQ(TD_OK, st_);                                                                     \
            TD_TRUE(k_ > 1);                                                                       \
            break;                                                                                 \
        }                                                                                          \
        undo;                                                                                      \
    } while (0)

/* n bytes copied from src (zeros if NULL) that end where an inaccessible page begins. Free with
 * td_guard_free(). */
void *td_guard_alloc(const void *src, size_t n);
void td_guard_free(void *p, size_t n);

/* A small random number generator, the same everywhere: splitmix64. */
uint64_t td_random(uint64_t *state);
/* Damages bytes[n] in place: flips, overwrites, copies, swaps; the length stays. */
void td_mutate(unsigned char *bytes, size_t n, uint64_t *state);
#endif
