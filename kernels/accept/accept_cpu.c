/* accept_cpu.c - a handful of comparisons per request: no threads, no vectors. */
#include "kernels/accept/accept.h"

td_status td_accept_cpu(const td_accept_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_accept_valid(a))
        return TD_BAD_SHAPE;
    const int64_t N = a->N;
    for (int64_t b = 0; b < a->B; b++) {
        const int32_t *target = a->target + b * N, *draft = a->draft + b * (N - 1);
        int real = a->n_drafts[b] < a->N ? a->n_drafts[b] : a->N - 1;
        int n = 0;
        while (n < real && draft[n] == target[n])
            n++;
        a->n_accepted[b] = n;
    }
    return TD_OK;
}
