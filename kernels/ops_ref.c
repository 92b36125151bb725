#include "kernels/ops.h"

const td_ops *td_ops_ref(void)
{
    static const td_ops ops = {.backend = "ref",
#define TD_OPS_REF(op) .op = td_##op##_ref,
                               TD_OPS_MAP(TD_OPS_REF)
#undef TD_OPS_REF
    };
    return &ops;
}
