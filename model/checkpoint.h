/* checkpoint.h - the tensors of a model folder: model.safetensors, or the shards that
 * model.safetensors.index.json names. One name space; a tensor that stands in two shards, or that
 * the index puts in a shard which does not have it, is an error. A name "slice:.." (slice.h) is a
 * checkpoint without files. */
#ifndef TD_MODEL_CHECKPOINT_H
#define TD_MODEL_CHECKPOINT_H
#include "model/safetensors.h"

typedef struct td_checkpoint td_checkpoint;

td_status td_checkpoint_open(const char *dir, td_checkpoint **out, td_err *err);
void td_checkpoint_close(td_checkpoint *ckpt); /* NULL is fine; tensors are gone with it */
size_t td_checkpoint_count(const td_checkpoint *ckpt);
const td_tensor *td_checkpoint_at(const td_checkpoint *ckpt, size_t i); /* ascending by name */
const td_tensor *td_checkpoint_find(const td_checkpoint *ckpt, const char *name); /* or NULL */
/* Is there a tensor whose name starts so? */
int td_checkpoint_has_prefix(const td_checkpoint *ckpt, const char *prefix);
#endif
