#include "tests/common/base/td_hard.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t n);
FILE *__real_open_memstream(char **text, size_t *n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t n);
FILE *__wrap_open_memstream(char **text, size_t *n);

static atomic_long countdown; /* 0: disarmed; 1: the next one fails */
static atomic_bool struck;

static bool fails_now(void)
{
    long left = atomic_load(&countdown);
    while (left > 0 && !atomic_compare_exchange_weak(&countdown, &left, left - 1))
        ;
    if (left == 1)
        atomic_store(&struck, true);
    return left == 1;
}

void *__wrap_malloc(size_t n)
{
    return fails_now() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails_now() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return fails_now() ? NULL : __real_aligned_alloc(align, n);
}

char *__wrap_strdup(const char *text)
{
    return fails_now() ? NULL : __real_strdup(text);
}

char *__wrap_strndup(const char *text, size_t n)
{
    return fails_now() ? NULL : __real_strndup(text, n);
}

FILE *__wrap_open_memstream(char **text, size_t *n)
{
    return fails_now() ? NULL : __real_open_memstream(text, n);
}

void td_fault_arm(long k)
{
    atomic_store(&struck, false);
    atomic_store(&countdown, k);
}

bool td_fault_disarm(void)
{
    atomic_store(&countdown, 0);
    return atomic_load(&struck);
}

void *td_fault_malloc(size_t n_bytes)
{
    return __wrap_malloc(n_bytes);
}

static size_t mapped_bytes(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (n + page - 1) / page * page + page;
}

void *td_guard_alloc(const void *src, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), total = mapped_bytes(n);
    char *map = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + total - page, page, PROT_NONE) != 0) {
        perror("td_guard_alloc");
        abort();
    }
    char *p = map + total - page - n;
    if (src != NULL && n > 0)
        memcpy(p, src, n);
    return p;
}

void td_guard_free(void *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), total = mapped_bytes(n);
    munmap((char *)p + n + page - total, total);
}

uint64_t td_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

void td_mutate(unsigned char *bytes, size_t n, uint64_t *state)
{
    if (n == 0)
        return;
    for (uint64_t times = 1 + td_random(state) % 4; times > 0; times--) {
        size_t a = td_random(state) % n, b = td_random(state) % n;
        size_t len = 1 + td_random(state) % 16;
        if (len > n - (a > b ? a : b))
            len = n - (a > b ? a : b);
        unsigned char old = bytes[a];
        switch (td_random(state) % 5) {
        case 0: bytes[a] ^= (unsigned char)(1u << td_random(state) % 8); break;
        case 1: bytes[a] = (unsigned char)td_random(state); break;
        case 2: memmove(bytes + a, bytes + b, len); break;
        case 3:
            bytes[a] = bytes[b];
            bytes[b] = old;
            break;
        default: bytes[a] = "\"\\{}[],:/* \n-9e"[td_random(state) % 15]; break;
        }
    }
}
