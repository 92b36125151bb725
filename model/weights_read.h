/* weights_read.h - private to weights*.c: single tensors from the checkpoint into device memory,
 * checked, cut and converted. A reader that has failed does nothing more, so that callers check
 * once. */
#ifndef TD_MODEL_WEIGHTS_READ_H
#define TD_MODEL_WEIGHTS_READ_H
#include "model/upload.h"
#include "model/weights.h"

typedef struct {
    const td_checkpoint *ckpt;
    const td_model_config *config;
    const td_weights_options *options;
    td_weights *out;
    td_upload *upload;
    unsigned char *room; /* what is left of an allocation that small parts share */
    size_t room_left;
    td_status st;
    td_err *err;
} td_weights_reader;

/* Device memory that the weights own, for one tensor; at least one byte. NULL after a failure. */
void *td_read_alloc(td_weights_reader *r, size_t n_bytes);
/* Looks up "<prefix><name>": [n_rows, n_cols] and, when e4m3, "<prefix><name>_scale_inv". */
td_matrix td_read_matrix(td_weights_reader *r, const char *prefix, const char *name, int32_t n_rows,
                         int32_t n_cols);
/* What the operations get this matrix as: f32 in precise mode, else e4m3 or bf16. */
td_dtype td_read_dtype(const td_weights_reader *r, const td_matrix *m);
/* Cut part, converted to `dtype`, to device memory dst (contiguous): there when the upload is
 * finished, as everything below. */
void td_read_part(td_weights_reader *r, const td_matrix *m, const td_cut *cut, td_dtype dtype,
                  void *dst);
/* The same, turned: dst [columns, rows]. */
void td_read_turned(td_weights_reader *r, const td_matrix *m, const td_cut *cut, td_dtype dtype,
                    void *dst);
/* The scales of a cut part (e4m3), f32; the cut starts at multiples of 128. */
void td_read_scales(td_weights_reader *r, const td_matrix *m, const td_cut *cut, float *dst);
/* "<prefix><name>": [n] f32 or bf16 -> f32 in new device memory. */
float *td_read_vector(td_weights_reader *r, const char *prefix, const char *name, int32_t n);
/* The cut part of a matrix as a linear of its own, its weights as dtype. */
td_linear td_read_linear(td_weights_reader *r, const td_matrix *m, const td_cut *cut,
                         td_dtype dtype);
td_linear td_read_whole(td_weights_reader *r, const char *prefix, const char *name, int32_t n_rows,
                        int32_t n_cols);
/* A whole matrix that is used as f32 (model-spec A.10): bf16, or f32 if the file has it so. */
td_linear td_read_wide(td_weights_reader *r, const char *prefix, const char *name, int32_t n_rows,
                       int32_t n_cols);
#endif
