#include "router/model_info.h"

#include "common/base/conf.h"

#include <cJSON.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_JSON_BYTES (16U << 20)

/* *out is the caller's (cJSON_Delete). */
static td_status read_json(const char *path, cJSON **out, td_err *err)
{
    char *text;
    size_t n;
    td_status st = td_read_file(path, MAX_JSON_BYTES, &text, &n, err);
    if (st != TD_OK)
        return st;
    cJSON *json = cJSON_ParseWithLength(text, n);
    free(text);
    if (json == NULL || !cJSON_IsObject(json)) {
        cJSON_Delete(json);
        return td_fail(err, TD_INVALID, "%s: not a JSON object", path);
    }
    *out = json;
    return TD_OK;
}

static td_status read_u32(const cJSON *json, const char *path, const char *key, uint32_t *out,
                          td_err *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item) || item->valuedouble < 1 || item->valuedouble > INT_MAX)
        return td_fail(err, TD_INVALID, "%s: %s is missing or not a positive integer", path, key);
    *out = (uint32_t)item->valuedouble;
    return TD_OK;
}

static bool is_eos(const td_model_info *info, uint32_t id)
{
    for (uint32_t i = 0; i < info->n_eos; i++)
        if (info->eos_ids[i] == id)
            return true;
    return false;
}

/* eos_token_id is one id or a list of them; absent is fine. Ids that are known are not repeated:
 * those of config.json and of generation_config.json together end a text, as in the daemons. */
static td_status read_eos(td_model_info *info, const cJSON *json, const char *path, td_err *err)
{
    const cJSON *eos = cJSON_GetObjectItemCaseSensitive(json, "eos_token_id");
    if (eos == NULL || cJSON_IsNull(eos))
        return TD_OK;
    const cJSON *item = cJSON_IsArray(eos) ? eos->child : eos;
    for (; item != NULL; item = cJSON_IsArray(eos) ? item->next : NULL) {
        uint32_t id =
            cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < info->vocab_size
                ? (uint32_t)item->valuedouble
                : info->vocab_size;
        bool known = is_eos(info, id);
        if (id == info->vocab_size || (!known && info->n_eos == TD_MODEL_MAX_EOS))
            return td_fail(err, TD_INVALID, "%s: eos_token_id is not a list of up to %d token ids",
                           path, TD_MODEL_MAX_EOS);
        if (!known)
            info->eos_ids[info->n_eos++] = id;
    }
    return TD_OK;
}

static td_status load_config(td_model_info *info, const char *dir, td_err *err)
{
    char path[PATH_MAX];
    cJSON *json = NULL;
    snprintf(path, sizeof(path), "%s/config.json", dir);
    td_status st = read_json(path, &json, err);
    if (st != TD_OK)
        return st;
    st = read_u32(json, path, "vocab_size", &info->vocab_size, err);
    if (st == TD_OK)
        st = read_u32(json, path, "max_position_embeddings", &info->context_length, err);
    if (st == TD_OK)
        st = read_eos(info, json, path, err);
    const cJSON *bos = cJSON_GetObjectItemCaseSensitive(json, "bos_token_id");
    if (st == TD_OK && cJSON_IsNumber(bos) && bos->valuedouble >= 0)
        info->bos_id = (uint32_t)bos->valuedouble;
    cJSON_Delete(json);
    if (st != TD_OK)
        return st;
    snprintf(path, sizeof(path), "%s/generation_config.json", dir);
    if (access(path, F_OK) != 0)
        return TD_OK;
    st = read_json(path, &json, err);
    if (st != TD_OK)
        return st;
    st = read_eos(info, json, path, err);
    cJSON_Delete(json);
    return st;
}

static char *folder_name(const char *dir)
{
    char *real = realpath(dir, NULL); /* "." and trailing slashes have a name, too */
    if (real == NULL)
        return NULL;
    const char *slash = strrchr(real, '/');
    char *name = strdup(slash != NULL && slash[1] != '\0' ? slash + 1 : real);
    free(real);
    return name;
}

td_status td_model_info_load(td_model_info *info, const char *dir, const char *name, td_err *err)
{
    memset(info, 0, sizeof(*info));
    td_status st = load_config(info, dir, err);
    if (st != TD_OK)
        goto fail;
    info->name = name != NULL && name[0] != '\0' ? strdup(name) : folder_name(dir);
    if (info->name == NULL) {
        st = td_fail(err, TD_NOMEM, "model %s: no memory for its name", dir);
        goto fail;
    }
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    if (access(path, F_OK) == 0) {
        st = td_tokenizer_open(dir, &info->tokenizer, err);
        if (st != TD_OK)
            goto fail;
    }
    return TD_OK;
fail:
    td_model_info_fini(info);
    return st;
}

void td_model_info_fini(td_model_info *info)
{
    free(info->name);
    td_tokenizer_destroy(info->tokenizer);
    memset(info, 0, sizeof(*info));
}
