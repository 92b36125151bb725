#include "tests/model/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* log(sum(exp(x))), and the place of the largest. */
static double log_sum(const float *x, size_t n, size_t *top)
{
    double sum = 0;
    *top = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[*top])
            *top = i;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)x[*top]);
    return (double)x[*top] + log(sum);
}

td_closeness td_compare_logits(const float *want, const float *got, size_t rows, size_t vocab)
{
    td_closeness c = {0, 0};
    for (size_t r = 0; r < rows; r++) {
        const float *a = want + r * vocab, *b = got + r * vocab;
        size_t top_a, top_b;
        double za = log_sum(a, vocab, &top_a), zb = log_sum(b, vocab, &top_b);
        for (size_t i = 0; i < vocab; i++)
            c.kl += exp((double)a[i] - za) * (((double)a[i] - za) - ((double)b[i] - zb));
        c.top1 += top_a == top_b;
    }
    c.kl /= (double)rows;
    c.top1 /= (double)rows;
    return c;
}

double td_max_difference(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) /* NaN counts */
            most = d;
    }
    return most;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double td_median_error(const float *want, const float *got, size_t n)
{
    double *errors = malloc(n * sizeof(*errors));
    if (errors == NULL)
        abort();
    for (size_t i = 0; i < n; i++)
        errors[i] = fabs((double)got[i] - (double)want[i]) / (fabs((double)want[i]) + 1e-3);
    qsort(errors, n, sizeof(*errors), by_value);
    double median = errors[n / 2];
    free(errors);
    return median;
}

double td_perplexity(const float *logits, const int32_t *ids, size_t n, size_t vocab)
{
    double sum = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        size_t top;
        sum += log_sum(logits + i * vocab, vocab, &top) -
               (double)logits[i * vocab + (size_t)ids[i + 1]];
    }
    return exp(sum / (double)(n - 1));
}

size_t td_equal_rows(const float *want, const float *got, size_t rows, size_t vocab, double eps)
{
    size_t r = 0;
    while (r < rows && td_max_difference(want + r * vocab, got + r * vocab, vocab) <= eps)
        r++;
    return r;
}

const char *td_source_path(const char *path)
{
    static char paths[4][1024];
    static int next;
    const char *tree = getenv("TANDEM_SOURCE");
    char *text = paths[next++ % 4];
    snprintf(text, sizeof(paths[0]), "%s/%s", tree == NULL ? "." : tree, path);
    return text;
}

const td_tensor *td_need(const td_safetensors *file, const char *name)
{
    const td_tensor *t = td_safetensors_find(file, name);
    if (t == NULL) {
        fprintf(stderr, "no tensor %s\n", name);
        abort();
    }
    return t;
}
