/* arena.h - one request's memory: many small allocations, freed together. Bounded at creation; not
 * thread-safe. */
#ifndef TD_BASE_ARENA_H
#define TD_BASE_ARENA_H
#include "common/base/status.h"

#include <stddef.h>

typedef struct td_arena td_arena;

td_status td_arena_create(size_t max_bytes, td_arena **out, td_err *err);
void td_arena_destroy(td_arena *arena); /* NULL is fine */
void *td_arena_alloc(td_arena *arena,
                     size_t n_bytes); /* zeroed, 16-byte aligned; NULL past max_bytes */
char *td_arena_strdup(td_arena *arena, const char *text);
void td_arena_reset(td_arena *arena); /* keeps the first block */
size_t td_arena_used_bytes(const td_arena *arena);
#endif
