/* Byte-level BPE of one piece: the merge of the lowest rank first, the leftmost of equals, until
 * none applies. Short pieces look for it by a scan, long ones keep a heap: n log n, whatever the
 * text. */
#include "model/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

#define SCAN_BYTES 40 /* up to here a scan beats the heap */
#define SCRATCH_WORDS                                                                              \
    8 /* u32 for each byte of a piece: id, next, prev, rank, and 2 heap entries of 8 bytes */

td_status td_tok_emit(td_tok_encoder *enc, uint32_t id)
{
    if (enc->n_ids == enc->max_ids) {
        size_t more = enc->max_ids * 2 + 64;
        int32_t *ids = realloc(enc->ids, more * sizeof(*ids));
        if (ids == NULL)
            return td_fail(enc->err, TD_NOMEM, "encode: no memory for %zu ids", more);
        enc->ids = ids;
        enc->max_ids = more;
    }
    enc->ids[enc->n_ids++] = (int32_t)id;
    return TD_OK;
}

static td_status scan_bpe(td_tok_encoder *enc, const uint8_t *piece, uint32_t n)
{
    const td_tokenizer *tok = enc->tok;
    const td_tok_merges *m = &tok->merges;
    uint32_t ids[SCAN_BYTES], ranks[SCAN_BYTES]; /* ranks[i]: of the pair (i, i + 1) */
    for (uint32_t i = 0; i < n; i++)
        ids[i] = tok->byte_ids[piece[i]];
    for (uint32_t i = 0; i + 1 < n; i++)
        ranks[i] = m->byte_pairs[piece[i] << 8 | piece[i + 1]];
    for (;;) {
        uint32_t best = TD_TOK_NONE, at = 0;
        for (uint32_t i = 0; i + 1 < n; i++)
            if (ranks[i] < best) {
                best = ranks[i];
                at = i;
            }
        if (best == TD_TOK_NONE)
            break;
        ids[at] = m->result[best];
        n--;
        for (uint32_t i = at + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i - 1] = ranks[i];
        }
        if (at > 0)
            ranks[at - 1] = td_tok_merges_rank(m, ids[at - 1], ids[at]);
        if (at + 1 < n)
            ranks[at] = td_tok_merges_rank(m, ids[at], ids[at + 1]);
    }
    for (uint32_t i = 0; i < n; i++) {
        td_status st = td_tok_emit(enc, ids[i]);
        if (st != TD_OK)
            return st;
    }
    return TD_OK;
}

/* A min-heap of rank << 32 | position. */
static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t moving = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= moving)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void push(uint64_t *heap, size_t *n, uint32_t rank, uint32_t at)
{
    size_t i = (*n)++;
    uint64_t entry = (uint64_t)rank << 32 | at;
    while (i > 0 && heap[(i - 1) / 2] > entry) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = entry;
}

static td_status make_scratch(td_tok_encoder *enc, size_t n)
{
    if (n <= enc->scratch_bytes)
        return TD_OK;
    size_t room = n < 4096 ? 4096 : n;
    free(enc->scratch);
    enc->scratch_bytes = 0;
    enc->scratch = malloc(room * SCRATCH_WORDS * sizeof(*enc->scratch));
    if (enc->scratch == NULL)
        return td_fail(enc->err, TD_NOMEM, "encode: no memory for a piece of %zu bytes", n);
    enc->scratch_bytes = room;
    return TD_OK;
}

/* A heap entry is stale when its position has another rank by now. At most 2n entries are ever
 * there: n - 1 at the start, and each of at most n - 1 merges takes one out and puts two in. */
static td_status heap_bpe(td_tok_encoder *enc, const uint8_t *piece, uint32_t n)
{
    td_status st = make_scratch(enc, n);
    if (st != TD_OK)
        return st;
    const td_tok_merges *m = &enc->tok->merges;
    uint64_t *heap = (uint64_t *)(void *)enc->scratch;
    uint32_t *ids = enc->scratch + 4 * (size_t)n, *next = ids + n, *prev = next + n,
             *ranks = prev + n;
    size_t n_heap = 0;
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = enc->tok->byte_ids[piece[i]];
        next[i] = i + 1 < n ? i + 1 : TD_TOK_NONE;
        prev[i] = i > 0 ? i - 1 : TD_TOK_NONE;
        ranks[i] = i + 1 < n ? m->byte_pairs[piece[i] << 8 | piece[i + 1]] : TD_TOK_NONE;
        if (ranks[i] != TD_TOK_NONE)
            heap[n_heap++] = (uint64_t)ranks[i] << 32 | i;
    }
    for (size_t i = n_heap / 2; i-- > 0;)
        sift_down(heap, n_heap, i);
    while (n_heap > 0) {
        uint32_t at = (uint32_t)heap[0], rank = (uint32_t)(heap[0] >> 32);
        heap[0] = heap[--n_heap];
        if (n_heap > 0)
            sift_down(heap, n_heap, 0);
        if (ranks[at] != rank)
            continue;
        uint32_t gone = next[at], right = next[gone], left = prev[at];
        ids[at] = m->result[rank];
        ranks[gone] = TD_TOK_NONE;
        next[at] = right;
        ranks[at] = TD_TOK_NONE;
        if (right != TD_TOK_NONE) {
            prev[right] = at;
            ranks[at] = td_tok_merges_rank(m, ids[at], ids[right]);
            if (ranks[at] != TD_TOK_NONE)
                push(heap, &n_heap, ranks[at], at);
        }
        if (left != TD_TOK_NONE) {
            ranks[left] = td_tok_merges_rank(m, ids[left], ids[at]);
            if (ranks[left] != TD_TOK_NONE)
                push(heap, &n_heap, ranks[left], left);
        }
    }
    for (uint32_t i = 0; i != TD_TOK_NONE; i = next[i])
        if ((st = td_tok_emit(enc, ids[i])) != TD_OK)
            return st;
    return TD_OK;
}

td_status td_tok_bpe(td_tok_encoder *enc, const uint8_t *piece, size_t n)
{
    const td_tokenizer *tok = enc->tok;
    if (n <= tok->max_word_bytes) {
        uint32_t id = td_tok_index_find(&tok->words, &tok->texts, piece, n);
        if (id != TD_TOK_NONE)
            return td_tok_emit(enc, id);
    }
    return n <= SCAN_BYTES ? scan_bpe(enc, piece, (uint32_t)n) : heap_bpe(enc, piece, (uint32_t)n);
}
