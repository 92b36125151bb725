/* ways.h - every way to run an operation on this machine: 1, 2 and 3 threads, each instruction set.
 * Also paged caches with scattered pages. */
#ifndef TD_TESTS_KERNELS_WAYS_H
#define TD_TESTS_KERNELS_WAYS_H
#include "tests/kernels/kernel_test.h"

#define KT_MAX_THREADS 3

typedef struct {
    td_device *device[KT_MAX_THREADS];
    int threads; /* of the current way, 1.. */
    int isa;
    int family; /* 0 portable, 1 AVX2 and AVX-512: bits are equal within a family */
    td_stream *stream;
} kt_ways;

static inline kt_ways kt_ways_open(void)
{
    kt_ways w = {.threads = 1, .isa = -1};
    for (uint32_t i = 0; i < KT_MAX_THREADS; i++)
        w.device[i] = kt_open(i + 1);
    return w;
}

/* 1: the next way is set up. 0: none left; the next call starts again. */
static inline int kt_ways_next(kt_ways *w)
{
    w->isa++;
    w->stream = td_device_stream(w->device[w->threads - 1]);
    if (!kt_next_isa(w->stream, w->isa)) {
        w->isa = 0;
        if (w->threads++ == KT_MAX_THREADS) {
            w->threads = 1;
            w->isa = -1;
            return 0;
        }
        w->stream = td_device_stream(w->device[w->threads - 1]);
        td_cpu_set_isa(w->stream, TD_ISA_PORTABLE);
    }
    w->family = w->isa != TD_ISA_PORTABLE;
    return 1;
}

static inline void kt_ways_close(kt_ways *w)
{
    for (int i = 0; i < KT_MAX_THREADS; i++)
        td_device_close(w->device[i]);
}

/* The first result of each family, to compare the others with. */
typedef struct {
    unsigned char *bytes[2];
} kt_first;

/* The same bits, any NaN being like any other (which operand's a sum hands on is not fixed). */
static inline void kt_same_numbers(const void *want, const void *got, size_t n, td_dtype dtype)
{
    const size_t es = td_dtype_bytes(dtype);
    if (memcmp(want, got, n * es) == 0)
        return;
    for (size_t i = 0; i < n; i++)
        if (!isnan(kt_get(want, i, dtype)) || !isnan(kt_get(got, i, dtype)))
            TD_MEM((const char *)want + i * es, (const char *)got + i * es, es);
}

static inline void kt_first_same(kt_first *f, const kt_ways *w, const kt_out *out, td_dtype dtype)
{
    unsigned char **first = &f->bytes[w->family];
    const size_t n = out->row_bytes / td_dtype_bytes(dtype);
    int is_first = *first == NULL;
    if (is_first)
        *first = kt_alloc(out->rows * out->row_bytes);
    for (size_t r = 0; r < out->rows; r++) {
        unsigned char *want = *first + r * out->row_bytes, *got = out->p + r * out->stride;
        if (is_first)
            memcpy(want, got, out->row_bytes);
        kt_same_numbers(want, got, n, dtype);
    }
}

static inline void kt_first_free(kt_first *f)
{
    free(f->bytes[0]);
    free(f->bytes[1]);
    f->bytes[0] = f->bytes[1] = NULL;
}

static inline int kt_pick(kt_rng *rng, const int *list, int n)
{
    return list[kt_int(rng, 0, n - 1)];
}
#define KT_PICK(rng, ...)                                                                          \
    kt_pick(rng, (const int[]){__VA_ARGS__},                                                       \
            (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)))

/* A number that sums do not survive: NaN, infinities, huge, tiny. */
static inline float kt_odd(kt_rng *rng)
{
    static const float odd[] = {NAN,      INFINITY, -INFINITY, 3.0e38f, -3.0e38f,
                                1.0e-40f, -0.0f,    0.0f,      1.0e-20f};
    return odd[kt_int(rng, 0, 8)];
}

/* B requests of up to max_pages pages each, every page somewhere else in the slab. */
typedef struct {
    td_kv_view kv;
    int32_t *block_table; /* [B, max_pages] */
    int B, max_pages, n_pages;
    size_t n_bytes;
} kt_cache;

/* page_bytes: of the plane; pages of other planes stand between. Filled with random bytes. */
static inline kt_cache kt_cache_new(kt_rng *rng, int dtype, int page_rows, size_t page_bytes, int B,
                                    int max_pages)
{
    kt_cache c = {.B = B, .max_pages = max_pages, .n_pages = B * max_pages + 2};
    c.kv.dtype = dtype;
    c.kv.page_rows = page_rows;
    c.kv.page_stride = page_bytes + 192;
    c.n_bytes = (size_t)c.n_pages * c.kv.page_stride;
    c.kv.plane = kt_alloc(c.n_bytes);
    for (size_t i = 0; i < c.n_bytes; i++)
        c.kv.plane[i] = (unsigned char)kt_u64(rng);
    c.block_table = kt_alloc((size_t)(B * max_pages) * 4);
    int32_t *ids = kt_alloc((size_t)c.n_pages * 4);
    for (int i = 0; i < c.n_pages; i++) {
        int j = kt_int(rng, 0, i);
        ids[i] = ids[j];
        ids[j] = i;
    }
    memcpy(c.block_table, ids, (size_t)(B * max_pages) * 4);
    free(ids);
    return c;
}

static inline void kt_cache_free(kt_cache *c)
{
    free(c->kv.plane);
    free(c->block_table);
}

static inline int32_t kt_cache_slot(const kt_cache *c, int request, int position)
{
    return c->block_table[request * c->max_pages + position / c->kv.page_rows] * c->kv.page_rows +
           position % c->kv.page_rows;
}
#endif
