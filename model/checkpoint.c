#include "model/checkpoint.h"

#include "common/base/conf.h"
#include "model/slice.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_MAX_BYTES (256u << 20)
#define MAX_SHARDS 4096

struct td_checkpoint {
    td_safetensors **shards; /* [n_shards] */
    char **shard_names;      /* [n_shards] file names, ascending */
    size_t n_shards;
    td_slice *slice;           /* instead of shards */
    const td_tensor **tensors; /* [n], ascending by name */
    size_t n;
};

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const td_tensor *const *)a)->name, (*(const td_tensor *const *)b)->name);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static td_status open_shard(td_checkpoint *ckpt, const char *dir, const char *name, td_err *err)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return td_fail(err, TD_CONFIG, "%s: path too long", dir);
    td_status st = td_safetensors_open(path, &ckpt->shards[ckpt->n_shards], err);
    if (st < 0)
        return st;
    ckpt->shard_names[ckpt->n_shards] = strdup(name);
    if (ckpt->shard_names[ckpt->n_shards++] == NULL)
        return td_fail(err, TD_NOMEM, "checkpoint: no memory");
    return TD_OK;
}

static td_status collect(td_checkpoint *ckpt, const char *dir, td_err *err)
{
    size_t n = ckpt->slice != NULL ? td_slice_count(ckpt->slice) : 0;
    for (size_t i = 0; i < ckpt->n_shards; i++)
        n += td_safetensors_count(ckpt->shards[i]);
    ckpt->tensors = calloc(n + 1, sizeof(*ckpt->tensors));
    if (ckpt->tensors == NULL)
        return td_fail(err, TD_NOMEM, "checkpoint: no memory for %zu tensors", n);
    for (size_t i = 0; i < n && ckpt->slice != NULL; i++)
        ckpt->tensors[ckpt->n++] = td_slice_at(ckpt->slice, i);
    for (size_t i = 0; i < ckpt->n_shards; i++)
        for (size_t j = 0; j < td_safetensors_count(ckpt->shards[i]); j++)
            ckpt->tensors[ckpt->n++] = td_safetensors_at(ckpt->shards[i], j);
    qsort(ckpt->tensors, n, sizeof(*ckpt->tensors), by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(ckpt->tensors[i - 1]->name, ckpt->tensors[i]->name) == 0)
            return td_fail(err, TD_DATA_LOSS, "%s: tensor %s stands in two shards", dir,
                           ckpt->tensors[i]->name);
    return TD_OK;
}

static td_status check_shard_name(const cJSON *item, td_err *err)
{
    if (!cJSON_IsString(item))
        return td_fail(err, TD_DATA_LOSS, "weight_map of %.64s is not a string", item->string);
    const char *name = item->valuestring;
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL || strlen(name) > 255)
        return td_fail(err, TD_DATA_LOSS, "'%.64s' is no name for a shard", name);
    return TD_OK;
}

/* Opens each shard that the weight map names, once. */
static td_status open_named(td_checkpoint *ckpt, const char *dir, const cJSON *map, td_err *err)
{
    size_t n = 0, n_names = 0;
    const cJSON *item;
    td_status st = TD_OK;
    cJSON_ArrayForEach(item, map) n++;
    const char **names = calloc(n + 1, sizeof(*names));
    if (names == NULL)
        return td_fail(err, TD_NOMEM, "checkpoint: no memory for %zu names", n);
    cJSON_ArrayForEach(item, map)
    {
        if ((st = check_shard_name(item, err)) < 0)
            goto done;
        names[n_names++] = item->valuestring;
    }
    qsort(names, n_names, sizeof(*names), by_text);
    size_t n_shards = 0;
    for (size_t i = 0; i < n_names; i++)
        if (i == 0 || strcmp(names[i - 1], names[i]) != 0)
            names[n_shards++] = names[i];
    if (n_shards == 0 || n_shards > MAX_SHARDS) {
        st = td_fail(err, TD_DATA_LOSS, "the index names %zu shards", n_shards);
        goto done;
    }
    ckpt->shards = calloc(n_shards, sizeof(*ckpt->shards));
    ckpt->shard_names = calloc(n_shards, sizeof(*ckpt->shard_names));
    if (ckpt->shards == NULL || ckpt->shard_names == NULL) {
        st = td_fail(err, TD_NOMEM, "checkpoint: no memory for %zu shards", n_shards);
        goto done;
    }
    for (size_t i = 0; i < n_shards && st == TD_OK; i++)
        st = open_shard(ckpt, dir, names[i], err);
done:
    free(names);
    return st;
}

static td_status check_map(const td_checkpoint *ckpt, const cJSON *map, td_err *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        char *const *found = bsearch(&item->valuestring, ckpt->shard_names, ckpt->n_shards,
                                     sizeof(*ckpt->shard_names), by_text);
        td_assert(found != NULL);
        const td_safetensors *shard = ckpt->shards[found - ckpt->shard_names];
        if (td_safetensors_find(shard, item->string) == NULL)
            return td_fail(err, TD_DATA_LOSS, "tensor %.255s is not in %s, as the index says",
                           item->string, *found);
    }
    return TD_OK;
}

