#include "model/inbox.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 64

/* Offset of the next array. */
static size_t carve(td_inbox *in, int64_t n, size_t size)
{
    size_t at = in->n_bytes;
    in->n_bytes += ((size_t)n * size + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

#define CARVE(type, elem)                                                                          \
    size_t at = carve(in, n, sizeof(elem));                                                        \
    type a = {NULL, NULL};                                                                         \
    if (in->host != NULL) {                                                                        \
        a.host = (elem *)(void *)(in->host + at);                                                  \
        a.dev = (elem *)(void *)(in->dev + at);                                                    \
    }                                                                                              \
    return a

td_in_i32 td_inbox_i32(td_inbox *in, int64_t n)
{
    CARVE(td_in_i32, int32_t);
}

td_in_f32 td_inbox_f32(td_inbox *in, int64_t n)
{
    CARVE(td_in_f32, float);
}

td_in_u64 td_inbox_u64(td_inbox *in, int64_t n)
{
    CARVE(td_in_u64, uint64_t);
}

td_in_sampling td_inbox_sampling(td_inbox *in, int64_t n)
{
    td_in_sampling s;
    s.temperature = td_inbox_f32(in, n);
    s.top_p = td_inbox_f32(in, n);
    s.top_k = td_inbox_i32(in, n);
    s.position = td_inbox_i32(in, n);
    s.seed = td_inbox_u64(in, n);
    return s;
}

td_status td_inbox_alloc(td_inbox *in, td_device_pool *pool, td_err *err)
{
    void *host = NULL;
    in->device = pool->device;
    td_status st = td_device_alloc_host(in->device, in->n_bytes, &host, err);
    if (st < 0)
        return st;
    in->host = host;
    in->dev = td_device_pool_alloc(pool, in->n_bytes, err);
    in->n_bytes = 0;
    return pool->st;
}

void td_inbox_free(td_inbox *in)
{
    if (in->host != NULL)
        td_device_free_host(in->device, in->host);
    in->host = NULL;
}

td_status td_inbox_send(td_inbox *in, td_stream *stream)
{
    return td_stream_write(stream, in->dev, in->host, in->n_bytes);
}

void td_in_sampling_set(const td_in_sampling *s, int64_t i, const td_sampling *sampling,
                        int32_t position)
{
    td_sampling greedy;
    if (sampling == NULL) {
        td_sampling_init(&greedy);
        sampling = &greedy;
    }
    s->temperature.host[i] = sampling->temperature;
    s->top_p.host[i] = sampling->top_p;
    s->top_k.host[i] = sampling->top_k;
    s->position.host[i] = position;
    s->seed.host[i] = sampling->seed;
}

td_status td_forbid_mask_alloc(td_forbid_mask *mask, int64_t n_rows, int32_t vocab_size,
                               td_device_pool *pool, td_err *err)
{
    mask->row_bytes = ((size_t)vocab_size + 7) / 8;
    mask->n_bytes = (size_t)n_rows * mask->row_bytes;
    mask->host = calloc(1, mask->n_bytes + 1);
    mask->dev = td_device_pool_alloc(pool, mask->n_bytes, err);
    if (mask->host == NULL)
        return td_fail(err, TD_NOMEM, "engine: no memory for %zu bytes of masks", mask->n_bytes);
    return pool->st;
}

void td_forbid_mask_free(td_forbid_mask *mask)
{
    free(mask->host);
    mask->host = NULL;
}

void td_forbid_mask_clear(td_forbid_mask *mask)
{
    if (mask->dirty)
        memset(mask->host, 0, mask->n_bytes);
    mask->dirty = 0;
}

void td_forbid_mask_set(td_forbid_mask *mask, int64_t row, const td_sampling *sampling,
                        int32_t n_before)
{
    if (sampling == NULL || n_before >= sampling->min_tokens)
        return;
    for (int32_t i = 0; i < sampling->n_forbid; i++) {
        int32_t id = sampling->forbid[i];
        mask->host[(size_t)row * mask->row_bytes + (size_t)id / 8] |= (uint8_t)(1 << (id % 8));
        mask->dirty = 1;
    }
}

td_status td_forbid_mask_send(td_forbid_mask *mask, td_stream *stream)
{
    if (!mask->dirty && !(mask->fixed && mask->on_device))
        return TD_OK;
    mask->on_device = mask->dirty;
    return td_stream_write(stream, mask->dev, mask->host, mask->n_bytes);
}

const uint8_t *td_forbid_mask_get(const td_forbid_mask *mask)
{
    return mask->dirty || mask->fixed ? mask->dev : NULL;
}
