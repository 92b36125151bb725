/* fail_alloc.h - makes the k-th allocation of the code under test fail. For one source file per
 * test program, linked with --wrap=calloc and --wrap=aligned_alloc. */
#ifndef TD_TESTS_COMMON_KV_FAIL_ALLOC_H
#define TD_TESTS_COMMON_KV_FAIL_ALLOC_H
#include <stddef.h>

static int fail_alloc_in; /* 0: never; 1: the next one */

void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
    return fail_alloc_in > 0 && --fail_alloc_in == 0 ? NULL : __real_calloc(n, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return fail_alloc_in > 0 && --fail_alloc_in == 0 ? NULL : __real_aligned_alloc(align, size);
}
#endif
