/* h2_frames.c - nghttp2's callbacks. They run inside mem_recv() and mem_send(), which do not nest:
 * nothing here or above calls either; sending is always left to the flush task. Once dying, no
 * event leaves this file. */
#include "common/rpc/h2.h"

#include "common/base/clock.h"

#include <stdlib.h>
#include <string.h>

enum {
    STREAM_WINDOW = 1 << 20, /* of what a peer may send ahead; it is consumed as it comes */
    CONNECTION_WINDOW = 4 << 20,
    MAX_CONTROL_PER_S = 10000,
    RESET_BURST = 8, /* times max_streams; then max_streams per second */
};

static td_h2_stream *stream_of(nghttp2_session *session, int32_t id)
{
    return nghttp2_session_get_stream_user_data(session, id);
}

/* PINGs, SETTINGS, empty DATA and the like cost their sender nothing; nobody needs thousands of
 * them in a second. */
static bool control_flood(td_h2 *h2, const nghttp2_frame *frame)
{
    switch (frame->hd.type) {
    case NGHTTP2_DATA:
        if (frame->hd.length > 0 || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
            return false;
        break;
    case NGHTTP2_HEADERS:
    case NGHTTP2_WINDOW_UPDATE: return false;
    default: break;
    }
    if (h2->heard_ns - h2->control_ns > TD_NS_PER_S) {
        h2->control_ns = h2->heard_ns;
        h2->n_control = 0;
    }
    return ++h2->n_control > MAX_CONTROL_PER_S;
}

/* A frame other than CONTINUATION means that the header block before it has ended, in whatever way.
 */
static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user)
{
    td_h2 *h2 = user;
    (void)session;
    if (hd->type != NGHTTP2_CONTINUATION)
        h2->header_ns = hd->type == NGHTTP2_HEADERS && h2->limits.server ? h2->heard_ns : 0;
    return 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    td_h2 *h2 = user;
    if (h2->dying)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!h2->limits.server || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    td_h2_stream *s = h2->events->on_begin(h2);
    if (s == NULL) { /* its other frames find no stream and are ignored */
        nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, NGHTTP2_REFUSED_STREAM);
        return 0;
    }
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, s);
    td_h2_link(h2, s, frame->hd.stream_id);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                     void *user)
{
    td_h2 *h2 = user;
    (void)flags;
    if (h2->dying)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    td_h2_stream *s = stream_of(session, frame->hd.stream_id);
    if (s != NULL)
        td_meta_add(s->headers_done ? &s->trailers : &s->headers, name, name_len, value, value_len,
                    h2->limits.max_header_bytes);
    return 0;
}

static void headers_complete(td_h2 *h2, td_h2_stream *s)
{
    if (s->headers_done) {
        h2->events->on_trailers(s);
        return;
    }
    const char *status = td_meta_get(&s->headers, ":status");
    if (status != NULL && status[0] == '1') { /* 1xx: the real ones are yet to come */
        td_meta_clear(&s->headers);
        return;
    }
    s->headers_done = true;
    h2->events->on_headers(s);
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    td_h2 *h2 = user;
    if (h2->dying)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (control_flood(h2, frame)) {
        td_h2_kill(h2, TD_PROTOCOL, "flood of control frames");
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    td_h2_stream *s;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        h2->header_ns = 0;
        if ((s = stream_of(session, frame->hd.stream_id)) != NULL)
            headers_complete(h2, s);
        break;
    case NGHTTP2_SETTINGS:
        if (!h2->ready && (frame->hd.flags & NGHTTP2_FLAG_ACK) == 0) {
            h2->ready = true;
            h2->rearm = true;
            if (h2->events->on_ready != NULL)
                h2->events->on_ready(h2);
        }
        return 0;
    case NGHTTP2_GOAWAY:
        h2->goaway_seen = true;
        if (h2->events->on_goaway != NULL)
            h2->events->on_goaway(h2);
        return 0;
    case NGHTTP2_DATA: break;
    default: return 0;
    }
    if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0 || h2->dying)
        return 0;
    s = stream_of(session, frame->hd.stream_id);
    if (s != NULL)
        h2->events->on_end_stream(s);
    return 0;
}

static int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                         size_t len, void *user)
{
    td_h2 *h2 = user;
    (void)flags;
    if (h2->dying)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    td_h2_stream *s = stream_of(session, id);
    if (s != NULL)
        h2->events->on_data(s, data, len);
    nghttp2_session_consume(session, id, len); /* only now may the peer send more */
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t h2_error, void *user)
{
    td_h2 *h2 = user;
    td_h2_stream *s = stream_of(session, id);
    if (h2->dying || s == NULL) /* dying: the reaper closes it */
        return 0;
    td_h2_unlink(s);
    h2->events->on_close(s, false, h2_error);
    return 0;
}

