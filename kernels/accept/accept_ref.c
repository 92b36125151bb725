#include "kernels/accept/accept.h"

td_status td_accept_ref(const td_accept_args *a, td_stream *stream)
{
    (void)stream;
    if (!td_accept_valid(a))
        return TD_BAD_SHAPE;
    for (int b = 0; b < a->B; b++) {
        int n = 0;
        while (n < a->n_drafts[b] && n < a->N - 1 &&
               a->draft[(int64_t)b * (a->N - 1) + n] == a->target[(int64_t)b * a->N + n])
            n++;
        a->n_accepted[b] = n;
    }
    return TD_OK;
}
