/* index_logits_cpu.c - work is cut in (block of rows) x (range of pages). Up to 64 keys at a time
 * are decoded and transposed to f32 once, for all rows of the block that belong to one request; the
 * rows' queries are decoded once per range. Bound: arithmetic, 2*Hi*dim FLOP per (row, key). */
#include "kernels/index_logits/index_logits.h"

#include "common/device/cpu.h"

#define TD_INDEX_TILE 64
#define QUERY_BYTES (512 * 1024) /* f32 queries of a block of rows: half of a level 2 cache */
#define MAX_ROWS 64
#define RANGE_KEYS 1024 /* keys of a range of pages, about */

#define LANES_BODY "kernels/index_logits/index_logits_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_index_logits_args *a;
    td_stream *stream;
    int block_rows, range_pages, n_ranges;
    void (*tile)(const td_index_logits_args *a, const unsigned char *page, int row, int n,
                 float *kt, float *ks);
    void (*row)(const td_index_logits_args *a, const float *q, const float *w, const float *kt,
                const float *ks, int n, float *y);
    void (*widen)(const uint8_t *q, int64_t n, float *out);
} job;

/* Per thread. */
typedef struct {
    float *kt; /* [dim, TD_INDEX_TILE] */
    float *ks; /* [TD_INDEX_TILE] */
    float *q;  /* [block_rows, Hi, dim] */
} buffers;

static size_t buffer_floats(const job *j)
{
    const td_index_logits_args *a = j->a;
    size_t per_row = a->kv.dtype == 2 ? 0 : (size_t)a->Hi * (size_t)a->dim;
    return ((size_t)a->dim + 1) * TD_INDEX_TILE + (size_t)j->block_rows * per_row;
}

static int wanted(const td_index_logits_args *a, int64_t t, int first_key)
{
    return a->rows.row_len[t] > a->skip_len && a->rows.row_len[t] > first_key;
}

/* Keys first..first+n-1 of the request, all in one page, for rows t0..t1-1. */
static void do_tile(const job *j, const buffers *b, int64_t t0, int64_t t1, int first, int n)
{
    const td_index_logits_args *a = j->a;
    const int64_t per_row = (int64_t)a->Hi * a->dim;
    const int32_t *table = a->rows.block_table + (int64_t)a->rows.row_seq[t0] * a->rows.max_pages;
    const unsigned char *page =
        a->kv.plane + (uint64_t)table[first / a->kv.page_rows] * a->kv.page_stride;
    j->tile(a, page, first % a->kv.page_rows, n, b->kt, b->ks);
    for (int64_t t = t0; t < t1; t++) {
        if (!wanted(a, t, first))
            continue;
        const float *q =
            a->kv.dtype == 2 ? (const float *)a->q + t * per_row : b->q + (t - t0) * per_row;
        int left = a->rows.row_len[t] - first;
        j->row(a, q, a->w + t * a->Hi, b->kt, b->ks, left < n ? left : n,
               a->y + t * a->y_stride + first);
    }
}

/* Rows t0..t1-1 of one request against keys begin..end-1. */
static void do_run(const job *j, const buffers *b, int64_t t0, int64_t t1, int begin, int end)
{
    const td_index_logits_args *a = j->a;
    const int64_t per_row = (int64_t)a->Hi * a->dim;
    int max_len = 0;
    for (int64_t t = t0; t < t1; t++)
        if (wanted(a, t, begin)) {
            max_len = a->rows.row_len[t] > max_len ? a->rows.row_len[t] : max_len;
            if (a->kv.dtype != 2)
                j->widen((const uint8_t *)a->q + t * per_row, per_row, b->q + (t - t0) * per_row);
        }
    if (end > max_len)
        end = max_len;
    for (int first = begin; first < end;) {
        int n = a->kv.page_rows - first % a->kv.page_rows;
        n = n < TD_INDEX_TILE ? n : TD_INDEX_TILE;
        n = n < end - first ? n : end - first;
        do_tile(j, b, t0, t1, first, n);
        first += n;
    }
}

static void do_part(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_index_logits_args *a = j->a;
    buffers b;
    b.kt = td_cpu_scratch(j->stream, thread, buffer_floats(j) * sizeof(float));
    b.ks = b.kt + (size_t)a->dim * TD_INDEX_TILE;
    b.q = b.ks + TD_INDEX_TILE;
    for (int64_t i = begin; i < end; i++) {
        int64_t t = i / j->n_ranges * j->block_rows;
        int64_t t_end = t + j->block_rows < a->T ? t + j->block_rows : a->T;
        int first = (int)(i % j->n_ranges) * j->range_pages * a->kv.page_rows;
        while (t < t_end) {
            int64_t next = t + 1;
            while (next < t_end && a->rows.row_seq[next] == a->rows.row_seq[t])
                next++;
            if (a->rows.row_seq[t] >= 0)
                do_run(j, &b, t, next, first, first + j->range_pages * a->kv.page_rows);
            t = next;
        }
    }
}

td_status td_index_logits_cpu(const td_index_logits_args *a, td_stream *stream)
{
    if (!td_index_logits_valid(a))
        return TD_BAD_SHAPE;
    int max_len = 0;
    for (int t = 0; t < a->T; t++)
        if (a->rows.row_len[t] > max_len)
            max_len = a->rows.row_len[t];
    if (max_len > a->y_stride && a->T > 1)
        return TD_BAD_SHAPE;
    if (max_len <= a->skip_len)
        return TD_OK;
    td_isa isa = td_cpu_isa(stream);
    job j = {.a = a,
             .stream = stream,
             .tile = LANES_PICK(isa, index_tile),
             .row = LANES_PICK(isa, index_row),
             .widen = LANES_PICK(isa, index_widen)};
    int64_t rows = QUERY_BYTES / ((int64_t)a->Hi * a->dim * (int64_t)sizeof(float));
    j.block_rows = rows < 1 ? 1 : rows > MAX_ROWS ? MAX_ROWS : (int)rows;
    j.range_pages = td_ceil_div(RANGE_KEYS, a->kv.page_rows);
    j.n_ranges = td_ceil_div(max_len, j.range_pages * a->kv.page_rows);
    if (td_cpu_reserve(stream, buffer_floats(&j) * sizeof(float)) != TD_OK)
        return TD_NOMEM;
    td_cpu_for(stream, (int64_t)td_ceil_div(a->T, j.block_rows) * j.n_ranges, 1, do_part, &j);
    return TD_OK;
}
