/* moe_experts_cpu.c - rows are sorted by expert; a block is up to TD_DOT_M rows of one expert.
 * Three passes: gate, up and their product, (block, 128 columns of I) per item; down, (block, 128
 * columns of D) per item, into one f32 row per (token, k); the weighted sum of these rows in top-k
 * order. So a result depends on its own row alone. Memory is bounded: tokens are taken in chunks,
 * and the last two passes go over slabs of D. Bound: memory (the experts' weights) for few rows,
 * multiply-adds for many. */
#include "kernels/moe_experts/moe_experts.h"

#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/dot.h"

#define LANES_BODY "kernels/moe_experts/moe_experts_lanes.h"
#include "kernels/cpu/each_isa.h"

#define TILE TD_DOT_N
#define MAX_PRODUCT_BYTES (64 << 20) /* products of a chunk of tokens */
#define MAX_SLAB_BYTES (32 << 20)    /* results of a slab of D */
#define MIN_CHUNK 256                /* pairs of token and expert */

typedef struct {
    int expert; /* counted from expert_lo */
    int first, m;
} block;

/* One chunk of tokens. A pair is a (token, k) whose expert is ours; pairs are sorted by expert,
 * then token. */
typedef struct {
    const td_moe_experts_args *a;
    td_stream *stream;
    td_isa isa;
    void (*product)(const float *gate, const float *up, int n, td_dtype dtype, int ue8m0, void *h,
                    float *scale);
    int64_t t0;
    int n_t, n_pairs, n_blocks;
    int32_t *token;    /* [pairs] row of x, counted from t0 */
    int32_t *place;    /* [n_t, K] the pair, -1: none */
    int32_t *next;     /* [E_local + 1] where an expert's next pair goes */
    block *blocks;     /* [n_blocks] */
    unsigned char *h;  /* [pairs, I] dtype: the products */
    float *hs;         /* [pairs, ceil(I/128)] e4m3 only */
    float *slab;       /* [pairs, n_d] results of down */
    int d0, n_d;       /* the slab's columns */
    int slab_step;     /* most of them */
    size_t dot_bytes;  /* scratch of td_dot, before two tiles of results */
    size_t part_bytes; /* all scratch of a thread */
} job;

static int least(int64_t a, int64_t b)
{
    return (int)(a < b ? a : b);
}

static int ours(const td_moe_experts_args *a, int32_t e)
{
    return e >= a->expert_lo && e < a->expert_hi;
}

/* ---- memory ---- */

static size_t aligned(size_t n_bytes)
{
    return (n_bytes + 63) / 64 * 64;
}

static void *take(unsigned char **room, size_t n_bytes)
{
    void *p = *room;
    *room += aligned(n_bytes);
    return p;
}

static size_t product_bytes(const td_moe_experts_args *a)
{
    size_t scales = a->dtype == TD_E4M3 ? (size_t)td_ceil_div(a->I, TD_QUANT_GROUP) * 4 : 0;
    return (size_t)a->I * td_dtype_bytes(a->dtype) + scales;
}

static int chunk_tokens(const td_moe_experts_args *a)
{
    size_t pairs = MAX_PRODUCT_BYTES / product_bytes(a);
    pairs = pairs < MIN_CHUNK ? MIN_CHUNK : pairs;
    int64_t tokens = (int64_t)pairs / a->K;
    return least(tokens < 1 ? 1 : tokens, a->T);
}

static int slab_columns(const td_moe_experts_args *a, size_t n_pairs)
{
    int64_t columns = (int64_t)(MAX_SLAB_BYTES / sizeof(float) / n_pairs) / TILE * TILE;
    return least(columns < TILE ? TILE : columns, a->D);
}

/* Lays the chunk's arrays out in the stream's shared scratch, for n_t tokens with all pairs
 * ours. With room NULL only counts. */
