#include "kernels/ops.h"

const td_ops *td_ops_cpu(void)
{
    static const td_ops ops = {.backend = "cpu",
#define TD_OPS_CPU(op) .op = td_##op##_cpu,
                               TD_OPS_MAP(TD_OPS_CPU)
#undef TD_OPS_CPU
    };
    return &ops;
}
