/* messages.h - what the loop and the rank threads of one prefill daemon tell each other: plain
 * values without pointers, over rings, so that a rank could live in another process. Every array
 * stands behind its struct, 8-byte aligned. */
#ifndef TD_PREFILL_MESSAGES_H
#define TD_PREFILL_MESSAGES_H
#include "model/sampling.h"

#include <stdint.h>

#define TD_STEP_MAX_SEQS 256

/* ---- loop to rank ---- */
typedef enum { TD_TO_RANK_STEP, TD_TO_RANK_STOP } td_to_rank_kind;

typedef struct { /* then n_seqs x td_step_seq, each followed by its tokens and pages */
    uint32_t kind;
    uint32_t n_seqs;
    uint64_t step;
} td_step_head;

typedef struct {
    int32_t start, n_tokens, next_token;
    uint32_t n_pages;  /* of the prompt so far, with this chunk's */
    int32_t blob_slot; /* where rank 0 puts the hidden state; -1: not wanted */
    int32_t ends;      /* the chunk ends the prompt: a first token is drawn */
    td_sampling sampling;
    /* int32_t tokens[n_tokens], uint32_t pages[n_pages], each padded to 8 bytes */
} td_step_seq;

/* ---- rank to loop ---- */
typedef enum {
    TD_FROM_RANK_READY, /* boot is over, or failed: status and text */
    TD_FROM_RANK_GROUP, /* pages of layers [first_layer, last_layer) of the step's chunks are final
                         */
    TD_FROM_RANK_DONE,  /* the step is over, or failed: status and text */
} td_from_rank_kind;

typedef struct {
    uint32_t kind, rank;
    int32_t status; /* td_status */
    uint32_t first_layer, last_layer;
    uint32_t n; /* GROUP: checksums; DONE: sequences */
    uint64_t step;
    char text[256];
    /* GROUP: uint32_t crc[n]: of this rank's pages of each chunk, in order of sequence and page
     * (see td_step_pages()); DONE: td_step_result[n], meaningful on rank 0 */
} td_rank_event;

typedef struct {
    int32_t first_token; /* -1: none was drawn */
    uint32_t blob_crc;
} td_step_result;

#define TD_PAGE_TOKENS 64

/* Pages [*first, *last) that a chunk finishes: chunks start at page borders. */
static inline void td_step_pages(int32_t start, int32_t n_tokens, uint32_t *first, uint32_t *last)
{
    *first = (uint32_t)start / TD_PAGE_TOKENS;
    *last = ((uint32_t)(start + n_tokens) + TD_PAGE_TOKENS - 1) / TD_PAGE_TOKENS;
}

static inline size_t td_pad8(size_t n)
{
    return (n + 7) & ~(size_t)7;
}
#endif
