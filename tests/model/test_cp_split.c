/* The split of a batch over ranks against plain simulations of what design.md and model-spec C say.
 */
#include "model/cp_split.h"
#include "tests/td_test.h"

TD_TEST_MAIN

#define MAX_ROWS 4096

/* Every token once, on its rank; padding only behind a rank's rows (round-robin: at the end). */
static void check_partition(const int32_t *rows, int32_t n, int32_t n_ranks, int32_t total)
{
    unsigned char seen[MAX_ROWS] = {0};
    int32_t count = 0;
    for (int32_t i = 0; i < n * n_ranks; i++) {
        if (rows[i] < 0) {
            TD_EQ(-1, rows[i]);
            continue;
        }
        TD_TRUE(rows[i] < total);
        TD_EQ(0, seen[rows[i]]);
        seen[rows[i]] = 1;
        count++;
    }
    TD_EQ(total, count);
}

static int32_t sum(const int32_t *lengths, int32_t n)
{
    int32_t total = 0;
    for (int32_t i = 0; i < n; i++)
        total += lengths[i];
    return total;
}

TEST(round_robin_gives_token_i_to_rank_i_mod_p)
{
    static const int32_t batches[][4] = {{1, 0, 0, 0},    {1, 1, 1, 0}, {7, 5, 0, 0},
                                         {64, 1, 129, 3}, {8, 8, 8, 8}, {1000, 0, 0, 0}};
    int32_t rows[MAX_ROWS];
    for (size_t b = 0; b < sizeof(batches) / sizeof(*batches); b++) {
        int32_t n_seqs = 0;
        while (n_seqs < 4 && batches[b][n_seqs] > 0)
            n_seqs++;
        int32_t total = sum(batches[b], n_seqs);
        for (int32_t p = 1; p <= 9; p++) {
            int32_t n = td_cp_rows_per_rank(TD_CP_ROUND_ROBIN, p, batches[b], n_seqs);
            TD_EQ((total + p - 1) / p, n);
            td_cp_map(TD_CP_ROUND_ROBIN, p, batches[b], n_seqs, rows);
            check_partition(rows, n, p, total);
            for (int32_t r = 0; r < p; r++)
                for (int32_t j = 0; j < n; j++)
                    if (j * p + r < total)
                        TD_EQ(j * p + r, rows[r * n + j]);
        }
    }
}

TEST(round_robin_counts_of_each_request_are_the_closed_formula)
{
    /* model-spec C.1: cnt = ceil((g+len-r)/cp) - ceil((g-r)/cp) */
    static const int32_t lengths[] = {3, 1, 10, 64, 2, 33};
    int32_t rows[MAX_ROWS];
    for (int32_t p = 1; p <= 8; p++) {
        int32_t n = td_cp_rows_per_rank(TD_CP_ROUND_ROBIN, p, lengths, 6);
        td_cp_map(TD_CP_ROUND_ROBIN, p, lengths, 6, rows);
        for (int32_t r = 0; r < p; r++) {
            int32_t g = 0;
            for (int32_t b = 0; b < 6; g += lengths[b++]) {
                int32_t count = 0;
                for (int32_t j = 0; j < n; j++)
                    count += rows[r * n + j] >= g && rows[r * n + j] < g + lengths[b];
                int32_t high = g + lengths[b] - r + p - 1, low = g - r + p - 1;
                TD_EQ(high / p - low / p, count);
            }
        }
    }
}

/* Cuts each request into 2P blocks the slow way: token by token, the first len mod 2P blocks get
 * one token more. */
static int32_t block_of(int32_t len, int32_t n_blocks, int32_t token)
{
    int32_t k = 0, left = len / n_blocks + (0 < len % n_blocks);
    for (int32_t i = 0; i < token; i++)
        for (left--; left == 0 && k + 1 < n_blocks;) {
            k++;
            left = len / n_blocks + (k < len % n_blocks);
        }
    /* skip empty blocks in front */
    while (left == 0) {
        k++;
        left = len / n_blocks + (k < len % n_blocks);
    }
    return k;
}

