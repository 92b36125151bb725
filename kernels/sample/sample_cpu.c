/* sample_cpu.c - a row per piece of work, a few passes over the vocabulary and no sort: top-k is a
 * radix selection of the k-th largest logit, top-p the same selection with weights in place of
 * counts. Bound: memory, about 20*V bytes per row. */
#include "kernels/sample/sample.h"

#include "common/device/cpu.h"
#include "kernels/cpu/select.h"
#include "kernels/random.h"

typedef struct {
    void (*logits)(const float *x, int n, float *l);
    float (*max)(const float *l, int n);
    void (*weights)(const float *l, int n, float m, float temperature, float *w);
    void (*keys)(const float *l, int n, int32_t *keys);
} sample_steps;

#define LANES_BODY "kernels/sample/sample_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_sample_args *a;
    td_stream *stream;
    const sample_steps *steps;
    size_t room; /* V, up to a multiple of 16 */
} job;

/* Per thread. */
typedef struct {
    uint64_t *sums; /* [TD_SELECT_BINS] */
    float *l, *w;   /* [room] logits, weights */
    int32_t *keys, *candidates;
    uint32_t *histograms; /* [2 * TD_SELECT_BINS] */
} buffers;

/* The tokens that stay: keys above `threshold`, and the n_equal lowest ids of those equal to it. */
typedef struct {
    int32_t threshold;
    int64_t n_equal;
} cut;

static size_t buffer_bytes(const job *j)
{
    return TD_SELECT_BINS * 8 + (4 * j->room + 2 * TD_SELECT_BINS) * 4;
}

static buffers buffers_of(const job *j, uint32_t thread)
{
    buffers b;
    b.sums = td_cpu_scratch(j->stream, thread, buffer_bytes(j));
    b.l = (float *)(void *)(b.sums + TD_SELECT_BINS);
    b.w = b.l + j->room;
    b.keys = (int32_t *)(void *)(b.w + j->room);
    b.candidates = b.keys + j->room;
    b.histograms = (uint32_t *)b.candidates + j->room;
    return b;
}

static uint64_t integer(float w)
{
    return w > 0.0f ? (uint64_t)(int64_t)w : 0;
}

/* Forbidden tokens get -inf. Returns the lowest id that is allowed, or -1. */
static int32_t forbid(const uint8_t *mask, int V, float *l)
{
    int32_t first = -1;
    for (int i = 0; i < V; i += 8) {
        if (mask[i / 8] == 0 && first >= 0)
            continue;
        for (int id = i; id < V && id < i + 8; id++)
            if (mask[i / 8] >> (id % 8) & 1)
                l[id] = -INFINITY;
            else if (first < 0)
                first = id;
    }
    return first;
}

/* Tokens outside of the cut lose their weight. */
static void apply(const cut *c, const buffers *b, int V)
{
    int64_t n_equal = c->n_equal;
    for (int i = 0; i < V; i++)
        if (b->keys[i] < c->threshold || (b->keys[i] == c->threshold && n_equal-- <= 0))
            b->w[i] = 0.0f;
}

static uint64_t total_of(const buffers *b, int V)
{
    uint64_t total = 0;
    for (int i = 0; i < V; i++)
        total += integer(b->w[i]);
    return total;
}

/* The digit (of 11 bits at `shift`) at which the sum of weights, from the largest key down, reaches
 * *need; ids: the n tokens that count, NULL for all. *need loses what the higher digits hold. */
static uint32_t find_digit(const buffers *b, const int32_t *ids, int n, int shift, uint64_t *need)
{
    memset(b->sums, 0, TD_SELECT_BINS * sizeof(*b->sums));
    for (int i = 0; i < n; i++) {
        int id = ids == NULL ? i : ids[i];
        b->sums[td_select_digit(b->keys[id], shift)] += integer(b->w[id]);
    }
    uint32_t digit = TD_SELECT_BINS - 1;
    while (b->sums[digit] < *need)
        *need -= b->sums[digit--];
    return digit;
}

/* The fewest of the largest keys whose weights sum to `need`, 1..the sum of all. Of equal keys the
 * lowest ids have a weight, the same one; top-k may have taken it from the others. */
static cut nucleus(const buffers *b, int V, uint64_t need)
{
    const int32_t *ids = NULL;
    int n = V;
    for (int d = 0; d < TD_SELECT_DIGITS; d++) {
        const int shift = td_select_shifts[d];
        uint32_t digit = find_digit(b, ids, n, shift, &need);
        int kept = 0;
        for (int i = 0; i < n; i++) { /* in place from the second digit on: kept <= i */
            int id = ids == NULL ? i : ids[i];
            b->candidates[kept] = id;
            kept += td_select_digit(b->keys[id], shift) == digit;
        }
        ids = b->candidates;
        n = kept;
    }
    uint64_t w = integer(b->w[ids[0]]);
    td_assert(w > 0);
    return (cut){b->keys[ids[0]], (int64_t)((need + w - 1) / w)};
}

/* Top-k, then top-p; returns the sum of the weights that stay. */
static uint64_t keep_best(const job *j, const buffers *b, int64_t t)
{
    const int V = j->a->V, top_k = j->a->top_k[t];
    const float top_p = j->a->top_p[t];
    const int cut_k = top_k > 0 && top_k < V, cut_p = top_p < 1.0f;
    if (cut_k || cut_p)
        j->steps->keys(b->l, V, b->keys);
    if (cut_k) {
        cut c;
        c.n_equal =
            td_select_largest(b->keys, V, top_k, b->candidates, b->histograms, &c.threshold);
        apply(&c, b, V);
    }
    uint64_t total = total_of(b, V);
    if (!cut_p)
        return total;
    cut c = nucleus(b, V, td_sample_need(top_p, total));
    apply(&c, b, V);
    return total_of(b, V);
}

static int32_t sample_row(const job *j, const buffers *b, int64_t t)
{
    const td_sample_args *a = j->a;
    int32_t first = 0;
    j->steps->logits(a->logits + t * a->stride, a->V, b->l);
    if (a->forbid_ids_mask != NULL)
        first = forbid(a->forbid_ids_mask + t * td_ceil_div(a->V, 8), a->V, b->l);
    const float m = j->steps->max(b->l, a->V);
    if (m == -INFINITY)
        return first;
    int32_t id = 0;
    if (!(a->temperature[t] > 0.0f)) {
        while (b->l[id] != m)
            id++;
        return id;
    }
    j->steps->weights(b->l, a->V, m, a->temperature[t], b->w);
    uint64_t total = keep_best(j, b, t);
    uint64_t r = td_random_u64(a->seed[t], a->position[t], TD_RANDOM_TOKEN);
    uint64_t at = td_random_below(r, total), sum = integer(b->w[0]);
    while (sum <= at) /* at < total: ends within V */
        sum += integer(b->w[++id]);
    return id;
}

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    buffers b = buffers_of(j, thread);
    for (int64_t t = begin; t < end; t++)
        j->a->token[t] = sample_row(j, &b, t);
}

td_status td_sample_cpu(const td_sample_args *a, td_stream *stream)
{
    if (!td_sample_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, stream, LANES_PICK(td_cpu_isa(stream), &sample_steps),
             ((size_t)a->V / LANES + 1) * LANES};
    if (td_cpu_reserve(stream, buffer_bytes(&j)) != TD_OK)
        return TD_NOMEM;
    td_cpu_for(stream, a->T, 1, do_rows, &j);
    return TD_OK;
}
