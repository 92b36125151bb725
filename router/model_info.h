/* model_info.h - what the router must know of the served model: its name, its limits and its
 * tokenizer. */
#ifndef TD_ROUTER_MODEL_INFO_H
#define TD_ROUTER_MODEL_INFO_H
#include "common/base/status.h"
#include "model/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_MODEL_MAX_EOS 16

typedef struct {
    char *name;              /* owned */
    uint32_t vocab_size;     /* ids are below it */
    uint32_t context_length; /* max_position_embeddings */
    uint32_t bos_id;
    uint32_t eos_ids[TD_MODEL_MAX_EOS];
    uint32_t n_eos;
    td_tokenizer *tokenizer; /* owned; NULL: the model has none, token ids only */
} td_model_info;

/* Reads config.json, generation_config.json (if there) and tokenizer.json (if there) in dir. name:
 * NULL or "" takes the folder's name. */
td_status td_model_info_load(td_model_info *info, const char *dir, const char *name, td_err *err);
void td_model_info_fini(td_model_info *info); /* zeroed is fine */
#endif
