#include "kernels/rope/rope_table.h"

#include <math.h>
#include <stdint.h>

#define PI 3.14159265358979323846
#define MAX_R 4096

/* The pair that turns r times over the original context, as a real number. */
static double pair_of(const td_rope_params *p, double r)
{
    return p->R * log(p->original_max_pos / (2.0 * PI * r)) / (2.0 * log(p->theta));
}

static td_status check(const td_rope_params *p, td_err *err)
{
    if (p->R < 2 || p->R % 2 != 0 || p->R > MAX_R)
        return td_fail(err, TD_INVALID, "rope: %d rotary dims, want an even number to %d", p->R,
                       MAX_R);
    if (!(p->theta > 1.0f) || !isfinite(p->theta))
        return td_fail(err, TD_INVALID, "rope: theta %g is not above 1", p->theta);
    if (!p->yarn)
        return TD_OK;
    if (!(p->factor > 0.0f) || !isfinite(p->factor))
        return td_fail(err, TD_INVALID, "rope: yarn factor %g", p->factor);
    if (!(p->beta_fast > 0.0f) || !(p->beta_slow > 0.0f) || !isfinite(p->beta_fast) ||
        !isfinite(p->beta_slow))
        return td_fail(err, TD_INVALID, "rope: yarn beta_fast %g, beta_slow %g", p->beta_fast,
                       p->beta_slow);
    if (p->original_max_pos < 1)
        return td_fail(err, TD_INVALID, "rope: original_max_position_embeddings %d",
                       p->original_max_pos);
    return TD_OK;
}

td_status td_rope_frequencies(const td_rope_params *p, double *f, td_err *err)
{
    td_status st = check(p, err);
    if (st != TD_OK)
        return st;
    for (int i = 0; i < p->R / 2; i++)
        f[i] = 1.0 / pow((double)p->theta, (double)(2 * i) / (double)p->R);
    if (!p->yarn)
        return TD_OK;
    double low = fmax(floor(pair_of(p, p->beta_fast)), 0.0);
    double high = fmin(ceil(pair_of(p, p->beta_slow)), p->R - 1.0);
    if (low == high)
        high += 0.001;
    for (int i = 0; i < p->R / 2; i++) {
        double m = 1.0 - fmin(fmax((i - low) / (high - low), 0.0), 1.0);
        f[i] = f[i] / (double)p->factor * (1.0 - m) + f[i] * m;
    }
    return TD_OK;
}

td_status td_rope_table(const td_rope_params *p, int max_pos, float *cos_sin, td_err *err)
{
    double f[MAX_R / 2];
    td_status st = td_rope_frequencies(p, f, err);
    if (st != TD_OK)
        return st;
    if (max_pos < 0)
        return td_fail(err, TD_INVALID, "rope: %d positions", max_pos);
    const int pairs = p->R / 2;
    for (int64_t pos = 0; pos < max_pos; pos++)
        for (int i = 0; i < pairs; i++) {
            double angle = (double)pos * f[i];
            cos_sin[(pos * pairs + i) * 2] = (float)cos(angle);
            cos_sin[(pos * pairs + i) * 2 + 1] = (float)sin(angle);
        }
    return TD_OK;
}
