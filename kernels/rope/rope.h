/* rope.h - rotary embedding in place (model-spec A.4) on R dims of every head.
 *   interleaved: pairs (2i, 2i+1);  half-split: pairs (i, i+R/2).  y1 = x1*c - x2*s;  y2 = x1*s +
 * x2*c;  f32 inside. Rows whose position is not in 0..max_pos-1
 * are left alone. */
#ifndef TD_KERNELS_ROPE_H
#define TD_KERNELS_ROPE_H
#include "kernels/shapes.h"

typedef struct {
    void
        *x; /* act; head h of row t starts at x + t*row_stride + h*head_stride; dims 0..R-1 of it */
    const int32_t *positions; /* [T] */
    const float *cos_sin;     /* [max_pos, R/2, 2] f32 */
    int T, heads, R, max_pos;
    int64_t row_stride, head_stride;
    int interleaved;
    td_dtype act;
} td_rope_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_rope_valid(const td_rope_args *a)
{
    if (a->T < 0 || a->heads < 0 || a->R < 0 || a->R % 2 != 0 || a->max_pos < 0 ||
        (a->act != TD_F32 && a->act != TD_BF16))
        return 0;
    if (a->T == 0 || a->heads == 0 || a->R == 0)
        return 1;
    return a->x != NULL && a->positions != NULL && a->cos_sin != NULL &&
           (a->heads == 1 || a->head_stride >= a->R) && (a->T == 1 || a->row_stride >= a->R);
}

td_status td_rope_ref(const td_rope_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_rope_cpu(const td_rope_args *a, td_stream *stream);
td_status td_rope_cuda(const td_rope_args *a, td_stream *stream); /* in the plug-in */
#endif
