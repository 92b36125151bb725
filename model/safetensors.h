/* safetensors.h - one .safetensors file: 8 bytes of header length (little-endian), a JSON object
 * {name: {dtype, shape, data_offsets}, "__metadata__": {..}}, then the tensors' bytes. Reading maps
 * the file; every bound of the header is checked before a byte of data is touched. */
#ifndef TD_MODEL_SAFETENSORS_H
#define TD_MODEL_SAFETENSORS_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

#define TD_ST_MAX_DIMS 8
#define TD_ST_MAX_HEADER_BYTES (100u << 20)
#define TD_ST_MAX_NAME_BYTES 255

#define TD_ST_DTYPE_MAP(X) /* name, the file's spelling, bytes per element */                      \
    X(BOOL, "BOOL", 1)                                                                             \
    X(U8, "U8", 1)                                                                                 \
    X(I8, "I8", 1)                                                                                 \
    X(F8_E4M3, "F8_E4M3", 1)                                                                       \
    X(F8_E5M2, "F8_E5M2", 1)                                                                       \
    X(F8_E8M0, "F8_E8M0", 1)                                                                       \
    X(U16, "U16", 2)                                                                               \
    X(I16, "I16", 2)                                                                               \
    X(F16, "F16", 2)                                                                               \
    X(BF16, "BF16", 2)                                                                             \
    X(U32, "U32", 4)                                                                               \
    X(I32, "I32", 4)                                                                               \
    X(F32, "F32", 4)                                                                               \
    X(U64, "U64", 8)                                                                               \
    X(I64, "I64", 8)                                                                               \
    X(F64, "F64", 8)

typedef enum {
#define TD_ST_ENUM(name, text, n_bytes) TD_ST_##name,
    TD_ST_DTYPE_MAP(TD_ST_ENUM)
#undef TD_ST_ENUM
        TD_ST_N_DTYPES
} td_st_dtype;

typedef struct td_tensor td_tensor;
/* Writes bytes [offset, offset + n_bytes) of the tensor to dst. Any thread; cannot fail. */
typedef void (*td_tensor_make)(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes,
                               void *dst);

struct td_tensor {
    const char *name; /* owned by the file's object */
    td_st_dtype dtype;
    int n_dims;
    int64_t shape[TD_ST_MAX_DIMS]; /* [n_dims], each >= 0 */
    const unsigned char *data;     /* n_bytes in the mapping; no alignment promised. NULL: made */
    uint64_t n_bytes;
    int fd;               /* of the file, whose object owns it; only with file_offset > 0 */
    uint64_t file_offset; /* of the tensor's first byte; 0: in memory alone */
    td_tensor_make make;  /* NULL: the bytes stand in data */
    const void *make_arg;
};

/* Bytes [offset, offset + n_bytes) to dst: read from the file rather than through the mapping, so
 * that a file that shrank or a bad disk is an error and no signal. Any thread, allocates nothing.
 * TD_IO, names the tensor. td_assert: within the tensor. */
td_status td_tensor_read(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes, void *dst,
                         td_err *err);

typedef struct td_safetensors td_safetensors;

/* Maps and checks the file. TD_NOT_FOUND, TD_IO, TD_NOMEM; TD_DATA_LOSS: not a sound safetensors
 * file (the text says what is wrong with which tensor); TD_UNSUPPORTED: a dtype we do not know. */
td_status td_safetensors_open(const char *path, td_safetensors **out, td_err *err);
/* The same over memory that outlives the object (tests, fuzzers). */
td_status td_safetensors_parse(const void *data, size_t n_bytes, td_safetensors **out, td_err *err);
void td_safetensors_close(td_safetensors *file); /* NULL is fine */
/* Tensors in ascending order of name (strcmp). */
size_t td_safetensors_count(const td_safetensors *file);
const td_tensor *td_safetensors_at(const td_safetensors *file, size_t i);
const td_tensor *td_safetensors_find(const td_safetensors *file,
                                     const char *name); /* NULL: not there */

const char *td_st_dtype_name(td_st_dtype dtype);
size_t td_st_dtype_bytes(td_st_dtype dtype);
/* "[2, 3]" into text[size]; returns text. */
const char *td_st_shape_text(const int64_t *shape, int n_dims, char *text, size_t size);

/* Writes n tensors (in memory, in files or made) in the given order; data starts 64-byte
 * aligned. The file appears under its name only when it is whole. */
td_status td_safetensors_write(const char *path, const td_tensor *tensors, size_t n, td_err *err);
#endif
