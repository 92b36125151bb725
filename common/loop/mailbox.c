#include "common/loop/mailbox.h"

#include "common/base/ring.h"

#include <stdlib.h>
#include <uv.h>

enum { MAX_PER_TURN = 256 }; /* then sockets and timers get their turn */

struct td_mailbox {
    uv_async_t async;
    td_ring *ring;
    td_mailbox_fn fn;
    void *user;
    bool closed;
};

/* Runs on the producer's thread. libuv folds wakes that come before the loop has answered one. */
static void wake(void *arg)
{
    td_mailbox *box = arg;
    uv_async_send(&box->async);
}

static void on_async(uv_async_t *handle)
{
    td_mailbox *box = handle->data;
    const void *msg;
    size_t len;
    for (int n = 0; n < MAX_PER_TURN; n++) {
        if (td_ring_peek(box->ring, &msg, &len) != TD_OK)
            return;
        box->fn(box->user, msg, len);
        if (box->closed)
            return;
        td_ring_pop(box->ring);
    }
    uv_async_send(&box->async);
}

static void on_closed(uv_handle_t *handle)
{
    td_mailbox *box = handle->data;
    td_ring_destroy(box->ring);
    free(box);
}

td_status td_mailbox_open(td_loop *loop, size_t capacity_bytes, td_mailbox_fn fn, void *user,
                          td_mailbox **out, td_err *err)
{
    td_mailbox *box = calloc(1, sizeof(*box));
    if (box == NULL)
        return td_fail(err, TD_NOMEM, "mailbox: out of memory");
    box->fn = fn;
    box->user = user;
    box->async.data = box;
    td_status st = td_ring_create(capacity_bytes, wake, box, &box->ring, err);
    if (st < 0) {
        free(box);
        return st;
    }
    int rc = uv_async_init(td_loop_uv(loop), &box->async, on_async);
    if (rc != 0) {
        td_ring_destroy(box->ring);
        free(box);
        return td_fail(err, TD_IO, "mailbox: %s", uv_strerror(rc));
    }
    *out = box;
    return TD_OK;
}

td_status td_mailbox_push(td_mailbox *box, const void *msg, size_t len)
{
    return td_ring_push(box->ring, msg, len);
}

void td_mailbox_close(td_mailbox *box)
{
    if (box == NULL || box->closed)
        return;
    box->closed = true;
    uv_close((uv_handle_t *)&box->async, on_closed);
}
