/* sparse_mla_cpu.c - a piece of work is one row and some of its heads (all, unless there are fewer
 * rows than threads). The row's keys are gathered and decoded to f32 once for its heads, 256 at a
 * time, which fits a second-level cache; scores of all of them come first, because p is divided
 * by the row's sum before it is rounded, so more than 256 keys are decoded again for the values.
 * Bound: arithmetic, 2*H*k*(2*C + R) FLOP per row; with few heads the decoding, about 1.3 cycles
 * per 16 numbers. */
#include "kernels/sparse_mla/sparse_mla.h"

#include <string.h>

#include "common/device/cpu.h"

#define CHUNK 256 /* keys */
/* Parts of a chunk that stay in the first cache while all heads pass by. */
#define MLA_SCORE_KEYS 8
#define MLA_VALUE_KEYS 32

/* Some keys of a row against its heads. */
typedef struct {
    const float *q;    /* [H, ld] */
    const float *keys; /* [n, ld] C + R numbers, then zeros */
    float *p;          /* [H, ldp] scores, then p; these keys stand from `first` on */
    double *u;         /* [H, ldu] */
    int64_t ld, ldp, ldu;
    int H, C, n, first;
    int dims; /* C + R, up to a multiple of 16 */
    float scale;
} mla_tile;

typedef struct {
    void (*widen)(const void *x, td_dtype dtype, int n, int to, float *out);
    void (*fp8)(const unsigned char *row, int C, int R, int ld, float *out);
    void (*scores)(const mla_tile *m);
    void (*softmax)(float *p, int n, int round);
    void (*values)(const mla_tile *m);
    void (*finish)(const double *u, int C, td_dtype act, void *out);
} mla_steps;

#define LANES_BODY "kernels/sparse_mla/sparse_mla_lanes.h"
#include "kernels/cpu/each_isa.h"

