#include "model/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

static uint32_t slot_of(const td_tok_merges *m, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32) & m->mask;
}

td_status td_tok_merges_init(td_tok_merges *m, uint32_t max_n)
{
    uint32_t n_slots = 16;
    while (n_slots < 2 * max_n)
        n_slots *= 2;
    m->slots = malloc(n_slots * sizeof(*m->slots));
    m->result = malloc(((size_t)max_n + 1) * sizeof(*m->result));
    m->byte_pairs = malloc(65536 * sizeof(*m->byte_pairs));
    if (m->slots == NULL || m->result == NULL || m->byte_pairs == NULL)
        return TD_NOMEM;
    memset(m->slots, 0xff, n_slots * sizeof(*m->slots));
    memset(m->byte_pairs, 0xff, 65536 * sizeof(*m->byte_pairs));
    m->mask = n_slots - 1;
    m->n = 0;
    return TD_OK;
}

td_status td_tok_merges_add(td_tok_merges *m, uint32_t left, uint32_t right, uint32_t result)
{
    uint32_t i = slot_of(m, left, right);
    for (; m->slots[i].rank != TD_TOK_NONE; i = (i + 1) & m->mask)
        if (m->slots[i].left == left && m->slots[i].right == right)
            return TD_INVALID;
    m->slots[i] = (struct td_tok_merge){left, right, m->n};
    m->result[m->n++] = result;
    return TD_OK;
}

void td_tok_merges_fini(td_tok_merges *m)
{
    free(m->slots);
    free(m->result);
    free(m->byte_pairs);
}

uint32_t td_tok_merges_rank(const td_tok_merges *m, uint32_t left, uint32_t right)
{
    for (uint32_t i = slot_of(m, left, right);; i = (i + 1) & m->mask) {
        const struct td_tok_merge *slot = &m->slots[i];
        if (slot->rank == TD_TOK_NONE || (slot->left == left && slot->right == right))
            return slot->rank;
    }
}