/* A server that has said its last word does not wait for the rest of the request. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    td_h2 *h2 = user;
    if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR)
        h2->broken = true;
    if (h2->limits.server && frame->hd.type == NGHTTP2_HEADERS &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0 &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    return 0;
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int lib_error,
                            void *user)
{
    td_h2 *h2 = user;
    (void)session;
    if (!h2->dying && !h2->broken)
        td_fail(&h2->why, TD_PROTOCOL, "invalid frame of type %u on stream %d: %s",
                (unsigned)frame->hd.type, frame->hd.stream_id, nghttp2_strerror(lib_error));
    return 0;
}

static int on_error(nghttp2_session *session, int lib_error, const char *msg, size_t len,
                    void *user)
{
    td_h2 *h2 = user;
    (void)session;
    (void)lib_error;
    if (!h2->dying)
        td_fail(&h2->why, TD_PROTOCOL, "%.*s", (int)len, msg);
    return 0;
}

/* ---- DATA out: from the stream's queue straight into the batch ---- */

static ssize_t read_data(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    td_h2 *h2 = user;
    td_h2_stream *s = source->ptr;
    size_t n = length;
    (void)session;
    (void)id;
    (void)buf;
    td_sendq_peek(&s->out, &n);
    if (n == 0 && !s->eof) {
        s->asleep = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    if (n > 0)
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    s->promised = n;
    if (s->eof && n == td_sendq_bytes(&s->out)) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (h2->events->on_eof(s))
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
    }
    return (ssize_t)n;
}

/* nghttp2 calls this for the frame that read_data() has begun, now or (no room) at the next
 * mem_send(). */
static int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head,
                     size_t length, nghttp2_data_source *source, void *user)
{
    td_h2 *h2 = user;
    td_h2_stream *s = source->ptr;
    size_t n = length;
    (void)session;
    td_assert(frame->data.padlen == 0); /* we ask for no padding */
    if (h2->n_out + 9 + length > sizeof(h2->scratch->write) - TD_H2_SLACK)
        return NGHTTP2_ERR_WOULDBLOCK;
    const uint8_t *bytes = td_sendq_peek(&s->out, &n);
    td_assert(n == length); /* nobody clears a queue with bytes promised */
    uint8_t *p = h2->scratch->write + h2->n_out;
    memcpy(p, head, 9);
    memcpy(p + 9, bytes, length);
    td_sendq_drop(&s->out, length);
    s->promised = 0;
    h2->n_out += 9 + length;
    return 0;
}

nghttp2_data_provider td_h2_provider(td_h2_stream *s)
{
    return (nghttp2_data_provider){.source = {.ptr = s}, .read_callback = read_data};
}

/* ---- the session ---- */

static nghttp2_session_callbacks *make_callbacks(void)
{
    nghttp2_session_callbacks *cb = NULL;
    if (nghttp2_session_callbacks_new(&cb) != 0)
        return NULL;
    nghttp2_session_callbacks_set_on_begin_frame_callback(cb, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data_chunk);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_send);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid_frame);
    nghttp2_session_callbacks_set_error_callback2(cb, on_error);
    nghttp2_session_callbacks_set_send_data_callback(cb, send_data);
    return cb;
}

static nghttp2_option *make_options(const td_h2_limits *limits)
{
    nghttp2_option *opt = NULL;
    if (nghttp2_option_new(&opt) != 0)
        return NULL;
    nghttp2_option_set_no_auto_window_update(opt, 1);
    nghttp2_option_set_no_closed_streams(opt, 1);
    if (limits->server)
        nghttp2_option_set_stream_reset_rate_limit(opt, (uint64_t)RESET_BURST * limits->max_streams,
                                                   limits->max_streams);
    return opt;
}

static int submit_settings(td_h2 *h2)
{
    nghttp2_settings_entry iv[4];
    size_t n = 0;
    iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW};
    iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
                                       (uint32_t)h2->limits.max_header_bytes};
    if (h2->limits.server)
        iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
                                           h2->limits.max_streams};
    else
        iv[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0};
    int rc = nghttp2_submit_settings(h2->session, NGHTTP2_FLAG_NONE, iv, n);
    return rc != 0 ? rc
                   : nghttp2_session_set_local_window_size(h2->session, NGHTTP2_FLAG_NONE, 0,
                                                           CONNECTION_WINDOW);
}

td_status td_h2_make_session(td_h2 *h2)
{
    nghttp2_session_callbacks *cb = make_callbacks();
    nghttp2_option *opt = make_options(&h2->limits);
    int rc = NGHTTP2_ERR_NOMEM;
    if (cb != NULL && opt != NULL)
        rc = h2->limits.server ? nghttp2_session_server_new2(&h2->session, cb, h2, opt)
                               : nghttp2_session_client_new2(&h2->session, cb, h2, opt);
    if (rc == 0)
        rc = submit_settings(h2);
    nghttp2_session_callbacks_del(cb);
    nghttp2_option_del(opt);
    return rc == 0 ? TD_OK : TD_NOMEM;
}