static size_t lay_out(job *j, int n_t, unsigned char *room)
{
    const td_moe_experts_args *a = j->a;
    const size_t pairs = (size_t)n_t * (size_t)a->K, E = (size_t)(a->expert_hi - a->expert_lo);
    const size_t n_i = (size_t)td_ceil_div(a->I, TD_QUANT_GROUP);
    /* an expert's blocks are at most its pairs / TD_DOT_M + 1 and at most its pairs */
    const size_t blocks = pairs < pairs / TD_DOT_M + E ? pairs : pairs / TD_DOT_M + E;
    const size_t sizes[] = {
        pairs * sizeof(*j->token),
        pairs * sizeof(*j->place),
        (E + 1) * sizeof(*j->next),
        blocks * sizeof(*j->blocks),
        pairs * (size_t)a->I * td_dtype_bytes(a->dtype),
        a->dtype == TD_E4M3 ? pairs * n_i * sizeof(float) : 0,
        pairs * (size_t)slab_columns(a, pairs) * sizeof(float),
    };
    j->slab_step = slab_columns(a, pairs);
    void *at[sizeof(sizes) / sizeof(sizes[0])] = {NULL};
    size_t n_bytes = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        n_bytes += aligned(sizes[i]);
        if (room != NULL)
            at[i] = take(&room, sizes[i]);
    }
    j->token = at[0];
    j->place = at[1];
    j->next = at[2];
    j->blocks = at[3];
    j->h = at[4];
    j->hs = at[5];
    j->slab = at[6];
    return n_bytes;
}

/* ---- sorting ---- */

static void add_blocks(job *j, int expert, int first, int n)
{
    for (int done = 0, left = td_ceil_div(n, TD_DOT_M); left > 0; left--) {
        int m = td_ceil_div(n - done, left); /* nearly equal blocks */
        j->blocks[j->n_blocks++] = (block){expert, first + done, m};
        done += m;
    }
}

static void sort_pairs(job *j)
{
    const td_moe_experts_args *a = j->a;
    const int32_t *ids = a->ids + j->t0 * a->K;
    const int n_experts = a->expert_hi - a->expert_lo, n = j->n_t * a->K;
    memset(j->next, 0, (size_t)(n_experts + 1) * sizeof(*j->next));
    for (int i = 0; i < n; i++)
        if (ours(a, ids[i]))
            j->next[ids[i] - a->expert_lo + 1]++;
    j->n_blocks = 0;
    for (int e = 0; e < n_experts; e++) {
        add_blocks(j, e, j->next[e], j->next[e + 1]);
        j->next[e + 1] += j->next[e];
    }
    j->n_pairs = j->next[n_experts];
    for (int i = 0; i < n; i++) {
        j->place[i] = ours(a, ids[i]) ? j->next[ids[i] - a->expert_lo]++ : -1;
        if (j->place[i] >= 0)
            j->token[j->place[i]] = i / a->K;
    }
}

/* ---- passes ---- */

/* Columns n0.. of an expert's matrix [E_local, N, K]. */
static void set_w(td_dot_args *d, const void *w, const float *ws, int expert, int n0, int N)
{
    const int64_t n_kb = td_ceil_div(d->K, TD_QUANT_GROUP), n_nb = td_ceil_div(N, TD_QUANT_GROUP);
    d->w = (const unsigned char *)w +
           ((int64_t)expert * N + n0) * d->K * (int64_t)td_dtype_bytes(d->dtype);
    d->ws = ws == NULL ? NULL : ws + (expert * n_nb + n0 / TD_QUANT_GROUP) * n_kb;
    d->n = least(N - n0, TILE);
}

static void products(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    job *j = arg;
    const td_moe_experts_args *a = j->a;
    const int64_t size = (int64_t)td_dtype_bytes(a->dtype);
    const int n_tiles = td_ceil_div(a->I, TILE), n_groups = td_ceil_div(a->D, TD_QUANT_GROUP);
    unsigned char *scratch = td_cpu_scratch(j->stream, thread, j->part_bytes);
    float *gate = (void *)(scratch + j->dot_bytes), *up = gate + TD_DOT_M * TILE;
    for (int64_t item = begin; item < end; item++) {
        const block *b = &j->blocks[item / n_tiles];
        const int tile = (int)(item % n_tiles), i0 = tile * TILE;
        td_dot_args d = {.x_stride = a->D, .m = b->m, .K = a->D, .dtype = a->dtype};
        d.x = (const unsigned char *)a->x + j->t0 * a->D * size;
        d.xs = a->dtype == TD_E4M3 ? a->xs + j->t0 * n_groups : NULL;
        d.rows = j->token + b->first;
        set_w(&d, a->gate, a->gate_s, b->expert, i0, a->I);
        td_dot(j->isa, &d, scratch, gate, TILE);
        set_w(&d, a->up, a->up_s, b->expert, i0, a->I);
        td_dot(j->isa, &d, scratch, up, TILE);
        for (int m = 0; m < b->m; m++) {
            const int64_t pair = b->first + m;
            float *scale = a->dtype == TD_E4M3 ? j->hs + pair * n_tiles + tile : NULL;
            j->product(gate + m * TILE, up + m * TILE, d.n, a->dtype, a->ue8m0,
                       j->h + (pair * a->I + i0) * size, scale);
        }
    }
}

