#include "model/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

td_status td_tok_strings_init(td_tok_strings *s, uint32_t max_n, size_t max_bytes)
{
    s->bytes = malloc(max_bytes + 1);
    s->at = malloc(((size_t)max_n + 1) * sizeof(*s->at));
    if (s->bytes == NULL || s->at == NULL)
        return TD_NOMEM;
    s->at[0] = 0;
    s->n = 0;
    return TD_OK;
}

void td_tok_strings_add(td_tok_strings *s, const void *bytes, size_t n)
{
    memcpy(s->bytes + s->at[s->n], bytes, n);
    s->at[s->n + 1] = s->at[s->n] + (uint32_t)n;
    s->n++;
}

void td_tok_strings_fini(td_tok_strings *s)
{
    free(s->bytes);
    free(s->at);
}

/* Eight bytes a step; tables are made from a file that the operator chose, so it need not resist
 * attacks. */
static uint64_t hash(const uint8_t *p, size_t n)
{
    uint64_t h = n * 0x9e3779b97f4a7c15u, word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        h = (h ^ word) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    word = 0;
    for (size_t i = 0; i < n; i++)
        word |= (uint64_t)p[i] << (8 * i);
    h = (h ^ word) * 0xff51afd7ed558ccdu;
    h ^= h >> 29;
    h *= 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 32;
}

td_status td_tok_index_init(td_tok_index *index, uint32_t max_n)
{
    uint32_t n_slots = 16;
    while (n_slots < 2 * max_n)
        n_slots *= 2;
    index->slots = malloc(n_slots * sizeof(*index->slots));
    if (index->slots == NULL)
        return TD_NOMEM;
    index->mask = n_slots - 1;
    for (uint32_t i = 0; i < n_slots; i++)
        index->slots[i].id = TD_TOK_NONE;
    return TD_OK;
}

/* The slot that holds these bytes, or the free one where they would go. */
static struct td_tok_slot *probe(const td_tok_index *index, const td_tok_strings *s,
                                 const void *bytes, size_t n, uint32_t *tag)
{
    uint64_t h = hash(bytes, n);
    *tag = (uint32_t)(h >> 32);
    for (uint32_t i = (uint32_t)h & index->mask;; i = (i + 1) & index->mask) {
        struct td_tok_slot *slot = &index->slots[i];
        if (slot->id == TD_TOK_NONE)
            return slot;
        if (slot->tag != *tag)
            continue;
        size_t n_there;
        const uint8_t *there = td_tok_string(s, slot->id, &n_there);
        if (n_there == n && memcmp(there, bytes, n) == 0)
            return slot;
    }
}

uint32_t td_tok_index_add(td_tok_index *index, const td_tok_strings *s, uint32_t i)
{
    size_t n;
    uint32_t tag;
    const uint8_t *bytes = td_tok_string(s, i, &n);
    struct td_tok_slot *slot = probe(index, s, bytes, n, &tag);
    if (slot->id != TD_TOK_NONE)
        return slot->id;
    slot->tag = tag;
    slot->id = i;
    return TD_TOK_NONE;
}

uint32_t td_tok_index_find(const td_tok_index *index, const td_tok_strings *s, const void *bytes,
                           size_t n)
{
    uint32_t tag;
    return probe(index, s, bytes, n, &tag)->id;
}
