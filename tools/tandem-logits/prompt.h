/* prompt.h - token ids from a JSON file: an array of whole numbers. */
#ifndef TD_TOOLS_LOGITS_PROMPT_H
#define TD_TOOLS_LOGITS_PROMPT_H
#include "common/base/status.h"

#include <stdint.h>

/* ids: malloc'ed. TD_INVALID says what is wrong and at which element. */
td_status td_prompt_read(const char *path, int32_t **ids, uint32_t *n_ids, td_err *err);
#endif
