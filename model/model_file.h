/* model_file.h - the small files of a model's folder, config.json among them. A slice (slice.h)
 * has just that one, made from its description. */
#ifndef TD_MODEL_MODEL_FILE_H
#define TD_MODEL_MODEL_FILE_H
#include "common/base/status.h"

#include <stddef.h>

/* *out is the caller's (free), n_bytes long and with a NUL behind it. TD_NOT_FOUND: there is no
 * such file. */
td_status td_model_file_read(const char *model, const char *name, size_t max_bytes, char **out,
                             size_t *n_bytes, td_err *err);
#endif
