/* accept.h - chain acceptance (model-spec D.3): target[b,j] is what the target drew at row j; the
 * draft at j is accepted while draft[b,j] == target[b,j]. With position-keyed draws this is exact
 * for greedy and lossless for sampling (the draft is a point mass: accepted with probability p(x),
 * a rejection draws from p without x). */
#ifndef TD_KERNELS_ACCEPT_H
#define TD_KERNELS_ACCEPT_H
#include "kernels/shapes.h"

typedef struct {
    const int32_t *target;   /* [B, N] N = drafts + 1 */
    const int32_t *draft;    /* [B, N - 1] */
    const int32_t *n_drafts; /* [B] how many of them are real */
    int32_t *n_accepted; /* [B] 0..n_drafts; the row's new tokens are target[b, 0..n_accepted] */
    int B, N;
} td_accept_args;

/* What any backend takes; otherwise TD_BAD_SHAPE. */
static inline int td_accept_valid(const td_accept_args *a)
{
    if (a->B < 0 || a->N < 1)
        return 0;
    return a->B == 0 || (a->target != NULL && a->n_drafts != NULL && a->n_accepted != NULL &&
                         (a->N == 1 || a->draft != NULL));
}

td_status td_accept_ref(const td_accept_args *a, td_stream *stream); /* plain judge: tests only */
td_status td_accept_cpu(const td_accept_args *a, td_stream *stream);
td_status td_accept_cuda(const td_accept_args *a, td_stream *stream); /* in the plug-in */
#endif
