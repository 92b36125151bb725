#include "tools/tandemctl/input.h"

#include "common/base/conf.h"
#include "tools/tandemctl/ctl.h"

#include <cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_INPUT ((size_t)256 << 20)

static bool read_stdin(char **text, size_t *n_bytes)
{
    size_t capacity = 65536, n = 0;
    char *bytes = ctl_alloc(NULL, capacity + 1);
    for (;;) {
        if (n == capacity) {
            capacity *= 2;
            bytes = ctl_alloc(bytes, capacity + 1);
        }
        ssize_t got = read(STDIN_FILENO, bytes + n, capacity - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 || n + (size_t)got > MAX_INPUT) {
            ctl_usage("stdin: %s", got < 0 ? strerror(errno) : "more than 256 MiB");
            free(bytes);
            return false;
        }
        if (got == 0)
            break;
        n += (size_t)got;
    }
    bytes[n] = '\0';
    *text = bytes;
    *n_bytes = n;
    return true;
}

bool ctl_read_text(const char *argument, char **text, size_t *n_bytes)
{
    if (strcmp(argument, "-") == 0)
        return read_stdin(text, n_bytes);
    size_t n = strlen(argument);
    *text = memcpy(ctl_alloc(NULL, n + 1), argument, n + 1);
    *n_bytes = n;
    return true;
}

/* ids has room for as many as json has items. */
static bool take_ids(const cJSON *json, uint32_t *ids, size_t *n_ids)
{
    size_t n = 0;
    for (const cJSON *item = json->child; item != NULL; item = item->next) {
        double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (value < 0 || value > UINT32_MAX || value != (double)(uint32_t)value) {
            ctl_usage("token ids: item %zu is not an integer from 0 to 4294967295", n);
            return false;
        }
        ids[n++] = (uint32_t)value;
    }
    *n_ids = n;
    return true;
}

static bool read_source(const char *argument, char **text, size_t *n_bytes)
{
    td_err err;
    if (strcmp(argument, "-") == 0 || argument[0] == '[')
        return ctl_read_text(argument, text, n_bytes);
    if (td_read_file(argument, MAX_INPUT, text, n_bytes, &err) == TD_OK)
        return true;
    ctl_usage("%s", err.text);
    return false;
}

bool ctl_read_ids(const char *argument, uint32_t **ids, size_t *n_ids)
{
    char *text;
    size_t n_bytes;
    if (!read_source(argument, &text, &n_bytes))
        return false;
    cJSON *json = cJSON_ParseWithLength(text, n_bytes);
    free(text);
    if (!cJSON_IsArray(json)) {
        ctl_usage("token ids: not a JSON array");
        cJSON_Delete(json);
        return false;
    }
    *ids = ctl_alloc(NULL, (size_t)cJSON_GetArraySize(json) * sizeof(**ids));
    bool good = take_ids(json, *ids, n_ids);
    cJSON_Delete(json);
    if (!good)
        free(*ids);
    return good;
}
