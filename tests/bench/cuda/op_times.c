#include "tests/bench/cuda/op_times.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 96
#define MAX_CALLS 4096 /* between two waits */
#define FP8_RATE 1979e12
#define BF16_RATE 989.5e12
#define F32_RATE 67e12

typedef struct { /* what a call must do at least */
    char label[64];
    double flop, rate, bytes;
} task;

typedef struct {
    char label[64];
    double seconds, limit; /* limit: sum over calls; 0: none is known */
    uint64_t n_calls;
} row;

static struct {
    td_device *device;
    td_stream *stream;
    const td_ops *real;
    td_ops ops;
    td_op_phase phase;
    td_event *events[2 * MAX_CALLS];
    int rows_of[MAX_CALLS];
    int n_calls, n_rows;
    row rows[MAX_ROWS];
    td_status st;
    td_err err;
} times;

static const char *dtype_text(td_dtype dtype)
{
    return dtype == TD_E4M3 ? "e4m3" : dtype == TD_BF16 ? "bf16" : "f32";
}

static double rate_of(td_dtype dtype)
{
    return dtype == TD_E4M3 ? FP8_RATE : dtype == TD_BF16 ? BF16_RATE : F32_RATE;
}

/* ---- limits: the bytes that cannot be avoided, the multiply-adds that the shape asks for ---- */

static void describe_gemm(const td_gemm_args *a, task *t)
{
    double es = (double)td_dtype_bytes(a->dtype), ys = (double)td_dtype_bytes(a->y_dtype);
    double m = a->M, n = a->N, k = a->K;
    snprintf(t->label, sizeof(t->label), "gemm %s %dx%d", dtype_text(a->dtype), a->N, a->K);
    t->flop = 2 * m * n * k;
    t->rate = rate_of(a->dtype);
    t->bytes = (n * k + m * k) * es + m * n * ys;
}

static void describe_head_gemm(const td_head_gemm_args *a, task *t)
{
    double es = (double)td_dtype_bytes(a->act), h = a->H, n = a->N, k = a->K, m = a->T;
    snprintf(t->label, sizeof(t->label), "head_gemm %d of %dx%d", a->H, a->N, a->K);
    t->flop = 2 * m * h * n * k;
    t->rate = rate_of(a->act);
    t->bytes = (h * n * k + m * h * (n + k)) * es;
}

/* Uniform routing: so many experts are touched. */
static void describe_moe_experts(const td_moe_experts_args *a, task *t)
{
    double es = (double)td_dtype_bytes(a->dtype), d = a->D, i = a->I,
           e = a->expert_hi - a->expert_lo;
    double touched = e * (1 - pow(1 - (double)a->K / e, a->T));
    snprintf(t->label, sizeof(t->label), "moe_experts %.0f x %d, top-%d", e, a->I, a->K);
    t->flop = 6.0 * a->K * a->T * i * d;
    t->rate = rate_of(a->dtype);
    t->bytes = touched * 3 * i * d * es + a->T * d * (es + 4);
}

static void describe_sparse_mla(const td_sparse_mla_args *a, task *t)
{
    snprintf(t->label, sizeof(t->label), "sparse_mla %d heads", a->H);
    t->flop = 2.0 * a->T * times.phase.mean_selected * a->H * (2 * a->C + a->R);
    t->rate = BF16_RATE;
    t->bytes = a->T * times.phase.mean_selected * 656.0;
}

static void describe_index_logits(const td_index_logits_args *a, task *t)
{
    double scored = a->T * times.phase.mean_scored;
    snprintf(t->label, sizeof(t->label), "index_logits %d heads", a->Hi);
    t->flop = 2 * scored * a->Hi * a->dim;
    t->rate = FP8_RATE;
    t->bytes = scored > 0 ? times.phase.n_seqs * times.phase.mean_len * 132 + 4 * scored : 0;
}

static void describe(const char *op, const void *args, task *t)
{
    snprintf(t->label, sizeof(t->label), "%s", op);
#define IS(name) (strcmp(op, #name) == 0)
#define ARGS(name) const td_##name##_args *a = args
    if (IS(gemm)) {
        describe_gemm(args, t);
    } else if (IS(head_gemm)) {
        describe_head_gemm(args, t);
    } else if (IS(moe_experts)) {
        describe_moe_experts(args, t);
    } else if (IS(sparse_mla)) {
        describe_sparse_mla(args, t);
    } else if (IS(index_logits)) {
        describe_index_logits(args, t);
    } else if (IS(topk)) {
        ARGS(topk);
        t->bytes = 4.0 * a->T * times.phase.mean_scored;
    } else if (IS(rmsnorm)) {
        ARGS(rmsnorm);
        double passes = 2 + (a->res != NULL) + (a->res_out != NULL);
        t->bytes = (double)a->T * a->D * (passes * (double)td_dtype_bytes(a->act) + (a->q != NULL));
    } else if (IS(quant)) {
        ARGS(quant);
        t->bytes = 3.0 * a->T * a->K;
    } else if (IS(silu_mul)) {
        ARGS(silu_mul);
        t->bytes = (double)a->T * a->I * (3.0 * (double)td_dtype_bytes(a->act) + (a->q != NULL));
    } else if (IS(sum_partials)) {
        ARGS(sum_partials);
        t->bytes = (double)a->T * a->D * (4.0 * a->P + (double)td_dtype_bytes(a->act));
    } else if (IS(widen)) {
        ARGS(widen);
        t->bytes = 6.0 * a->T * a->D;
    } else if (IS(argmax)) {
        ARGS(argmax);
        t->bytes = 4.0 * a->T * a->V;
    } else if (IS(sample)) {
        ARGS(sample);
        t->bytes = 4.0 * a->T * a->V;
    }
#undef IS
#undef ARGS
}

