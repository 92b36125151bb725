#include "model/model_file.h"

#include "common/base/conf.h"
#include "model/slice.h"

#include <stdio.h>
#include <string.h>

static td_status read_slice(const char *model, const char *name, char **out, size_t *n_bytes,
                            td_err *err)
{
    char text[TD_SLICE_MAX_CONFIG_BYTES];
    td_slice_spec spec;
    if (strcmp(name, "config.json") != 0)
        return td_fail(err, TD_NOT_FOUND, "%s has no %s", model, name);
    td_status st = td_slice_parse(model, &spec, err);
    if (st < 0)
        return st;
    *n_bytes = td_slice_config_text(&spec, text);
    *out = strndup(text, *n_bytes);
    return *out == NULL ? td_fail(err, TD_NOMEM, "%s: no memory", model) : TD_OK;
}

td_status td_model_file_read(const char *model, const char *name, size_t max_bytes, char **out,
                             size_t *n_bytes, td_err *err)
{
    char path[4096];
    if (td_slice_is(model))
        return read_slice(model, name, out, n_bytes, err);
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", model, name) >= sizeof(path))
        return td_fail(err, TD_CONFIG, "path of %zu bytes", strlen(model));
    return td_read_file(path, max_bytes, out, n_bytes, err);
}