TEST(in_seq_gives_rank_r_blocks_r_and_2p_minus_1_minus_r_in_order)
{
    static const int32_t batches[][4] = {{1, 0, 0, 0},    {2, 3, 0, 0},  {15, 16, 17, 0},
                                         {100, 1, 64, 7}, {65, 0, 0, 0}, {5, 5, 5, 5}};
    int32_t rows[MAX_ROWS], want[MAX_ROWS];
    for (size_t b = 0; b < sizeof(batches) / sizeof(*batches); b++) {
        int32_t n_seqs = 0;
        while (n_seqs < 4 && batches[b][n_seqs] > 0)
            n_seqs++;
        int32_t total = sum(batches[b], n_seqs);
        for (int32_t p = 1; p <= 8; p++) {
            int32_t n = td_cp_rows_per_rank(TD_CP_IN_SEQ, p, batches[b], n_seqs), most = 0;
            td_cp_map(TD_CP_IN_SEQ, p, batches[b], n_seqs, rows);
            check_partition(rows, n, p, total);
            for (int32_t r = 0; r < p; r++) {
                int32_t m = 0;
                for (int half = 0; half < 2; half++) {
                    int32_t k = half == 0 ? r : 2 * p - 1 - r, flat = 0;
                    for (int32_t s = 0; s < n_seqs; flat += batches[b][s++])
                        for (int32_t i = 0; i < batches[b][s]; i++)
                            if (block_of(batches[b][s], 2 * p, i) == k)
                                want[m++] = flat + i;
                }
                for (int32_t j = 0; j < n; j++)
                    TD_EQ(j < m ? want[j] : -1, rows[r * n + j]);
                most = m > most ? m : most;
            }
            TD_EQ(most, n);
        }
    }
}

TEST(no_batch_needs_more_rows_than_the_bound_says)
{
    int32_t lengths[64];
    for (int split = 0; split < 2; split++)
        for (int32_t p = 1; p <= 8; p++)
            for (int32_t max_seqs = 1; max_seqs <= 5; max_seqs++)
                for (int32_t total = 1; total <= 70; total++)
                    for (int32_t seqs = 1; seqs <= max_seqs && seqs <= total; seqs++) {
                        for (int32_t b = 0; b < seqs; b++) /* as uneven as lengths can be */
                            lengths[b] = b + 1 < seqs ? 1 + b % 2 : 0;
                        lengths[seqs - 1] = total - sum(lengths, seqs - 1);
                        if (lengths[seqs - 1] < 1)
                            continue;
                        td_cp_split s = split == 0 ? TD_CP_ROUND_ROBIN : TD_CP_IN_SEQ;
                        TD_TRUE(td_cp_rows_per_rank(s, p, lengths, seqs) <=
                                td_cp_max_rows_per_rank(s, p, 70, max_seqs));
                    }
}

TEST(block_b_of_n_belongs_to_rank_b_times_p_over_n)
{
    static const int32_t widths[] = {8, 24, 128, 256, 384, 640, 1000, 2048, 18432};
    for (size_t w = 0; w < sizeof(widths) / sizeof(*widths); w++)
        for (int32_t block = 8; block <= 128; block *= 16)
            for (int32_t p = 1; p <= 9; p++) {
                int32_t n = (widths[w] + block - 1) / block, expected = 0;
                for (int32_t r = 0; r < p; r++) {
                    int32_t lo, hi;
                    td_cut_width(widths[w], block, p, r, &lo, &hi);
                    TD_EQ(expected, lo); /* nothing between two ranks */
                    expected = hi;
                    for (int32_t b = 0; b < n; b++) {
                        int inside = b * block >= lo && b * block < hi;
                        TD_EQ((int64_t)b * p / n == r, inside);
                    }
                }
                TD_EQ(widths[w], expected);
            }
}

TEST(experts_are_cut_at_the_floor_of_r_e_over_p)
{
    for (int32_t e = 1; e <= 257; e += 16)
        for (int32_t p = 1; p <= 9; p++) {
            int32_t expected = 0, lo, hi;
            for (int32_t r = 0; r < p; r++) {
                td_cut_experts(e, p, r, &lo, &hi);
                TD_EQ(expected, lo);
                TD_EQ(r * e / p, lo);
                expected = hi;
            }
            TD_EQ(e, expected);
        }
}

TEST(names_are_those_of_the_command_line)
{
    TD_STR("round-robin", td_cp_split_name(TD_CP_ROUND_ROBIN));
    TD_STR("in-seq", td_cp_split_name(TD_CP_IN_SEQ));
    TD_STR("fused", td_moe_mode_name(TD_MOE_FUSED));
    TD_STR("ep", td_moe_mode_name(TD_MOE_EP));
}
