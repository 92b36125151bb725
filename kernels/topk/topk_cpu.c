/* topk_cpu.c - a row per piece of work. Long rows: every 32nd entry gives a floor that a few more
 * than k entries should reach; one pass collects those, and the radix selection (select.h) sees
 * only them. If the floor was too high or far too low, the selection sees the whole row. Either way
 * the result is exact. Bound: memory, 4*len bytes per row. */
#include "kernels/topk/topk.h"

#include "common/device/cpu.h"
#include "kernels/cpu/select.h"

#define LANES_BODY "kernels/topk/topk_lanes.h"
#include "kernels/cpu/each_isa.h"

#define SAMPLE_STEP 32
#define LONG_ROW 8192 /* and at least 8 * k */

typedef struct {
    const td_topk_args *a;
    td_stream *stream;
    size_t room; /* entries of each array, a multiple of 16 */
    void (*keys)(const float *x, int n, int32_t *keys);
    int (*filter)(const float *x, int n, int32_t floor, int room, int32_t *keys,
                  int32_t *positions);
    void (*emit)(const int32_t *keys, const int32_t *positions, int n, int32_t threshold,
                 int64_t n_equal, int32_t *out);
} job;

/* Per thread. */
typedef struct {
    int32_t *keys, *positions, *candidates; /* [room] */
    uint32_t *histograms;                   /* [2 * TD_SELECT_BINS] */
} buffers;

static size_t buffer_bytes(const job *j)
{
    return (3 * j->room + 2 * TD_SELECT_BINS) * 4;
}

/* A key that probably somewhat more than k entries reach. */
static int32_t guess_floor(const job *j, const buffers *b, const float *x, int n)
{
    float *sample = (float *)(void *)b->positions;
    int n_sample = 0;
    for (int i = 0; i < n; i += SAMPLE_STEP)
        sample[n_sample++] = x[i];
    j->keys(sample, n_sample, b->keys);
    int want = j->a->k / SAMPLE_STEP, floor_rank = want + want / 4 + 16;
    int32_t floor;
    td_select_largest(b->keys, n_sample, floor_rank < n_sample ? floor_rank : n_sample,
                      b->candidates, b->histograms, &floor);
    return floor;
}

static void do_row(const job *j, const buffers *b, int64_t t)
{
    const td_topk_args *a = j->a;
    const float *x = a->logits + t * a->stride;
    int32_t *out = a->selected + t * a->k;
    const int n = a->row_len[t];
    if (n <= a->k) {
        for (int i = 0; i < a->k; i++)
            out[i] = i < n ? i : -1;
        return;
    }
    int m = 0, filtered = n >= LONG_ROW && n / 8 >= a->k;
    if (filtered) {
        m = j->filter(x, n, guess_floor(j, b, x, n), n / 2, b->keys, b->positions);
        filtered = m >= a->k && m <= n / 2;
    }
    if (!filtered) {
        j->keys(x, n, b->keys);
        m = n;
    }
    int32_t threshold;
    int64_t n_equal = td_select_largest(b->keys, m, a->k, b->candidates, b->histograms, &threshold);
    j->emit(b->keys, filtered ? b->positions : NULL, m, threshold, n_equal, out);
}

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    buffers b;
    b.keys = td_cpu_scratch(j->stream, thread, buffer_bytes(j));
    b.positions = b.keys + j->room;
    b.candidates = b.positions + j->room;
    b.histograms = (uint32_t *)b.candidates + j->room;
    for (int64_t t = begin; t < end; t++)
        do_row(j, &b, t);
}

td_status td_topk_cpu(const td_topk_args *a, td_stream *stream)
{
    if (!td_topk_valid(a))
        return TD_BAD_SHAPE;
    if (a->k == 0)
        return TD_OK;
    int max_len = 0;
    for (int t = 0; t < a->T; t++)
        if (a->row_len[t] > max_len)
            max_len = a->row_len[t];
    if (max_len > a->k && max_len > a->stride)
        return TD_BAD_SHAPE;
    td_isa isa = td_cpu_isa(stream);
    job j = {.a = a,
             .stream = stream,
             .room = ((size_t)max_len / LANES + 1) * LANES,
             .keys = LANES_PICK(isa, topk_keys),
             .filter = LANES_PICK(isa, topk_filter),
             .emit = LANES_PICK(isa, topk_emit)};
    if (td_cpu_reserve(stream, buffer_bytes(&j)) != TD_OK)
        return TD_NOMEM;
    td_cpu_for(stream, a->T, 1, do_rows, &j);
    return TD_OK;
}
