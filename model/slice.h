/* slice.h - checkpoints with DeepSeek-V3.2's shapes, as few layers as wanted, and random weights
 * from a seed: for measuring without the published weights. Written as a folder in the published
 * layout, or made where they are loaded: wherever a model folder is named,
 * "slice:layers=4,drafts=0" will do. The same description gives the same bytes both ways, on every
 * machine. FP8 weights are about normal, with a deviation near 1/sqrt(inputs), so that activations
 * stay sane; norms are 1, biases 0. There is no tokenizer: only token ids can be served. */
#ifndef TD_MODEL_SLICE_H
#define TD_MODEL_SLICE_H
#include "model/safetensors.h"

#define TD_SLICE_PREFIX "slice:"
#define TD_SLICE_MAX_CONFIG_BYTES 4096

/* What can be chosen; everything but the first four rows is V3.2's unless somebody says otherwise.
 */
#define TD_SLICE_KEYS(X) /* key, member, default, min, max, help */                                \
    X("layers", layers, "4", "1", "254", "layers, the draft layer not counted")                    \
    X("dense", dense, "1", "0", "254", "layers at the start without experts")                      \
    X("drafts", drafts, "1", "0", "1", "draft layers")                                             \
    X("seed", seed, "1", "0", "4294967295", "of the random weights")                               \
    X("vocab", vocab, "129280", "1", "1048576", "tokens in the vocabulary")                        \
    X("hidden", hidden, "7168", "8", "1048576", "width of the residual stream, a multiple of 8")   \
    X("inter", inter, "18432", "8", "1048576", "width of a dense layer's MLP, a multiple of 8")    \
    X("moe-inter", moe_inter, "2048", "8", "1048576", "width of an expert, a multiple of 8")       \
    X("experts", experts, "256", "16", "65536", "experts of a layer, a multiple of 8")             \
    X("heads", heads, "128", "1", "4096", "attention heads")                                       \
    X("q-lora", q_lora, "1536", "8", "1048576", "rank of the queries, a multiple of 8")            \
    X("index-heads", index_heads, "64", "1", "4096", "heads of the indexer")                       \
    X("topk", topk, "2048", "1", "1048576", "positions that a token attends to")                   \
    X("positions", positions, "163840", "64", "16777216", "longest context")

typedef struct {
#define TD_SLICE_MEMBER(key, member, def, min, max, help) uint32_t member;
    TD_SLICE_KEYS(TD_SLICE_MEMBER)
#undef TD_SLICE_MEMBER
} td_slice_spec;

typedef struct td_slice td_slice; /* the tensors of one; makes bytes, holds none */

int td_slice_is(const char *model); /* does the text name a slice, not a folder? */
/* "layers=4,seed=7" (or "slice:..." in front of it); keys that are not named have their defaults.
 * TD_CONFIG: what is wrong with which key, or with their combination. */
td_status td_slice_parse(const char *text, td_slice_spec *out, td_err *err);
/* The combination alone. */
td_status td_slice_check(const td_slice_spec *spec, td_err *err);
/* Its config.json; returns the length. */
size_t td_slice_config_text(const td_slice_spec *spec, char text[TD_SLICE_MAX_CONFIG_BYTES]);

td_status td_slice_create(const td_slice_spec *spec, td_slice **out, td_err *err);
void td_slice_destroy(td_slice *slice); /* NULL is fine; its tensors are gone with it */
size_t td_slice_count(const td_slice *slice);
const td_tensor *td_slice_at(const td_slice *slice, size_t i); /* in the order of the files */

/* Writes the folder `dir` (made when missing): config.json, shards of about shard_bytes each, their
 * index last. n_threads: how many shards are written at a time. A folder that has an index or a
 * model.safetensors already is left alone: TD_PRECONDITION. */
td_status td_slice_write(const td_slice_spec *spec, const char *dir, uint64_t shard_bytes,
                         uint32_t n_threads, td_err *err);
/* The folder with its config.json alone: enough for a router before workers that make the slice. */
td_status td_slice_write_config(const td_slice_spec *spec, const char *dir, td_err *err);
#endif
