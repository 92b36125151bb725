/* moe_exact.h - inputs of moe_experts with which its first two products are exact (small integers,
 * scales that are powers of two), and what its third may be off by. */
#ifndef TD_TESTS_KERNELS_MOE_EXACT_H
#define TD_TESTS_KERNELS_MOE_EXACT_H
#include "kernels/moe_experts/moe_experts.h"
#include "tests/kernels/kernel_test.h"

static inline void *kt_moe_integers(kt_rng *rng, size_t n, td_dtype dtype)
{
    void *x = kt_alloc(n * td_dtype_bytes(dtype));
    kt_fill_integers(rng, x, n, 2, dtype);
    return x;
}

static inline float *kt_moe_powers(kt_rng *rng, size_t n)
{
    float *s = kt_alloc(n * 4);
    for (size_t i = 0; i < n; i++)
        s[i] = 1.0f / (float)(1 << kt_int(rng, 3, 4));
    return s;
}

/* sum |weight h down| of [t, d] from above, all pointers of a on the host: h of the reference is
 * not visible, but |silu(g) u| <= |g u|, which quantising raises by at most 1/16. */
static inline double kt_moe_magnitude(const td_moe_experts_args *a, int t, int d)
{
    const int gd = td_ceil_div(a->D, TD_QUANT_GROUP), gi = td_ceil_div(a->I, TD_QUANT_GROUP);
    double sum = 0;
    for (int k = 0; k < a->K; k++) {
        const int id = a->ids[t * a->K + k], e = id - a->expert_lo;
        if (id < a->expert_lo || id >= a->expert_hi)
            continue;
        for (int i = 0; i < a->I; i++) {
            const size_t row = (size_t)(e * a->I + i) * (size_t)a->D;
            const int scale = (e * gi + i / TD_QUANT_GROUP) * gd;
            double gate = 0, up = 0;
            for (int c = 0; c < a->D; c++) {
                double x = (double)kt_get(a->x, (size_t)(t * a->D + c), a->dtype);
                double wg = (double)kt_get(a->gate, row + (size_t)c, a->dtype);
                double wu = (double)kt_get(a->up, row + (size_t)c, a->dtype);
                if (a->dtype == TD_E4M3) {
                    x *= (double)a->xs[t * gd + c / TD_QUANT_GROUP];
                    wg *= (double)a->gate_s[scale + c / TD_QUANT_GROUP];
                    wu *= (double)a->up_s[scale + c / TD_QUANT_GROUP];
                }
                gate += x * wg;
                up += x * wu;
            }
            double down = (double)kt_get(a->down, (size_t)(e * a->D + d) * (size_t)a->I + (size_t)i,
                                         a->dtype);
            if (a->dtype == TD_E4M3)
                down *= (double)a->down_s[(e * gd + d / TD_QUANT_GROUP) * gi + i / TD_QUANT_GROUP];
            sum += (double)a->weights[t * a->K + k] * 1.07 * fabs(gate * up * down);
        }
    }
    return sum;
}
#endif
