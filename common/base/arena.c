#include "common/base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 16
#define FIRST_BLOCK_BYTES 4096

typedef struct block {
    struct block *next; /* older */
    size_t n_bytes;     /* of data */
    size_t used;
    _Alignas(ALIGN) unsigned char data[];
} block;

/* Blocks as a stack: the newest, and largest, first; the oldest one was made by create(). */
struct td_arena {
    block *newest;
    size_t max_bytes;
    size_t used_bytes; /* handed out, rounded up to ALIGN, over all blocks */
};

static block *block_create(size_t n_bytes, block *next)
{
    block *b = malloc(sizeof(*b) + n_bytes);
    if (b == NULL)
        return NULL;
    b->next = next;
    b->n_bytes = n_bytes;
    b->used = 0;
    return b;
}

td_status td_arena_create(size_t max_bytes, td_arena **out, td_err *err)
{
    if (max_bytes == 0 || max_bytes > SIZE_MAX / 2)
        return td_fail(err, TD_INVALID, "arena: bound of %zu bytes", max_bytes);
    td_arena *arena = calloc(1, sizeof(*arena));
    if (arena == NULL)
        goto fail;
    size_t first = max_bytes < FIRST_BLOCK_BYTES ? max_bytes : FIRST_BLOCK_BYTES;
    arena->newest = block_create(first, NULL);
    if (arena->newest == NULL)
        goto fail;
    arena->max_bytes = max_bytes;
    *out = arena;
    return TD_OK;
fail:
    td_arena_destroy(arena);
    return td_fail(err, TD_NOMEM, "arena: no memory for the first block");
}

void td_arena_destroy(td_arena *arena)
{
    if (arena == NULL)
        return;
    while (arena->newest != NULL) {
        block *b = arena->newest;
        arena->newest = b->next;
        free(b);
    }
    free(arena);
}

void *td_arena_alloc(td_arena *arena, size_t n_bytes)
{
    if (n_bytes > arena->max_bytes)
        return NULL;
    size_t need = n_bytes == 0 ? ALIGN : (n_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (need > arena->max_bytes - arena->used_bytes)
        return NULL;
    block *b = arena->newest;
    if (b->n_bytes - b->used < need) {
        size_t n = 2 * b->n_bytes > need ? 2 * b->n_bytes : need;
        size_t left =
            arena->max_bytes - arena->used_bytes; /* never reserve what may not be handed out */
        b = block_create(n < left ? n : left, b);
        if (b == NULL)
            return NULL;
        arena->newest = b;
    }
    void *p = b->data + b->used;
    b->used += need;
    arena->used_bytes += need;
    return memset(p, 0, need);
}

char *td_arena_strdup(td_arena *arena, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = td_arena_alloc(arena, n);
    return copy == NULL ? NULL : memcpy(copy, text, n);
}

void td_arena_reset(td_arena *arena)
{
    while (arena->newest->next != NULL) {
        block *b = arena->newest;
        arena->newest = b->next;
        free(b);
    }
    arena->newest->used = 0;
    arena->used_bytes = 0;
}

size_t td_arena_used_bytes(const td_arena *arena)
{
    return arena->used_bytes;
}
