#include "common/rpc/frame.h"

#include <stdlib.h>
#include <string.h>

enum {
    KEEP_BYTES = 16384, /* an idle buffer above this is given back */
    FIRST_BYTES = 512,
};

static uint32_t read_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* ---- bounds ---- */

static bool take(td_budget *budget, size_t n)
{
    for (const td_budget *b = budget; b != NULL; b = b->whole)
        if (n > b->max - b->used)
            return false;
    for (td_budget *b = budget; b != NULL; b = b->whole)
        b->used += n;
    return true;
}

static void give(td_budget *budget, size_t n)
{
    for (td_budget *b = budget; b != NULL; b = b->whole)
        b->used -= n;
}

/* ---- in ---- */

void td_deframer_init(td_deframer *in, td_budget *budget, size_t max_message_bytes, bool whole)
{
    memset(in, 0, sizeof(*in));
    in->budget = budget;
    in->max_message_bytes =
        max_message_bytes > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)max_message_bytes;
    in->whole = whole;
}

static void drop_buf(td_deframer *in)
{
    give(in->budget, in->cap);
    free(in->buf);
    in->buf = NULL;
    in->len = in->cap = 0;
}

void td_deframer_fini(td_deframer *in)
{
    if (in->budget != NULL)
        drop_buf(in);
}

/* Grows with what has come, never with what the peer merely announced. */
static bool reserve(td_deframer *in, size_t need)
{
    if (need <= in->cap)
        return true;
    size_t cap = in->cap == 0 ? FIRST_BYTES : in->cap;
    while (cap < need)
        cap *= 2;
    if (cap > in->want)
        cap = in->want;
    size_t more = cap - in->cap;
    if (!take(in->budget, more))
        return false;
    uint8_t *buf = realloc(in->buf, cap);
    if (buf == NULL) {
        give(in->budget, more);
        return false;
    }
    in->buf = buf;
    in->cap = (uint32_t)cap;
    return true;
}

static td_status bad(td_grpc_status *code, const char **why, td_grpc_status c, const char *text)
{
    *code = c;
    *why = text;
    return TD_PROTOCOL;
}

static td_status check_head(td_deframer *in, td_grpc_status *code, const char **why)
{
    if (in->head[0] == 1) /* other encodings than identity were refused with the headers */
        return bad(code, why, TD_GRPC_INTERNAL, "a compressed message without a grpc-encoding");
    if (in->head[0] != 0)
        return bad(code, why, TD_GRPC_INTERNAL, "bad flag byte before a message");
    in->want = read_be32(in->head + 1);
    if (in->want > in->max_message_bytes)
        return bad(code, why, TD_GRPC_RESOURCE_EXHAUSTED, "message over the size limit");
    return TD_OK;
}

td_status td_deframer_next(td_deframer *in, const uint8_t **data, size_t *len, const uint8_t **msg,
                           size_t *msg_len, td_grpc_status *code, const char **why)
{
    if (in->n_head == 0 && in->cap > KEEP_BYTES) /* the message before this one was a big one */
        drop_buf(in);
    while (in->n_head < TD_FRAME_HEAD_BYTES) {
        if (*len == 0)
            return TD_EMPTY;
        in->head[in->n_head++] = **data;
        (*data)++;
        (*len)--;
        if (in->n_head == TD_FRAME_HEAD_BYTES) {
            td_status st = check_head(in, code, why);
            if (st < 0)
                return st;
            in->len = 0;
        }
    }
    size_t missing = in->want - in->len;
    size_t take = *len < missing ? *len : missing;
    if (in->len == 0 && take == in->want && !in->whole) { /* all of it stands in the input */
        *msg = *data;
    } else {
        if (!reserve(in, in->len + take))
            return bad(code, why, TD_GRPC_RESOURCE_EXHAUSTED, "no memory for the message");
        if (take > 0)
            memcpy(in->buf + in->len, *data, take);
        in->len += (uint32_t)take;
        *msg = in->buf != NULL ? in->buf : (const uint8_t *)"";
    }
    *data += take;
    *len -= take;
    if (take < missing)
        return TD_EMPTY;
    *msg_len = in->want;
    in->n_head = 0;
    return TD_OK;
}

bool td_deframer_mid_message(const td_deframer *in)
{
    return in->n_head > 0;
}

/* ---- out ---- */

void td_sendq_fini(td_sendq *q)
{
    td_sendq_clear(q);
    free(q->buf);
    memset(q, 0, sizeof(*q));
}

size_t td_sendq_bytes(const td_sendq *q)
{
    return q->end - q->off;
}

static bool make_room(td_sendq *q, size_t n)
{
    if (n <= q->cap - q->end)
        return true;
    size_t used = q->end - q->off;
    if (q->off >= used && n <= q->cap - used) { /* moving is cheap: at most half */
        memcpy(q->buf, q->buf + q->off, used);
    } else {
        size_t cap = q->cap == 0 ? FIRST_BYTES : 2 * q->cap;
        while (cap < used + n)
            cap *= 2;
        uint8_t *buf = malloc(cap);
        if (buf == NULL)
            return false;
        if (used > 0)
            memcpy(buf, q->buf + q->off, used);
        free(q->buf);
        q->buf = buf;
        q->cap = cap;
    }
    q->off = 0;
    q->end = used;
    return true;
}

td_status td_sendq_push(td_sendq *q, const void *msg, uint32_t len)
{
    size_t n = (size_t)TD_FRAME_HEAD_BYTES + len;
    if (!take(q->budget, n))
        return TD_FULL;
    if (!make_room(q, n)) {
        give(q->budget, n);
        return TD_NOMEM;
    }
    uint8_t *p = q->buf + q->end;
    p[0] = 0;
    p[1] = (uint8_t)(len >> 24);
    p[2] = (uint8_t)(len >> 16);
    p[3] = (uint8_t)(len >> 8);
    p[4] = (uint8_t)len;
    if (len > 0)
        memcpy(p + TD_FRAME_HEAD_BYTES, msg, len);
    q->end += n;
    return TD_OK;
}

const uint8_t *td_sendq_peek(const td_sendq *q, size_t *len)
{
    if (*len > q->end - q->off)
        *len = q->end - q->off;
    return q->buf + q->off;
}

void td_sendq_drop(td_sendq *q, size_t n)
{
    td_assert(n <= q->end - q->off);
    give(q->budget, n);
    size_t end = q->off + n;
    while (q->off < end) {
        if (q->left_in_message == 0)
            q->left_in_message = (size_t)TD_FRAME_HEAD_BYTES + read_be32(q->buf + q->off + 1);
        size_t step = end - q->off < q->left_in_message ? end - q->off : q->left_in_message;
        q->off += step;
        q->left_in_message -= step;
    }
    if (q->off == q->end)
        td_sendq_clear(q);
}

void td_sendq_clear(td_sendq *q)
{
    give(q->budget, q->end - q->off);
    q->off = q->end = 0;
    if (q->cap > KEEP_BYTES) {
        free(q->buf);
        q->buf = NULL;
        q->cap = 0;
    }
}
