#include "model/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXACT_MAX 9007199254740992.0 /* 2^53: a double counts exactly up to here */

struct td_safetensors {
    void *map; /* NULL: the bytes are the caller's */
    size_t map_bytes;
    int fd;                    /* of the file behind map */
    const unsigned char *base; /* its first byte */
    const unsigned char *data; /* behind the header */
    uint64_t data_bytes;
    td_tensor *tensors; /* [n], ascending by name */
    size_t n;
};

static const struct {
    const char *text;
    size_t n_bytes;
} dtypes[] = {
#define ROW(name, text, n_bytes) [TD_ST_##name] = {text, n_bytes},
    TD_ST_DTYPE_MAP(ROW)
#undef ROW
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const td_tensor *)a)->name, ((const td_tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const td_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes;
}

/* A whole number from 0 to 2^53. */
static int whole(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > EXACT_MAX ||
        item->valuedouble != floor(item->valuedouble))
        return 0;
    *out = (uint64_t)item->valuedouble;
    return 1;
}

static td_status read_dtype(const cJSON *item, td_tensor *t, td_err *err)
{
    if (!cJSON_IsString(item))
        return td_fail(err, TD_DATA_LOSS, "tensor %s: dtype is not a string", t->name);
    for (int i = 0; i < TD_ST_N_DTYPES; i++) {
        if (strcmp(item->valuestring, dtypes[i].text) == 0) {
            t->dtype = (td_st_dtype)i;
            return TD_OK;
        }
    }
    return td_fail(err, TD_UNSUPPORTED, "tensor %s: unknown dtype '%.32s'", t->name,
                   item->valuestring);
}

static td_status read_shape(const cJSON *item, td_tensor *t, td_err *err)
{
    if (!cJSON_IsArray(item))
        return td_fail(err, TD_DATA_LOSS, "tensor %s: shape is not an array", t->name);
    const cJSON *dim;
    cJSON_ArrayForEach(dim, item)
    {
        uint64_t v;
        if (t->n_dims == TD_ST_MAX_DIMS)
            return td_fail(err, TD_UNSUPPORTED, "tensor %s: more than %d dimensions", t->name,
                           TD_ST_MAX_DIMS);
        if (!whole(dim, &v))
            return td_fail(err, TD_DATA_LOSS, "tensor %s: a dimension is not a whole number",
                           t->name);
        t->shape[t->n_dims++] = (int64_t)v;
    }
    return TD_OK;
}

/* The bytes that dtype and shape ask for must be the bytes that the offsets give, within the file.
 */
static td_status read_offsets(const td_safetensors *file, const cJSON *item, td_tensor *t,
                              td_err *err)
{
    uint64_t begin, end, want = dtypes[t->dtype].n_bytes;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2 || !whole(item->child, &begin) ||
        !whole(item->child->next, &end))
        return td_fail(err, TD_DATA_LOSS, "tensor %s: data_offsets are not two whole numbers",
                       t->name);
    if (begin > end || end > file->data_bytes)
        return td_fail(err, TD_DATA_LOSS,
                       "tensor %s: data_offsets [%" PRIu64 ", %" PRIu64
                       "] lie outside the file's %" PRIu64 " bytes of data",
                       t->name, begin, end, file->data_bytes);
    for (int i = 0; i < t->n_dims; i++)
        if (__builtin_mul_overflow(want, (uint64_t)t->shape[i], &want))
            return td_fail(err, TD_DATA_LOSS, "tensor %s: the shape overflows", t->name);
    if (want != end - begin) {
        char shape[128];
        return td_fail(err, TD_DATA_LOSS,
                       "tensor %s: shape %s of %s needs %" PRIu64
                       " bytes, data_offsets give %" PRIu64,
                       t->name, td_st_shape_text(t->shape, t->n_dims, shape, sizeof(shape)),
                       dtypes[t->dtype].text, want, end - begin);
    }
    t->data = file->data + begin;
    t->n_bytes = want;
    if (file->map != NULL) {
        t->fd = file->fd;
        t->file_offset = (uint64_t)(t->data - file->base);
    }
    return TD_OK;
}