static int64_t round_up(int64_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

typedef struct {
    const td_sparse_mla_args *a;
    td_stream *stream;
    const mla_steps *steps;
    size_t row_bytes;
    int group; /* heads of a piece */
    int n_groups;
    int64_t ld, ldp, ldu; /* ld: an odd number of cache lines, so that keys fill all of its sets */
} job;

/* Per thread. */
typedef struct {
    const unsigned char **rows; /* [k] the selected rows */
    float *q, *keys, *p;
    double *u; /* [group, ldu] */
} buffers;

static size_t buffer_bytes(const job *j)
{
    size_t group = (size_t)j->group;
    size_t floats = group * (size_t)(j->ld + j->ldp) + CHUNK * (size_t)j->ld;
    return floats * sizeof(float) + group * (size_t)j->ldu * sizeof(double) +
           (size_t)j->a->k * sizeof(void *);
}

static buffers buffers_of(const job *j, uint32_t thread)
{
    buffers b;
    b.keys = td_cpu_scratch(j->stream, thread, buffer_bytes(j));
    b.q = b.keys + CHUNK * j->ld;
    b.p = b.q + j->group * j->ld;
    b.u = (double *)(void *)(b.p + j->group * j->ldp);
    b.rows = (const unsigned char **)(void *)(b.u + j->group * j->ldu);
    return b;
}

static int find_rows(const job *j, int64_t t, const unsigned char **rows)
{
    const td_sparse_mla_args *a = j->a;
    if (a->rows.row_seq[t] < 0)
        return 0;
    const int32_t *table = a->rows.block_table + (int64_t)a->rows.row_seq[t] * a->rows.max_pages;
    const int32_t *selected = a->selected + t * a->k;
    int n = 0;
    for (int i = 0; i < a->k; i++) {
        if (selected[i] < 0)
            continue;
        const unsigned char *page =
            a->kv.plane + (uint64_t)table[selected[i] / a->kv.page_rows] * a->kv.page_stride;
        rows[n++] = page + (size_t)(selected[i] % a->kv.page_rows) * j->row_bytes;
    }
    return n;
}

/* Keys first..first+n-1 of `total`. Rows stand anywhere in memory: ask for one ahead of time. */
static void decode(const job *j, const buffers *b, int first, int n, int total)
{
    const td_sparse_mla_args *a = j->a;
    const int dims = a->C + a->R;
    for (int i = 0; i < n; i++) {
        const unsigned char *row = b->rows[first + i];
        const unsigned char *ahead = b->rows[first + i + 2 < total ? first + i + 2 : total - 1];
        for (size_t at = 0; at < j->row_bytes; at += 64)
            __builtin_prefetch(ahead + at);
        float *out = b->keys + i * j->ld;
        if (a->kv.dtype == 0)
            j->steps->fp8(row, a->C, a->R, (int)j->ld, out);
        else
            j->steps->widen(row, a->kv.dtype == 1 ? TD_BF16 : TD_F32, dims, (int)j->ld, out);
    }
    for (; n % 4 != 0; n++) /* score tiles take up to four keys at once */
        memset(b->keys + n * j->ld, 0, (size_t)j->ld * sizeof(float));
}

/* Heads h0..h0+H-1 of row t. */
static void attend(const job *j, const buffers *b, int64_t t, int h0, int H)
{
    const td_sparse_mla_args *a = j->a;
    const size_t es = td_dtype_bytes(a->act);
    const int dims = a->C + a->R, total = find_rows(j, t, b->rows);
    unsigned char *out = (unsigned char *)a->u + (size_t)((t * a->H + h0) * a->C) * es;
    if (total == 0) {
        memset(out, 0, (size_t)H * (size_t)a->C * es);
        return;
    }
    const unsigned char *q = (const unsigned char *)a->q + (size_t)((t * a->H + h0) * dims) * es;
    for (int h = 0; h < H; h++)
        j->steps->widen(q + (size_t)h * (size_t)dims * es, a->act, dims, (int)j->ld,
                        b->q + h * j->ld);
    mla_tile m = {.q = b->q,
                  .keys = b->keys,
                  .p = b->p,
                  .u = b->u,
                  .ld = j->ld,
                  .ldp = j->ldp,
                  .ldu = j->ldu,
                  .H = H,
                  .C = a->C,
                  .dims = (int)round_up(dims),
                  .scale = a->scale};
    for (m.first = 0; m.first < total; m.first += CHUNK) {
        m.n = total - m.first < CHUNK ? total - m.first : CHUNK;
        decode(j, b, m.first, m.n, total);
        j->steps->scores(&m);
    }
    for (int h = 0; h < H; h++)
        j->steps->softmax(b->p + h * j->ldp, total, a->act == TD_BF16);
    memset(b->u, 0, (size_t)(H * j->ldu) * sizeof(double));
    for (m.first = 0; m.first < total; m.first += CHUNK) {
        m.n = total - m.first < CHUNK ? total - m.first : CHUNK;
        if (total > CHUNK)
            decode(j, b, m.first, m.n, total);
        j->steps->values(&m);
    }
    for (int h = 0; h < H; h++)
        j->steps->finish(b->u + h * j->ldu, a->C, a->act, out + (size_t)h * (size_t)a->C * es);
}

static void do_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    buffers b = buffers_of(j, thread);
    for (int64_t i = begin; i < end; i++) {
        int h0 = (int)(i % j->n_groups) * j->group;
        int H = j->a->H - h0 < j->group ? j->a->H - h0 : j->group;
        attend(j, &b, i / j->n_groups, h0, H);
    }
}

td_status td_sparse_mla_cpu(const td_sparse_mla_args *a, td_stream *stream)
{
    if (!td_sparse_mla_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0)
        return TD_OK;
    const size_t C = (size_t)a->C, R = (size_t)a->R;
    job j = {.a = a,
             .stream = stream,
             .steps = LANES_PICK(td_cpu_isa(stream), &mla_steps),
             .ld = (round_up(a->C + a->R) / LANES | 1) * LANES,
             .ldp = round_up(a->k),
             .ldu = round_up(a->C)};
    j.row_bytes = a->kv.dtype == 0   ? C + C / TD_QUANT_GROUP * 4 + 2 * R
                  : a->kv.dtype == 1 ? 2 * (C + R)
                                     : 4 * (C + R);
    int pieces = 2 * (int)td_cpu_threads(stream);
    int groups = a->T >= pieces ? 1 : td_ceil_div(pieces, a->T);
    j.group = td_ceil_div(td_ceil_div(a->H, groups), 4) * 4;
    j.n_groups = td_ceil_div(a->H, j.group);
    if (td_cpu_reserve(stream, buffer_bytes(&j)) != TD_OK)
        return TD_NOMEM;
    td_cpu_for(stream, (int64_t)a->T * j.n_groups, 1, do_part, &j);
    return TD_OK;
}
