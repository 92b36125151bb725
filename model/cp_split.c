#include "model/cp_split.h"

const char *td_cp_split_name(td_cp_split split)
{
    return split == TD_CP_ROUND_ROBIN ? "round-robin" : "in-seq";
}

const char *td_moe_mode_name(td_moe_mode mode)
{
    return mode == TD_MOE_FUSED ? "fused" : "ep";
}

static int32_t block_len(int32_t len, int32_t n_blocks, int32_t k)
{
    return len / n_blocks + (k < len % n_blocks);
}

/* Position in its request of block k's first token. */
static int32_t block_start(int32_t len, int32_t n_blocks, int32_t k)
{
    int32_t rest = len % n_blocks;
    return k * (len / n_blocks) + (k < rest ? k : rest);
}

static int32_t in_seq_rows(int32_t n_ranks, int32_t rank, const int32_t *lengths, int32_t n_seqs)
{
    int32_t n = 0;
    for (int32_t b = 0; b < n_seqs; b++)
        n += block_len(lengths[b], 2 * n_ranks, rank) +
             block_len(lengths[b], 2 * n_ranks, 2 * n_ranks - 1 - rank);
    return n;
}

int32_t td_cp_rows_per_rank(td_cp_split split, int32_t n_ranks, const int32_t *lengths,
                            int32_t n_seqs)
{
    int32_t most = 0, total = 0;
    if (split == TD_CP_ROUND_ROBIN) {
        for (int32_t b = 0; b < n_seqs; b++)
            total += lengths[b];
        return (total + n_ranks - 1) / n_ranks;
    }
    for (int32_t r = 0; r < n_ranks; r++) {
        int32_t n = in_seq_rows(n_ranks, r, lengths, n_seqs);
        most = n > most ? n : most;
    }
    return most;
}

int32_t td_cp_max_rows_per_rank(td_cp_split split, int32_t n_ranks, int32_t max_tokens,
                                int32_t max_seqs)
{
    int32_t even = (max_tokens + n_ranks - 1) / n_ranks;
    if (split == TD_CP_ROUND_ROBIN || n_ranks == 1)
        return even;
    /* A request gives a rank at most 2 tokens more than len / P rounded down. */
    int32_t seqs = max_seqs < max_tokens ? max_seqs : max_tokens;
    int32_t uneven = max_tokens / n_ranks + 2 * seqs;
    return uneven < max_tokens ? uneven : max_tokens;
}

static void map_in_seq(int32_t n_ranks, int32_t n, const int32_t *lengths, int32_t n_seqs,
                       int32_t *rows)
{
    for (int32_t r = 0; r < n_ranks; r++) {
        int32_t j = 0;
        for (int half = 0; half < 2; half++) {
            int32_t k = half == 0 ? r : 2 * n_ranks - 1 - r, flat = 0;
            for (int32_t b = 0; b < n_seqs; b++) {
                int32_t start = block_start(lengths[b], 2 * n_ranks, k);
                for (int32_t i = 0; i < block_len(lengths[b], 2 * n_ranks, k); i++)
                    rows[r * n + j++] = flat + start + i;
                flat += lengths[b];
            }
        }
        while (j < n)
            rows[r * n + j++] = -1;
    }
}

void td_cp_map(td_cp_split split, int32_t n_ranks, const int32_t *lengths, int32_t n_seqs,
               int32_t *rows)
{
    int32_t n = td_cp_rows_per_rank(split, n_ranks, lengths, n_seqs), total = 0;
    if (split == TD_CP_IN_SEQ) {
        map_in_seq(n_ranks, n, lengths, n_seqs, rows);
        return;
    }
    for (int32_t b = 0; b < n_seqs; b++)
        total += lengths[b];
    for (int32_t r = 0; r < n_ranks; r++)
        for (int32_t j = 0; j < n; j++)
            rows[r * n + j] = j * n_ranks + r < total ? j * n_ranks + r : -1;
}

void td_cut_width(int32_t width, int32_t block, int32_t n_ranks, int32_t rank, int32_t *lo,
                  int32_t *hi)
{
    int64_t n = ((int64_t)width + block - 1) / block;
    /* The first block with b * P / n >= rank is ceil(rank * n / P). */
    int64_t first = (rank * n + n_ranks - 1) / n_ranks,
            last = ((rank + 1) * n + n_ranks - 1) / n_ranks;
    *lo = (int32_t)(first * block < width ? first * block : width);
    *hi = (int32_t)(last * block < width ? last * block : width);
}

void td_cut_experts(int32_t n_experts, int32_t n_ranks, int32_t rank, int32_t *lo, int32_t *hi)
{
    *lo = (int32_t)((int64_t)rank * n_experts / n_ranks);
    *hi = (int32_t)((int64_t)(rank + 1) * n_experts / n_ranks);
}
