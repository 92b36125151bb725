/* cuda_test.h - what the tests of the CUDA operations share: the device (a machine without one
 * skips the test), inputs copied to it, outputs that are poisoned there and fetched with their
 * guards. Host data and the judges are those of tests/kernels. */
#ifndef TD_TESTS_CUDA_TEST_H
#define TD_TESTS_CUDA_TEST_H
#include "kernels/backend.h"
#include "tests/kernels/ways.h"

#include <unistd.h>

#define CT_MAX_BUFFERS 64

typedef struct {
    td_device *device;
    td_stream *stream;
    const td_ops *ops;
    void *buffers[CT_MAX_BUFFERS]; /* of the running case */
    int n_buffers;
} ct_gpu;

/* What compute-sanitizer slows down does less. TANDEM_TEST_SLOW, a number: 1, a launch takes ten
 * times as long (memcheck); 2, computing a hundred times as long, too (racecheck). */
static inline int ct_slow(void)
{
    const char *slow = getenv("TANDEM_TEST_SLOW");
    return slow == NULL ? 0 : atoi(slow);
}

/* How many of n rounds. */
static inline int ct_rounds(int n)
{
    return ct_slow() == 0 ? n : n < 10 ? 1 : n / 10;
}

/* Whether n rows may go through in batches of `rows`: not in many where launches are slow. */
static inline int ct_may_batch(int n, int rows)
{
    return ct_slow() == 0 || n <= (ct_slow() == 1 ? 40 : 4) * rows;
}

static inline ct_gpu ct_open_on(uint32_t index)
{
    td_backend_options options = {.kind = TD_BACKEND_CUDA, .index = index};
    ct_gpu g = {0};
    td_err err;
    td_status st = td_backend_open(&options, &g.device, &g.ops, &err);
    /* A plug-in that cannot be used where there are GPUs is no reason to skip. */
    if (st == TD_UNSUPPORTED &&
        (strstr(err.text, "plug-in") == NULL || access("/dev/nvidiactl", F_OK) != 0))
        td_skip(err.text);
    if (st < 0)
        printf("%s\n", err.text);
    TD_EQ(TD_OK, st);
    g.stream = td_device_stream(g.device);
    return g;
}

static inline ct_gpu ct_open(void)
{
    return ct_open_on(0);
}

static inline void ct_sync(ct_gpu *g)
{
    td_err err;
    td_status st = td_stream_sync(g->stream, &err);
    if (st < 0)
        printf("%s\n", err.text);
    TD_EQ(TD_OK, st);
}

/* Device memory that lives until ct_clear(); n_bytes may be 0. */
static inline void *ct_alloc(ct_gpu *g, size_t n_bytes)
{
    void *p = NULL;
    TD_TRUE(g->n_buffers < CT_MAX_BUFFERS);
    TD_EQ(TD_OK, td_device_alloc(g->device, n_bytes, &p, NULL));
    return g->buffers[g->n_buffers++] = p;
}

/* A copy on the device; NULL stays NULL. */
static inline void *ct_up(ct_gpu *g, const void *host, size_t n_bytes)
{
    if (host == NULL)
        return NULL;
    void *p = ct_alloc(g, n_bytes);
    TD_EQ(TD_OK, td_stream_write(g->stream, p, host, n_bytes));
    ct_sync(g);
    return p;
}

static inline void ct_down(ct_gpu *g, void *host, const void *device, size_t n_bytes)
{
    TD_EQ(TD_OK, td_stream_read(g->stream, host, device, n_bytes));
    ct_sync(g);
}

/* The output with its guards and poison as it stands on the host; returns its first row on the
 * device. */
static inline void *ct_out(ct_gpu *g, const kt_out *o)
{
    return (unsigned char *)ct_up(g, o->base, kt_out_bytes(o)) + KT_GUARD;
}

/* Fetches rows and guards and checks the guards. */
static inline void ct_fetch(ct_gpu *g, kt_out *o, const void *first_row)
{
    ct_down(g, o->base, (const unsigned char *)first_row - KT_GUARD, kt_out_bytes(o));
    kt_out_check(o);
}

