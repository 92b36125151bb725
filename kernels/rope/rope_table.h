/* rope_table.h - the cosines and sines that rope reads (model-spec A.4). Host code, at boot. */
#ifndef TD_KERNELS_ROPE_TABLE_H
#define TD_KERNELS_ROPE_TABLE_H
#include "common/base/status.h"

typedef struct {
    int R; /* rotary dims, even */
    float theta;
    int yarn; /* 0: plain RoPE, the rest is not read */
    float factor, beta_fast, beta_slow;
    int original_max_pos; /* original_max_position_embeddings */
} td_rope_params;

/* f: [R/2] radians per position. TD_INVALID: parameters that give no finite frequencies. */
td_status td_rope_frequencies(const td_rope_params *params, double *f, td_err *err);
/* cos_sin: [max_pos, R/2, 2], cosine and sine of p * f_i, rounded once. The published code rounds
 * f_i and the angle to f32 (2e-4 radians at position 4,096, its own choice of last bits); the table
 * costs nothing per token, so it holds what the formula says. */
td_status td_rope_table(const td_rope_params *params, int max_pos, float *cos_sin, td_err *err);
#endif