static td_status open_sharded(td_checkpoint *ckpt, const char *dir, const char *index, td_err *err)
{
    char *text = NULL;
    size_t n_bytes = 0;
    td_status st = td_read_file(index, INDEX_MAX_BYTES, &text, &n_bytes, err);
    if (st < 0)
        return st;
    td_err why = {0};
    cJSON *root = cJSON_ParseWithLengthOpts(text, n_bytes + 1, NULL, 1);
    const cJSON *map = NULL, *item;
    if (cJSON_IsObject(root))
        cJSON_ArrayForEach(item, root) if (strcmp(item->string, "weight_map") == 0) map = item;
    if (!cJSON_IsObject(map))
        st =
            td_fail(&why, TD_DATA_LOSS, "%s", root == NULL ? "not JSON" : "no object 'weight_map'");
    else if ((st = open_named(ckpt, dir, map, &why)) == TD_OK)
        st = check_map(ckpt, map, &why);
    cJSON_Delete(root);
    free(text);
    return st == TD_OK ? TD_OK : td_fail(err, st, "%s: %s", index, why.text);
}

static td_status open_whole(td_checkpoint *ckpt, const char *dir, td_err *err)
{
    ckpt->shards = calloc(1, sizeof(*ckpt->shards));
    ckpt->shard_names = calloc(1, sizeof(*ckpt->shard_names));
    if (ckpt->shards == NULL || ckpt->shard_names == NULL)
        return td_fail(err, TD_NOMEM, "checkpoint: no memory");
    td_status st = open_shard(ckpt, dir, "model.safetensors", err);
    if (st == TD_NOT_FOUND)
        st = td_fail(err, TD_NOT_FOUND,
                     "%s: neither model.safetensors.index.json nor model.safetensors", dir);
    return st;
}

static td_status open_slice(td_checkpoint *ckpt, const char *description, td_err *err)
{
    td_slice_spec spec;
    td_status st = td_slice_parse(description, &spec, err);
    return st == TD_OK ? td_slice_create(&spec, &ckpt->slice, err) : st;
}

static td_status open_folder(td_checkpoint *ckpt, const char *dir, td_err *err)
{
    char index[4096];
    if ((size_t)snprintf(index, sizeof(index), "%s/model.safetensors.index.json", dir) >=
        sizeof(index))
        return td_fail(err, TD_CONFIG, "path of %zu bytes", strlen(dir));
    FILE *there = fopen(index, "re");
    td_status st = there != NULL ? open_sharded(ckpt, dir, index, err) : open_whole(ckpt, dir, err);
    if (there != NULL)
        fclose(there);
    return st;
}

td_status td_checkpoint_open(const char *dir, td_checkpoint **out, td_err *err)
{
    td_checkpoint *ckpt = calloc(1, sizeof(*ckpt));
    if (ckpt == NULL)
        return td_fail(err, TD_NOMEM, "checkpoint: no memory");
    td_status st = td_slice_is(dir) ? open_slice(ckpt, dir, err) : open_folder(ckpt, dir, err);
    if (st == TD_OK)
        st = collect(ckpt, dir, err);
    if (st == TD_OK)
        *out = ckpt;
    else
        td_checkpoint_close(ckpt);
    return st;
}

void td_checkpoint_close(td_checkpoint *ckpt)
{
    if (ckpt == NULL)
        return;
    for (size_t i = 0; i < ckpt->n_shards; i++) {
        td_safetensors_close(ckpt->shards[i]);
        free(ckpt->shard_names[i]);
    }
    td_slice_destroy(ckpt->slice);
    free(ckpt->shards);
    free(ckpt->shard_names);
    free(ckpt->tensors);
    free(ckpt);
}

size_t td_checkpoint_count(const td_checkpoint *ckpt)
{
    return ckpt->n;
}

const td_tensor *td_checkpoint_at(const td_checkpoint *ckpt, size_t i)
{
    td_assert(i < ckpt->n);
    return ckpt->tensors[i];
}

/* The first tensor whose name is not less than `name`. */
static size_t lower_bound(const td_checkpoint *ckpt, const char *name)
{
    size_t lo = 0, hi = ckpt->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(ckpt->tensors[mid]->name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const td_tensor *td_checkpoint_find(const td_checkpoint *ckpt, const char *name)
{
    size_t i = lower_bound(ckpt, name);
    return i < ckpt->n && strcmp(ckpt->tensors[i]->name, name) == 0 ? ckpt->tensors[i] : NULL;
}

int td_checkpoint_has_prefix(const td_checkpoint *ckpt, const char *prefix)
{
    size_t i = lower_bound(ckpt, prefix);
    return i < ckpt->n && strncmp(ckpt->tensors[i]->name, prefix, strlen(prefix)) == 0;
}
