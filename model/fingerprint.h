/* fingerprint.h - what two daemons compare before KV moves between them (design.md, KV cache):
 * named fields with short text values, compared one by one so that a refusal says what differs. The
 * model fills its fields; a daemon adds its own (protocol version, ...) before it sends them. */
#ifndef TD_MODEL_FINGERPRINT_H
#define TD_MODEL_FINGERPRINT_H
#include "common/base/fingerprint.h"
#include "common/kv/layout.h"
#include "model/checkpoint.h"
#include "model/config.h"

#define TD_NUMERICS_VERSION                                                                        \
    1 /* raised when a change alters the bits that prefill or decode computes */

/* Of the folder: "config" (hash of config.json), "tensors" (their number), "tensor-shapes" (hash of
 * names, dtypes and shapes), "tensor-samples" (hash of the middle 4 KiB of every tensor),
 * "tokenizer" (hash of tokenizer.json, or "none"). Reads 4 KiB of each tensor. */
td_status td_fingerprint_model(td_fingerprint *fp, const char *dir, const td_checkpoint *ckpt,
                               td_err *err);
/* Of the run: "numerics" (version and mode), "kv-dtype", "kv-planes" (hash of all planes),
 * "page-rows", "page-bytes", "draft-layer", "draft-state" (post or pre norm). */
void td_fingerprint_run(td_fingerprint *fp, const td_kv_layout *layout, int precise,
                        int draft_prenorm);
#endif
