/* inbox.h - private to model/: whatever varies from step to step (token ids, positions, tables,
 * sampling parameters) in one block of device memory with a host twin, so that a step begins with
 * one copy and is then a function of fixed buffers. */
#ifndef TD_MODEL_INBOX_H
#define TD_MODEL_INBOX_H
#include "common/device/device.h"
#include "model/forward.h"

typedef struct {
    unsigned char *host, *dev; /* [n_bytes]; NULL while sizes are only counted */
    size_t n_bytes;
    td_device *device; /* of the memory */
} td_inbox;

typedef struct { /* one array, on both sides */
    int32_t *host, *dev;
} td_in_i32;
typedef struct {
    float *host, *dev;
} td_in_f32;
typedef struct {
    uint64_t *host, *dev;
} td_in_u64;

/* What the sampler reads of a row (kernels/sample). */
typedef struct {
    td_in_f32 temperature, top_p;
    td_in_i32 top_k, position;
    td_in_u64 seed;
} td_in_sampling;

/* Carve arrays twice with the same calls: first with host and dev NULL, which counts, then after
 * td_inbox_alloc(). */
td_in_i32 td_inbox_i32(td_inbox *in, int64_t n);
td_in_f32 td_inbox_f32(td_inbox *in, int64_t n);
td_in_u64 td_inbox_u64(td_inbox *in, int64_t n);
td_in_sampling td_inbox_sampling(td_inbox *in, int64_t n);
td_status td_inbox_alloc(td_inbox *in, td_device_pool *pool, td_err *err);
void td_inbox_free(td_inbox *in); /* the host side; the device side is the pool's */
td_status td_inbox_send(td_inbox *in, td_stream *stream);

/* Row i: the request's parameters for the token at `position`. NULL: greedy. */
void td_in_sampling_set(const td_in_sampling *s, int64_t i, const td_sampling *sampling,
                        int32_t position);

/* Bit masks of forbidden ids, [n_rows, ceil(V/8)], uploaded only when a row has any. */
typedef struct {
    uint8_t *host, *dev;
    size_t row_bytes, n_bytes;
    int dirty;     /* some bit of host is set */
    int on_device; /* some bit of dev is set */
    int fixed;     /* a recorded step reads dev, always */
} td_forbid_mask;
td_status td_forbid_mask_alloc(td_forbid_mask *mask, int64_t n_rows, int32_t vocab_size,
                               td_device_pool *pool, td_err *err);
void td_forbid_mask_free(td_forbid_mask *mask);
void td_forbid_mask_clear(td_forbid_mask *mask);
/* Sets the row's bits when its token, the n_before-th of the request from 0, may not end it. */
void td_forbid_mask_set(td_forbid_mask *mask, int64_t row, const td_sampling *sampling,
                        int32_t n_before);
/* Brings dev up to date where it is read. */
td_status td_forbid_mask_send(td_forbid_mask *mask, td_stream *stream);
/* Device pointer for the sampler, or NULL when nothing is forbidden and the step is not fixed. */
const uint8_t *td_forbid_mask_get(const td_forbid_mask *mask);
#endif
