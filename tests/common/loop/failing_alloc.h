/* failing_alloc.h - lets the k-th allocation of tandem's own code fail (not of libuv or nghttp2:
 * libuv aborts when some of its own do). Link with td_wrap_alloc(<test>) in CMakeLists.txt. Include
 * in one file of a test program. */
#ifndef TD_TESTS_FAILING_ALLOC_H
#define TD_TESTS_FAILING_ALLOC_H
#include <stddef.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

static long fail_after =
    -1; /* this many allocations succeed, the next one fails; below 0: none fails */
static long n_failures;

static int alloc_fails(void)
{
    if (fail_after < 0 || fail_after-- > 0)
        return 0;
    n_failures++;
    return 1;
}

void *__wrap_malloc(size_t n)
{
    return alloc_fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return alloc_fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return alloc_fails() ? NULL : __real_realloc(p, n);
}
#endif
