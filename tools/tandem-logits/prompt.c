#include "tools/tandem-logits/prompt.h"

#include "common/base/conf.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>

#define MAX_BYTES (256u << 20)

static td_status read_array(const cJSON *root, const char *path, int32_t **out, uint32_t *n_out,
                            td_err *err)
{
    const cJSON *item;
    uint32_t n = 0;
    if (!cJSON_IsArray(root))
        return td_fail(err, TD_INVALID, "%s: not a JSON array of token ids", path);
    int32_t *ids = calloc((size_t)cJSON_GetArraySize(root) + 1, sizeof(*ids));
    if (ids == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory", path);
    cJSON_ArrayForEach(item, root)
    {
        double v = item->valuedouble;
        if (!cJSON_IsNumber(item) || v != floor(v) || v < 0 || v > INT32_MAX) {
            free(ids);
            return td_fail(err, TD_INVALID, "%s: element %u is not a token id", path, n);
        }
        ids[n++] = (int32_t)v;
    }
    if (n == 0) {
        free(ids);
        return td_fail(err, TD_INVALID, "%s: the prompt is empty", path);
    }
    *out = ids;
    *n_out = n;
    return TD_OK;
}

td_status td_prompt_read(const char *path, int32_t **ids, uint32_t *n_ids, td_err *err)
{
    char *text = NULL;
    size_t n_bytes = 0;
    td_status st = td_read_file(path, MAX_BYTES, &text, &n_bytes, err);
    if (st < 0)
        return st;
    cJSON *root = cJSON_ParseWithLengthOpts(text, n_bytes + 1, NULL, 1);
    st = read_array(root, path, ids, n_ids, err);
    cJSON_Delete(root);
    free(text);
    return st;
}
