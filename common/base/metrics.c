#include "common/base/metrics.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_BUCKETS 16

static const double bucket_s[N_BUCKETS] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                                           0.5,   1,     2,     5,    10,   20,   50,  100};

struct td_metric {
    char *name, *labels, *help;
    td_metric_kind kind;
    _Atomic int is_double;
    _Atomic int64_t value;               /* counter, gauge (bits of a double if is_double) */
    _Atomic uint64_t buckets[N_BUCKETS]; /* not cumulative; the rest of count is above 100 s */
    _Atomic uint64_t count;
    _Atomic int64_t sum_ns;
};

/* The array never moves: a td_metric pointer is good until destroy(). */
struct td_metrics {
    td_metric *items; /* [max]; the first n are valid */
    uint32_t n, max;
};

static void metric_fini(td_metric *m)
{
    free(m->name);
    free(m->labels);
    free(m->help);
    m->name = m->labels = m->help = NULL;
}

static double as_double(int64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

static const char *kind_name(td_metric_kind kind)
{
    switch (kind) {
    case TD_COUNTER: return "counter";
    case TD_GAUGE: return "gauge";
    case TD_HISTOGRAM: return "histogram";
    }
    return "untyped";
}

static void print_histogram(FILE *out, td_metric *m)
{
    const char *comma = m->labels[0] != '\0' ? "," : "";
    uint64_t below = 0;
    for (int i = 0; i < N_BUCKETS; i++) {
        below += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
        fprintf(out, "%s_bucket{%s%sle=\"%g\"} %" PRIu64 "\n", m->name, m->labels, comma,
                bucket_s[i], below);
    }
    uint64_t count = atomic_load_explicit(&m->count, memory_order_relaxed);
    if (count < below) /* an observation is half counted: show what is complete */
        count = below;
    fprintf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", m->name, m->labels, comma, count);
    const char *open = m->labels[0] != '\0' ? "{" : "", *close = m->labels[0] != '\0' ? "}" : "";
    fprintf(out, "%s_sum%s%s%s %.9g\n", m->name, open, m->labels, close,
            (double)atomic_load_explicit(&m->sum_ns, memory_order_relaxed) * 1e-9);
    fprintf(out, "%s_count%s%s%s %" PRIu64 "\n", m->name, open, m->labels, close, count);
}

static void print_series(FILE *out, td_metric *m)
{
    if (m->kind == TD_HISTOGRAM) {
        print_histogram(out, m);
        return;
    }
    const char *open = m->labels[0] != '\0' ? "{" : "", *close = m->labels[0] != '\0' ? "}" : "";
    fprintf(out, "%s%s%s%s ", m->name, open, m->labels, close);
    int64_t value = atomic_load_explicit(&m->value, memory_order_relaxed);
    if (atomic_load_explicit(&m->is_double, memory_order_relaxed))
        fprintf(out, "%.15g\n", as_double(value));
    else
        fprintf(out, "%" PRId64 "\n", value);
}

td_status td_metrics_create(uint32_t max_metrics, td_metrics **out, td_err *err)
{
    td_metrics *registry = calloc(1, sizeof(*registry));
    if (registry == NULL)
        goto fail;
    registry->items = calloc(max_metrics == 0 ? 1 : max_metrics, sizeof(*registry->items));
    if (registry->items == NULL)
        goto fail;
    registry->max = max_metrics;
    *out = registry;
    return TD_OK;
fail:
    td_metrics_destroy(registry);
    return td_fail(err, TD_NOMEM, "metrics: no memory for %u metrics", max_metrics);
}

void td_metrics_destroy(td_metrics *registry)
{
    if (registry == NULL)
        return;
    for (uint32_t i = 0; i < registry->n; i++)
        metric_fini(&registry->items[i]);
    free(registry->items);
    free(registry);
}

td_metric *td_metrics_get(td_metrics *registry, td_metric_kind kind, const char *name,
                          const char *labels, const char *help)
{
    for (uint32_t i = 0; i < registry->n; i++) {
        td_metric *m = &registry->items[i];
        if (strcmp(m->name, name) != 0)
            continue;
        td_assert(m->kind == kind);
        if (strcmp(m->labels, labels) == 0)
            return m;
    }
    if (registry->n == registry->max)
        return NULL;
    td_metric *m = &registry->items[registry->n];
    m->name = strdup(name);
    m->labels = strdup(labels);
    m->help = strdup(help);
    if (m->name == NULL || m->labels == NULL || m->help == NULL) {
        metric_fini(m);
        return NULL;
    }
    m->kind = kind;
    registry->n++;
    return m;
}

void td_metric_add(td_metric *metric, int64_t delta)
{
    if (metric != NULL)
        atomic_fetch_add_explicit(&metric->value, delta, memory_order_relaxed);
}

void td_metric_set(td_metric *metric, int64_t value)
{
    if (metric != NULL)
        atomic_store_explicit(&metric->value, value, memory_order_relaxed);
}

void td_metric_set_double(td_metric *metric, double value)
{
    if (metric == NULL)
        return;
    td_assert(metric->kind == TD_GAUGE);
    int64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    atomic_store_explicit(&metric->is_double, 1, memory_order_relaxed);
    atomic_store_explicit(&metric->value, bits, memory_order_relaxed);
}

void td_metric_observe(td_metric *metric, double seconds)
{
    if (metric == NULL || !(seconds >= 0 && seconds < 1e9)) /* NaN too: nothing sensible to add */
        return;
    for (int i = 0; i < N_BUCKETS; i++)
        if (seconds <= bucket_s[i]) {
            atomic_fetch_add_explicit(&metric->buckets[i], 1, memory_order_relaxed);
            break;
        }
    atomic_fetch_add_explicit(&metric->sum_ns, (int64_t)(seconds * 1e9), memory_order_relaxed);
    atomic_fetch_add_explicit(&metric->count, 1, memory_order_relaxed);
}

int64_t td_metric_value(const td_metric *metric)
{
    if (metric == NULL)
        return 0;
    td_metric *m = (td_metric *)metric; /* C11 atomics take no const */
    if (m->kind == TD_HISTOGRAM)
        return (int64_t)atomic_load_explicit(&m->count, memory_order_relaxed);
    int64_t value = atomic_load_explicit(&m->value, memory_order_relaxed);
    if (atomic_load_explicit(&m->is_double, memory_order_relaxed))
        return (int64_t)as_double(value);
    return value;
}

char *td_metrics_text(const td_metrics *registry, size_t *n_bytes)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (out == NULL)
        return NULL;
    /* A family's series must stand together: each name is printed where it first occurs. */
    for (uint32_t i = 0; i < registry->n; i++) {
        td_metric *first = &registry->items[i];
        uint32_t before = 0;
        while (before < i && strcmp(registry->items[before].name, first->name) != 0)
            before++;
        if (before < i)
            continue;
        fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", first->name, first->help, first->name,
                kind_name(first->kind));
        for (uint32_t k = i; k < registry->n; k++)
            if (strcmp(registry->items[k].name, first->name) == 0)
                print_series(out, &registry->items[k]);
    }
    int failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    *n_bytes = n;
    return text;
}
