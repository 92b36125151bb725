/* upload.h - private to model/: parts of a checkpoint's tensors into device memory. Reader threads
 * read (or make) and convert them into page-locked buffers, a piece each, and have these copied to
 * the device as they get full; the engine thread runs ahead and allocates. Everything here is the
 * engine thread's to call. */
#ifndef TD_MODEL_UPLOAD_H
#define TD_MODEL_UPLOAD_H
#include "common/device/device.h"
#include "kernels/shapes.h"
#include "model/checkpoint.h"

/* Part of a matrix: rows and columns [lo, hi). */
typedef struct {
    int32_t row_lo, row_hi, col_lo, col_hi;
} td_cut;

/* A matrix of the checkpoint with its block scales. */
typedef struct {
    const td_tensor *w;     /* e4m3, bf16 or f32 */
    const td_tensor *scale; /* f32 or bf16; e4m3 only */
    int32_t n_rows, n_cols;
} td_matrix;

typedef struct {
    td_matrix m;
    td_cut cut;
    td_dtype dtype;     /* at dst; e4m3 only for a tensor that is stored so */
    int turned;         /* dst gets the transpose of the cut */
    unsigned char *dst; /* device memory, contiguous */
} td_upload_part;

typedef struct {
    uint32_t n_threads;  /* readers, at least one; no more than 64 are started */
    size_t buffer_bytes; /* of each of five; a row must fit; 0: 16 MiB */
    int64_t patience_ms; /* longest wait for a buffer that readers fill; 0: two minutes */
} td_upload_options;

typedef struct td_upload td_upload;

td_status td_upload_create(td_device *device, const td_upload_options *options, td_upload **out,
                           td_err *err);
/* Waits for readers that are in the middle of a buffer; a read that the system does not end is
 * waited for. NULL is fine. */
void td_upload_destroy(td_upload *upload);
/* Memory that parts will go to was allocated, with td_device_alloc(); it begins here. TD_NOMEM. */
td_status td_upload_allocated(td_upload *upload, const void *memory, td_err *err);
/* Takes a part, which is in device memory when finish() returns. An error may be that of an earlier
 * part and names its tensor: TD_IO, TD_UNSUPPORTED (an f32 tensor that does not fit bf16, rows
 * wider than a buffer), TD_DEADLINE, TD_CUDA. After an error only destroy() is left. */
td_status td_upload_add(td_upload *upload, const td_upload_part *part, td_err *err);
td_status td_upload_finish(td_upload *upload, td_err *err);
#endif
