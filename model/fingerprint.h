/* fingerprint.h - what two daemons compare before KV moves between them (design.md, KV cache):
 * named fields with short text values, compared one by one so that a refusal says what differs. The
 * model fills its fields; a daemon adds its own (protocol version, ...) before it sends them. */
#ifndef TD_MODEL_FINGERPRINT_H
#define TD_MODEL_FINGERPRINT_H
#include "common/kv/layout.h"
#include "model/checkpoint.h"
#include "model/config.h"

#define TD_FINGERPRINT_MAX 32
#define TD_NUMERICS_VERSION                                                                        \
    1 /* raised when a change alters the bits that prefill or decode computes */

typedef struct {
    char name[32];
    char value[64];
} td_fingerprint_field;

/* Whoever fills one from a message sees to it that n is in bounds and that the texts end in NUL. */
typedef struct {
    uint32_t n;
    td_fingerprint_field fields[TD_FINGERPRINT_MAX]; /* [n] */
} td_fingerprint;

/* Appends a field, or replaces the one of that name. td_assert: room is left and the texts fit. */
void td_fingerprint_set(td_fingerprint *fp, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const char *td_fingerprint_get(const td_fingerprint *fp, const char *name); /* NULL: not there */

/* Of the folder: "config" (hash of config.json), "tensors" (their number), "tensor-shapes" (hash of
 * names, dtypes and shapes), "tensor-samples" (hash of the middle 4 KiB of every tensor),
 * "tokenizer" (hash of tokenizer.json, or "none"). Reads 4 KiB of each tensor. */
td_status td_fingerprint_model(td_fingerprint *fp, const char *dir, const td_checkpoint *ckpt,
                               td_err *err);
/* Of the run: "numerics" (version and mode), "kv-dtype", "kv-planes" (hash of all planes),
 * "page-rows", "page-bytes", "draft-layer", "draft-state" (post or pre norm). */
void td_fingerprint_run(td_fingerprint *fp, const td_kv_layout *layout, int precise,
                        int draft_prenorm);

/* How many fields differ or stand on one side only. text[size] gets "name: ours X, theirs Y; .." as
 * far as it fits; ours and theirs may be in any order. */
uint32_t td_fingerprint_diff(const td_fingerprint *ours, const td_fingerprint *theirs, char *text,
                             size_t size);
#endif