/* Frees what the case allocated. */
static inline void ct_clear(ct_gpu *g)
{
    for (int i = 0; i < g->n_buffers; i++)
        td_device_free(g->device, g->buffers[i]);
    g->n_buffers = 0;
}

static inline void ct_close(ct_gpu *g)
{
    ct_clear(g);
    td_device_close(g->device);
}

/* Skips the test where there is none; for tests that open the GPU through something else. */
static inline void ct_need_gpu(void)
{
    ct_gpu g = ct_open();
    ct_close(&g);
}

/* An output of an operation: what the judge wrote, and what the device wrote in two runs. */
typedef struct {
    kt_out want, run[2];
    void *device[2]; /* first rows */
} ct_result;

static inline ct_result ct_result_new(size_t rows, size_t row_bytes, size_t stride_bytes)
{
    ct_result r = {.want = kt_out_new(rows, row_bytes, stride_bytes)};
    for (int i = 0; i < 2; i++)
        r.run[i] = kt_out_new(rows, row_bytes, stride_bytes);
    return r;
}

/* For operations that work in place: everything starts as these bytes, all rows with their gaps. */
static inline void ct_result_fill(ct_result *r, const void *bytes)
{
    const size_t n = r->want.rows * r->want.stride;
    memcpy(r->want.p, bytes, n);
    memcpy(r->run[0].p, bytes, n);
    memcpy(r->run[1].p, bytes, n);
}

static inline void ct_result_up(ct_gpu *g, ct_result *r)
{
    for (int i = 0; i < 2; i++)
        r->device[i] = ct_out(g, &r->run[i]);
}

/* Fetches both runs: guards are as they were, the second run has the bits of the first. */
static inline void ct_result_down(ct_gpu *g, ct_result *r)
{
    for (int i = 0; i < 2; i++)
        ct_fetch(g, &r->run[i], r->device[i]);
    kt_out_same(&r->run[0], &r->run[1]);
}

/* The same, and they are the judge's bits. */
static inline void ct_result_bits(ct_gpu *g, ct_result *r)
{
    ct_result_down(g, r);
    kt_out_same(&r->want, &r->run[0]);
}

/* The same; any NaN is like any other. */
static inline void ct_result_numbers(ct_gpu *g, ct_result *r, td_dtype dtype)
{
    ct_result_down(g, r);
    for (size_t t = 0; t < r->want.rows; t++)
        kt_same_numbers(r->want.p + t * r->want.stride, r->run[0].p + t * r->want.stride,
                        r->want.row_bytes / td_dtype_bytes(dtype), dtype);
}

static inline void ct_result_free(ct_result *r)
{
    kt_out_free(&r->want);
    kt_out_free(&r->run[0]);
    kt_out_free(&r->run[1]);
}

/* Inputs of a product: small integers, whose sums are exact, or a layer's values. */
static inline void ct_fill(kt_rng *rng, void *x, size_t n, td_dtype dtype, int integers)
{
    if (integers)
        kt_fill_integers(rng, x, n, 4, dtype);
    else
        kt_fill_act(rng, x, n, 1.0f, dtype);
}

/* Every element within `ulps` units in the last place, or within `abs` (where sums cancel); NaN
 * where NaN belongs. Both outputs have the same form. */
static inline void ct_near(const kt_out *want, const kt_out *got, td_dtype dtype, int64_t ulps,
                           float abs)
{
    const size_t n = want->row_bytes / td_dtype_bytes(dtype);
    for (size_t r = 0; r < want->rows; r++)
        for (size_t i = 0; i < n; i++) {
            float w = kt_get(want->p + r * want->stride, i, dtype);
            float v = kt_get(got->p + r * got->stride, i, dtype);
            int64_t d = dtype == TD_BF16 ? kt_ulp_bf16(td_f32_to_bf16(w), td_f32_to_bf16(v))
                                         : kt_ulp_f32(w, v);
            if (d <= ulps || fabsf(w - v) <= abs)
                continue;
            printf("row %zu, element %zu is %.9g, reference %.9g\n", r, i, (double)v, (double)w);
            TD_TRUE(0);
        }
}
#endif
