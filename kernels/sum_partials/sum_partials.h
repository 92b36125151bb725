/* sum_partials.h - the one rounding after the cross-rank sum: y = act( parts[0] + parts[1] + .. ),
 * in that order (design.md). */
#ifndef TD_KERNELS_SUM_PARTIALS_H
#define TD_KERNELS_SUM_PARTIALS_H
#include "kernels/shapes.h"

typedef struct {
    const float *parts; /* [P, T, D]; part p starts at p * part_stride */
    void *y;            /* [T, D] act, contiguous */
    int P, T, D;
    int64_t part_stride;
    td_dtype act;
} td_sum_partials_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_sum_partials_valid(const td_sum_partials_args *a)
{
    if (a->P < 1 || a->T < 0 || a->D < 0 || (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    if (a->P > 1 && a->part_stride < (int64_t)a->T * a->D)
        return 0;
    return a->T == 0 || a->D == 0 || (a->parts != NULL && a->y != NULL);
}

td_status td_sum_partials_ref(const td_sum_partials_args *a,
                              td_stream *stream); /* plain judge: tests only */
td_status td_sum_partials_cpu(const td_sum_partials_args *a, td_stream *stream);
td_status td_sum_partials_cuda(const td_sum_partials_args *a,
                               td_stream *stream); /* in the plug-in */
#endif
