/* plain_model.h - a whole forward pass of a made checkpoint in double precision, as plainly as it
 * can be said: no cache, no operation table, attention expanded per head, none of the model's code
 * but the checkpoint's reader. The judge of precise mode (model-spec A.11) for kinds of checkpoints
 * that no golden file has. */
#ifndef TD_TESTS_MODEL_PLAIN_MODEL_H
#define TD_TESTS_MODEL_PLAIN_MODEL_H
#include "tests/model/made_model.h"

/* logits: [n, vocab]; mtp_logits: [n - 1, vocab], NULL where there is no draft layer. Aborts on
 * failure. */
void td_plain_model(const char *dir, const td_made_model *m, const int32_t *tokens, int n,
                    float *logits, float *mtp_logits);
#endif
