#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA_ALIGN 64
#define CHUNK_BYTES ((size_t)4 << 20) /* of tensors that are not in memory */

static td_status check_name(const char *name, td_err *err)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++)
        if (name[i] < ' ' || name[i] > '~' || name[i] == '"' || name[i] == '\\')
            return td_fail(err, TD_INVALID, "tensor name '%.64s': only printable ASCII, no quotes",
                           name);
    if (n == 0 || n > TD_ST_MAX_NAME_BYTES)
        return td_fail(err, TD_INVALID, "tensor name of %zu bytes", n);
    return TD_OK;
}

/* The 8 length bytes and the JSON, padded with blanks; malloc'ed. */
static td_status make_header(const td_tensor *tensors, size_t n, char **out, size_t *out_bytes,
                             td_err *err)
{
    size_t room = 128 + n * (TD_ST_MAX_NAME_BYTES + 256), at = 8;
    uint64_t offset = 0;
    td_status st;
    char *text = malloc(room);
    if (text == NULL)
        return td_fail(err, TD_NOMEM, "safetensors: no memory for the header");
    text[at++] = '{';
    for (size_t i = 0; i < n; i++) {
        const td_tensor *t = &tensors[i];
        char shape[TD_ST_MAX_DIMS * 24];
        if ((st = check_name(t->name, err)) < 0) {
            free(text);
            return st;
        }
        at += (size_t)snprintf(text + at, room - at,
                               "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64
                               ",%" PRIu64 "]}",
                               i == 0 ? "" : ",", t->name, td_st_dtype_name(t->dtype),
                               td_st_shape_text(t->shape, t->n_dims, shape, sizeof(shape)), offset,
                               offset + t->n_bytes);
        offset += t->n_bytes;
    }
    text[at++] = '}';
    while (at % DATA_ALIGN != 0)
        text[at++] = ' ';
    for (int i = 0; i < 8; i++)
        text[i] = (char)((at - 8) >> (8 * i));
    *out = text;
    *out_bytes = at;
    return TD_OK;
}

static int write_all(int fd, const void *data, size_t n_bytes)
{
    const char *p = data;
    while (n_bytes > 0) {
        ssize_t got = write(fd, p, n_bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        p += got;
        n_bytes -= (size_t)got;
    }
    return 0;
}

/* Tensors that are made or stand in a file pass through `chunk`. */
static td_status write_tensor(int fd, const char *path, const td_tensor *t, void *chunk,
                              td_err *err)
{
    int direct = t->make == NULL && t->file_offset == 0;
    uint64_t step = direct ? t->n_bytes : CHUNK_BYTES;
    for (uint64_t at = 0; at < t->n_bytes; at += step) {
        uint64_t n = t->n_bytes - at < step ? t->n_bytes - at : step;
        td_status st = direct ? TD_OK : td_tensor_read(t, at, n, chunk, err);
        if (st < 0)
            return st;
        if (write_all(fd, direct ? t->data : chunk, n) != 0)
            return td_fail(err, TD_IO, "%s: %s", path, strerror(errno));
    }
    return TD_OK;
}

static int is_anywhere_else(const td_tensor *tensors, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (tensors[i].make != NULL || tensors[i].file_offset != 0)
            return 1;
    return 0;
}

td_status td_safetensors_write(const char *path, const td_tensor *tensors, size_t n, td_err *err)
{
    char *header = NULL, part[4096];
    size_t header_bytes = 0;
    if ((size_t)snprintf(part, sizeof(part), "%s.part", path) >= sizeof(part))
        return td_fail(err, TD_INVALID, "path of %zu bytes", strlen(path));
    td_status st = make_header(tensors, n, &header, &header_bytes, err);
    if (st < 0)
        return st;
    void *chunk = is_anywhere_else(tensors, n) ? malloc(CHUNK_BYTES) : NULL;
    int fd = -1;
    if (chunk == NULL && is_anywhere_else(tensors, n))
        st = td_fail(err, TD_NOMEM, "safetensors: no memory");
    else if ((fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) < 0 ||
             write_all(fd, header, header_bytes) != 0)
        st = td_fail(err, TD_IO, "%s: %s", part, strerror(errno));
    for (size_t i = 0; i < n && st == TD_OK; i++)
        st = write_tensor(fd, part, &tensors[i], chunk, err);
    if (fd >= 0 && close(fd) != 0 && st == TD_OK)
        st = td_fail(err, TD_IO, "%s: %s", part, strerror(errno));
    if (st == TD_OK && rename(part, path) != 0)
        st = td_fail(err, TD_IO, "%s: %s", path, strerror(errno));
    if (st < 0 && fd >= 0)
        unlink(part);
    free(chunk);
    free(header);
    return st;
}