static td_status read_tensor(const td_safetensors *file, const cJSON *item, td_tensor *t,
                             td_err *err)
{
    const cJSON *dtype = NULL, *shape = NULL, *offsets = NULL, *field;
    td_status st;
    if (strlen(item->string) > TD_ST_MAX_NAME_BYTES || item->string[0] == '\0')
        return td_fail(err, TD_DATA_LOSS, "tensor name '%.40s..': empty or longer than %d bytes",
                       item->string, TD_ST_MAX_NAME_BYTES);
    t->name = strdup(item->string);
    if (t->name == NULL)
        return td_fail(err, TD_NOMEM, "safetensors: no memory for a name");
    if (!cJSON_IsObject(item))
        return td_fail(err, TD_DATA_LOSS, "tensor %s: not an object", t->name);
    cJSON_ArrayForEach(field, item)
    {
        const cJSON **place = strcmp(field->string, "dtype") == 0          ? &dtype
                              : strcmp(field->string, "shape") == 0        ? &shape
                              : strcmp(field->string, "data_offsets") == 0 ? &offsets
                                                                           : NULL;
        if (place == NULL)
            return td_fail(err, TD_DATA_LOSS, "tensor %s: unknown key '%.32s'", t->name,
                           field->string);
        if (*place != NULL)
            return td_fail(err, TD_DATA_LOSS, "tensor %s: %s stands twice", t->name, field->string);
        *place = field;
    }
    if ((st = read_dtype(dtype, t, err)) < 0 || (st = read_shape(shape, t, err)) < 0)
        return st;
    return read_offsets(file, offsets, t, err);
}

/* Tensors fill the data without overlap and without holes, as the format demands. */
static td_status check_places(td_safetensors *file, td_err *err)
{
    const unsigned char *at = file->data;
    qsort(file->tensors, file->n, sizeof(*file->tensors), by_place);
    for (size_t i = 0; i < file->n; i++) {
        const td_tensor *t = &file->tensors[i];
        if (t->data < at)
            return td_fail(err, TD_DATA_LOSS, "tensors %s and %s overlap",
                           file->tensors[i - 1].name, t->name);
        if (t->data > at)
            return td_fail(err, TD_DATA_LOSS, "%zu bytes before tensor %s belong to no tensor",
                           (size_t)(t->data - at), t->name);
        at += t->n_bytes;
    }
    if (at != file->data + file->data_bytes)
        return td_fail(err, TD_DATA_LOSS, "the last %zu bytes of the file belong to no tensor",
                       (size_t)(file->data + file->data_bytes - at));
    return TD_OK;
}

static td_status check_names(td_safetensors *file, td_err *err)
{
    qsort(file->tensors, file->n, sizeof(*file->tensors), by_name);
    for (size_t i = 1; i < file->n; i++)
        if (strcmp(file->tensors[i - 1].name, file->tensors[i].name) == 0)
            return td_fail(err, TD_DATA_LOSS, "tensor %s stands twice in the header",
                           file->tensors[i].name);
    return TD_OK;
}

static td_status read_header(td_safetensors *file, const cJSON *root, td_err *err)
{
    td_status st;
    const cJSON *item;
    size_t n = 0;
    if (!cJSON_IsObject(root))
        return td_fail(err, TD_DATA_LOSS, "the header is not a JSON object");
    cJSON_ArrayForEach(item, root) n++;
    file->tensors = calloc(n + 1, sizeof(*file->tensors));
    if (file->tensors == NULL)
        return td_fail(err, TD_NOMEM, "safetensors: no memory for %zu tensors", n);
    cJSON_ArrayForEach(item, root)
    {
        if (strcmp(item->string, "__metadata__") == 0)
            continue;
        if ((st = read_tensor(file, item, &file->tensors[file->n++], err)) < 0)
            return st;
    }
    if ((st = check_places(file, err)) < 0)
        return st;
    return check_names(file, err);
}

/* A NUL, as it is or escaped, would end a name early: two different names would read alike. */
static td_status check_nul(const char *header, size_t n, td_err *err)
{
    size_t i = 0;
    while (i < n && header[i] != '\0') {
        if (header[i] == '\\' && n - i >= 6 && memcmp(header + i + 1, "u0000", 5) == 0)
            break;
        i += header[i] == '\\' ? 2 : 1;
    }
    return i >= n ? TD_OK : td_fail(err, TD_DATA_LOSS, "NUL in the header, at byte %zu", i);
}

static td_status read_file(td_safetensors *file, const unsigned char *bytes, size_t n_bytes,
                           td_err *err)
{
    uint64_t header_bytes = 0;
    if (n_bytes < 8)
        return td_fail(err, TD_DATA_LOSS, "%zu bytes: too short for a safetensors file", n_bytes);
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | bytes[i];
    if (header_bytes > TD_ST_MAX_HEADER_BYTES)
        return td_fail(err, TD_DATA_LOSS, "header of %" PRIu64 " bytes: over the limit of %u",
                       header_bytes, TD_ST_MAX_HEADER_BYTES);
    if (header_bytes > n_bytes - 8)
        return td_fail(err, TD_DATA_LOSS,
                       "truncated: header of %" PRIu64 " bytes in a file of %zu bytes",
                       header_bytes, n_bytes);
    const char *header = (const char *)bytes + 8, *end = NULL;
    td_status st = check_nul(header, (size_t)header_bytes, err);
    if (st < 0)
        return st;
    cJSON *root = cJSON_ParseWithLengthOpts(header, (size_t)header_bytes, &end, 0);
    if (root == NULL)
        return td_fail(err, TD_DATA_LOSS, "the header is not JSON (near byte %zu)",
                       end == NULL ? (size_t)0 : (size_t)(end - header));
    file->base = bytes;
    file->data = bytes + 8 + header_bytes;
    file->data_bytes = n_bytes - 8 - header_bytes;
    while (end < header + header_bytes && st == TD_OK)
        if (strchr(" \t\r\n", *end++) == NULL)
            st = td_fail(err, TD_DATA_LOSS, "bytes behind the header's JSON object");
    if (st == TD_OK)
        st = read_header(file, root, err);
    cJSON_Delete(root);
    return st;
}