/* ---- calls ---- */

static int row_of(const char *label)
{
    for (int i = 0; i < times.n_rows; i++)
        if (strcmp(times.rows[i].label, label) == 0)
            return i;
    td_assert(times.n_rows < MAX_ROWS);
    snprintf(times.rows[times.n_rows].label, sizeof(times.rows[0].label), "%s", label);
    return times.n_rows++;
}

static void keep(td_status st)
{
    if (st < 0 && times.st == TD_OK) {
        times.st = st;
        if (times.err.status == TD_OK)
            td_fail(&times.err, st, "%s", td_status_text(st));
    }
}

/* Waits, and adds up the calls since the last wait. */
static void collect(void)
{
    keep(td_stream_sync(times.stream, &times.err));
    for (int i = 0; i < times.n_calls && times.st == TD_OK; i++) {
        int64_t ns = 0;
        keep(td_event_elapsed_ns(times.events[2 * i], times.events[2 * i + 1], times.stream, &ns,
                                 &times.err));
        times.rows[times.rows_of[i]].seconds += (double)ns * 1e-9;
    }
    times.n_calls = 0;
}

static void before(const char *op, const void *args)
{
    task t = {.rate = 1};
    double memory = 0, compute = 0;
    if (times.n_calls == MAX_CALLS)
        collect();
    describe(op, args, &t);
    row *r = &times.rows[times.rows_of[times.n_calls] = row_of(t.label)];
    if (times.phase.copy_rate > 0) {
        memory = t.bytes / times.phase.copy_rate;
        compute = t.flop / t.rate;
    }
    r->limit += memory > compute ? memory : compute;
    r->n_calls++;
    keep(td_event_record(times.events[(size_t)2 * (size_t)times.n_calls], times.stream));
}

static void after(void)
{
    keep(td_event_record(times.events[(size_t)2 * (size_t)times.n_calls + 1], times.stream));
    times.n_calls++;
}

#define TIMED(op)                                                                                  \
    static td_status timed_##op(const td_##op##_args *a, td_stream *stream)                        \
    {                                                                                              \
        before(#op, a);                                                                            \
        td_status st = times.real->op(a, stream);                                                  \
        after();                                                                                   \
        return st;                                                                                 \
    }
TD_OPS_MAP(TIMED)
#undef TIMED

td_status td_op_times_open(td_device *device, const td_ops *ops, const td_ops **out, td_err *err)
{
    td_status st = TD_OK;
    times.device = device;
    times.stream = td_device_stream(device);
    times.real = ops;
    times.ops = *ops;
#define TAKE(op) times.ops.op = timed_##op;
    TD_OPS_MAP(TAKE)
#undef TAKE
    for (size_t i = 0; i < 2 * MAX_CALLS && st == TD_OK; i++)
        st = td_event_create(device, &times.events[i], err);
    if (st == TD_OK)
        *out = &times.ops;
    else
        td_op_times_close();
    return st;
}

void td_op_times_close(void)
{
    for (size_t i = 0; i < 2 * MAX_CALLS; i++)
        td_event_destroy(times.device, times.events[i]);
    memset(&times, 0, sizeof(times));
}

void td_op_times_begin(const td_op_phase *phase)
{
    times.phase = *phase;
    times.n_calls = times.n_rows = 0;
    times.st = times.err.status = TD_OK;
    memset(times.rows, 0, sizeof(times.rows));
}

static int by_time(const void *a, const void *b)
{
    double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return x > y ? -1 : x < y;
}

td_status td_op_times_report(const char *title, int n_steps, td_err *err)
{
    double total = 0, limit = 0;
    collect();
    if (times.st < 0)
        return td_fail(err, times.st, "timing operations: %s", times.err.text);
    qsort(times.rows, (size_t)times.n_rows, sizeof(*times.rows), by_time);
    for (int i = 0; i < times.n_rows; i++) {
        total += times.rows[i].seconds;
        limit += times.rows[i].limit;
    }
    printf("  operations of %s, one by one: %.3f ms", title, total * 1e3 / n_steps);
    if (limit > 0)
        printf(", the sum of the limits is %.3f ms", limit * 1e3 / n_steps);
    printf("\n    %-32s %8s %11s %7s %9s\n", "operation", "calls", "ms", "share", "of limit");
    for (int i = 0; i < times.n_rows; i++) {
        const row *r = &times.rows[i];
        printf("    %-32s %8.0f %11.3f %6.1f%%", r->label, (double)r->n_calls / n_steps,
               r->seconds * 1e3 / n_steps, 100 * r->seconds / total);
        if (r->limit > 0)
            printf(" %8.1f%%\n", 100 * r->limit / r->seconds);
        else
            printf(" %9s\n", "-");
    }
    fflush(stdout);
    return TD_OK;
}
