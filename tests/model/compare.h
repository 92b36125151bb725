/* compare.h - how far two sets of logits are apart, and where the golden sets are. */
#ifndef TD_TESTS_MODEL_COMPARE_H
#define TD_TESTS_MODEL_COMPARE_H
#include "model/safetensors.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    double kl;   /* mean over rows of KL(want || got), natural logarithm */
    double top1; /* share of rows with the same largest logit */
} td_closeness;

td_closeness td_compare_logits(const float *want, const float *got, size_t rows, size_t vocab);
double td_max_difference(const float *a, const float *b, size_t n);
/* Median over all elements of |got - want| / (|want| + 1e-3). */
double td_median_error(const float *want, const float *got, size_t n);
/* Perplexity of ids[1..n-1] under rows 0..n-2. */
double td_perplexity(const float *logits, const int32_t *ids, size_t n, size_t vocab);
/* Rows from the first on that differ nowhere by more than eps. */
size_t td_equal_rows(const float *want, const float *got, size_t rows, size_t vocab, double eps);

/* "<source tree>/<path>"; the tree is TANDEM_SOURCE, or the current folder. */
const char *td_source_path(const char *path);
/* A tensor of a file, aborting when it is not there. */
const td_tensor *td_need(const td_safetensors *file, const char *name);
#endif