static void results(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    job *j = arg;
    const td_moe_experts_args *a = j->a;
    const int n_tiles = td_ceil_div(j->n_d, TILE), n_groups = td_ceil_div(a->I, TD_QUANT_GROUP);
    unsigned char *scratch = td_cpu_scratch(j->stream, thread, j->part_bytes);
    for (int64_t item = begin; item < end; item++) {
        const block *b = &j->blocks[item / n_tiles];
        const int at = (int)(item % n_tiles) * TILE;
        td_dot_args d = {.x_stride = a->I, .m = b->m, .K = a->I, .dtype = a->dtype};
        d.x = j->h + (int64_t)b->first * a->I * (int64_t)td_dtype_bytes(a->dtype);
        d.xs = a->dtype == TD_E4M3 ? j->hs + (int64_t)b->first * n_groups : NULL;
        set_w(&d, a->down, a->down_s, b->expert, j->d0 + at, a->D);
        td_dot(j->isa, &d, scratch, j->slab + (int64_t)b->first * j->n_d + at, j->n_d);
    }
}

static void sums(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    job *j = arg;
    const td_moe_experts_args *a = j->a;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *y = a->y + (j->t0 + t) * a->D + j->d0;
        memset(y, 0, (size_t)j->n_d * sizeof(*y));
        for (int64_t k = 0; k < a->K; k++) {
            const int64_t pair = j->place[t * a->K + k];
            if (pair >= 0)
                td_cpu_add_scaled(j->isa, a->weights[(j->t0 + t) * a->K + k],
                                  j->slab + pair * j->n_d, j->n_d, y);
        }
    }
}

static void run_chunk(job *j)
{
    const td_moe_experts_args *a = j->a;
    sort_pairs(j);
    td_cpu_for(j->stream, (int64_t)j->n_blocks * td_ceil_div(a->I, TILE), 1, products, j);
    for (j->d0 = 0; j->d0 < a->D; j->d0 += j->slab_step) {
        j->n_d = least(a->D - j->d0, j->slab_step);
        td_cpu_for(j->stream, (int64_t)j->n_blocks * td_ceil_div(j->n_d, TILE), 1, results, j);
        td_cpu_for(j->stream, j->n_t, 1 + 16384 / j->n_d, sums, j);
    }
}

td_status td_moe_experts_cpu(const td_moe_experts_args *a, td_stream *stream)
{
    if (!td_moe_experts_valid(a))
        return TD_BAD_SHAPE;
    if (a->T == 0 || a->D == 0)
        return TD_OK;
    if (a->K == 0 || a->I == 0 || a->expert_lo == a->expert_hi) {
        memset(a->y, 0, (size_t)a->T * (size_t)a->D * sizeof(*a->y));
        return TD_OK;
    }
    job j = {.a = a, .stream = stream, .isa = td_cpu_isa(stream)};
    j.product = LANES_PICK(j.isa, moe_product);
    const int step = chunk_tokens(a);
    const int m = least((int64_t)step * a->K, TD_DOT_M);
    j.dot_bytes = aligned(td_dot_scratch_bytes(m, a->D > a->I ? a->D : a->I));
    j.part_bytes = j.dot_bytes + (size_t)2 * TD_DOT_M * TILE * sizeof(float);
    unsigned char *room = td_cpu_shared_scratch(stream, lay_out(&j, step, NULL));
    if (room == NULL || td_cpu_reserve(stream, j.part_bytes) != TD_OK)
        return TD_NOMEM;
    lay_out(&j, step, room);
    for (j.t0 = 0; j.t0 < a->T; j.t0 += step) {
        j.n_t = least(a->T - j.t0, step);
        run_chunk(&j);
    }
    return TD_OK;
}