td_status td_safetensors_open(const char *path, td_safetensors **out, td_err *err)
{
    td_err why = {0};
    struct stat info;
    td_safetensors *file = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_fail(err, errno == ENOENT ? TD_NOT_FOUND : TD_IO, "%s: %s", path,
                       strerror(errno));
    td_status st = TD_OK;
    file = calloc(1, sizeof(*file));
    if (file == NULL)
        st = td_fail(&why, TD_NOMEM, "no memory");
    else if (fstat(fd, &info) != 0)
        st = td_fail(&why, TD_IO, "%s", strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = td_fail(&why, TD_IO, "not a regular file");
    else if (info.st_size > 0) {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            st = td_fail(&why, TD_IO, "cannot map: %s", strerror(errno));
        } else {
            file->map = map;
            file->map_bytes = (size_t)info.st_size;
            file->fd = fd;
        }
    }
    if (file == NULL || file->map == NULL)
        close(fd);
    if (st == TD_OK)
        st = read_file(file, file->map, file->map_bytes, &why);
    if (st == TD_OK) {
        *out = file;
        return TD_OK;
    }
    td_safetensors_close(file);
    return td_fail(err, st, "%s: %s", path, why.text);
}

td_status td_safetensors_parse(const void *data, size_t n_bytes, td_safetensors **out, td_err *err)
{
    td_safetensors *file = calloc(1, sizeof(*file));
    if (file == NULL)
        return td_fail(err, TD_NOMEM, "safetensors: no memory");
    td_status st = read_file(file, data, n_bytes, err);
    if (st == TD_OK)
        *out = file;
    else
        td_safetensors_close(file);
    return st;
}

void td_safetensors_close(td_safetensors *file)
{
    if (file == NULL)
        return;
    for (size_t i = 0; i < file->n; i++)
        free((char *)file->tensors[i].name);
    free(file->tensors);
    if (file->map != NULL) {
        munmap(file->map, file->map_bytes);
        close(file->fd);
    }
    free(file);
}

size_t td_safetensors_count(const td_safetensors *file)
{
    return file->n;
}

const td_tensor *td_safetensors_at(const td_safetensors *file, size_t i)
{
    td_assert(i < file->n);
    return &file->tensors[i];
}

const td_tensor *td_safetensors_find(const td_safetensors *file, const char *name)
{
    td_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->n, sizeof(key), by_name);
}

td_status td_tensor_read(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes, void *dst,
                         td_err *err)
{
    char *to = dst;
    td_assert(offset <= tensor->n_bytes && n_bytes <= tensor->n_bytes - offset);
    if (tensor->make != NULL) {
        tensor->make(tensor, offset, n_bytes, dst);
        return TD_OK;
    }
    if (tensor->file_offset == 0) {
        memcpy(dst, tensor->data + offset, n_bytes);
        return TD_OK;
    }
    while (n_bytes > 0) {
        ssize_t got = pread(tensor->fd, to, n_bytes, (off_t)(tensor->file_offset + offset));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return td_fail(err, TD_IO, "tensor %s: reading byte %" PRIu64 ": %s", tensor->name,
                           offset, got == 0 ? "the file has become shorter" : strerror(errno));
        to += got;
        offset += (uint64_t)got;
        n_bytes -= (uint64_t)got;
    }
    return TD_OK;
}

const char *td_st_dtype_name(td_st_dtype dtype)
{
    return dtypes[dtype].text;
}

size_t td_st_dtype_bytes(td_st_dtype dtype)
{
    return dtypes[dtype].n_bytes;
}

const char *td_st_shape_text(const int64_t *shape, int n_dims, char *text, size_t size)
{
    size_t n = 0;
    text[0] = '\0';
    for (int i = 0; i <= n_dims && n < size; i++) {
        int got = i < n_dims
                      ? snprintf(text + n, size - n, "%s%" PRId64, i == 0 ? "[" : ", ", shape[i])
                      : snprintf(text + n, size - n, n_dims == 0 ? "[]" : "]");
        n += got < 0 ? 0 : (size_t)got;
    }
    return text;
}
