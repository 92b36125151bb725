#include "model/sampling.h"

#include <math.h>

void td_sampling_init(td_sampling *sampling)
{
    *sampling = (td_sampling){.top_p = 1.0f};
}

td_status td_sampling_check(const td_sampling *sampling, int32_t vocab_size, td_err *err)
{
    if (!(sampling->temperature >= 0.0f) || !isfinite(sampling->temperature))
        return td_fail(err, TD_INVALID, "temperature %g: must be a number of at least 0",
                       (double)sampling->temperature);
    if (!(sampling->top_p > 0.0f && sampling->top_p <= 1.0f))
        return td_fail(err, TD_INVALID, "top_p %g: must be above 0 and at most 1",
                       (double)sampling->top_p);
    if (sampling->top_k < 0)
        return td_fail(err, TD_INVALID, "top_k %d: must not be negative", sampling->top_k);
    if (sampling->min_tokens < 0)
        return td_fail(err, TD_INVALID, "min_tokens %d: must not be negative",
                       sampling->min_tokens);
    if (sampling->n_forbid < 0 || sampling->n_forbid > TD_SAMPLING_MAX_FORBID)
        return td_fail(err, TD_INVALID, "%d stop ids: at most %d", sampling->n_forbid,
                       TD_SAMPLING_MAX_FORBID);
    for (int32_t i = 0; i < sampling->n_forbid; i++)
        if (sampling->forbid[i] < 0 || sampling->forbid[i] >= vocab_size)
            return td_fail(err, TD_INVALID, "stop id %d: the vocabulary has %d tokens",
                           sampling->forbid[i], vocab_size);
    return TD_OK;
}
