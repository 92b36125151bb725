/* cp_split.h - which rank computes which tokens of a prefill batch (design.md, context parallelism;
 * model-spec C.1, C.2). The batch's tokens, requests concatenated, have flat indices 0..T-1. Every
 * rank holds the same number n of rows; missing ones are padding (-1), which no one reads. */
#ifndef TD_MODEL_CP_SPLIT_H
#define TD_MODEL_CP_SPLIT_H
#include "common/base/status.h"

#include <stdint.h>

/* ROUND_ROBIN: token i goes to rank i mod P. IN_SEQ: each request is cut in 2P blocks, rank r takes
 * blocks r and 2P-1-r (block k of a request of length len has len / 2P tokens, and one more where
 * k < len mod 2P); local order: block r of every request, then block 2P-1-r of every request. */
typedef enum { TD_CP_ROUND_ROBIN, TD_CP_IN_SEQ } td_cp_split;

/* Fused: every rank computes a slice of every expert for all rows. EP: a rank owns whole experts,
 * rows travel. */
typedef enum { TD_MOE_FUSED, TD_MOE_EP } td_moe_mode;

const char *td_cp_split_name(td_cp_split split); /* "round-robin", "in-seq" */
const char *td_moe_mode_name(td_moe_mode mode);  /* "fused", "ep" */

/* Rows per rank for requests of the given lengths; 0 if there are none. */
int32_t td_cp_rows_per_rank(td_cp_split split, int32_t n_ranks, const int32_t *lengths,
                            int32_t n_seqs);
/* The most rows per rank that any batch of at most max_seqs requests with together at most
 * max_tokens tokens can need. */
int32_t td_cp_max_rows_per_rank(td_cp_split split, int32_t n_ranks, int32_t max_tokens,
                                int32_t max_seqs);
/* rows[P * n], rank-major (the order of an all-gather without re-ranging): the flat index of row j
 * of rank r stands at rows[r * n + j], -1: padding. n = td_cp_rows_per_rank(..). */
void td_cp_map(td_cp_split split, int32_t n_ranks, const int32_t *lengths, int32_t n_seqs,
               int32_t *rows);

/* The cut of a width in whole blocks: block b of n_blocks belongs to rank b * P / n_blocks. The
 * rank owns [*lo, *hi) of `width`, maybe nothing. */
void td_cut_width(int32_t width, int32_t block, int32_t n_ranks, int32_t rank, int32_t *lo,
                  int32_t *hi);
/* Experts of a rank: floor(r * E / P) .. floor((r + 1) * E / P) - 1. */
void td_cut_experts(int32_t n_experts, int32_t n_ranks, int32_t rank, int32_t *lo, int32_t *hi);
#endif
