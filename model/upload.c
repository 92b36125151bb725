#include "model/upload.h"

#include "common/base/clock.h"
#include "kernels/numbers.h"
#include "model/upload_fill.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_THREADS 64
#define DEFAULT_THREADS 16
#define DEFAULT_BYTES ((size_t)2 << 20)
#define DEFAULT_PATIENCE_MS 120000
#define MAX_PIECES 64 /* of a buffer */
#define ALIGN 64

typedef struct { /* what becomes one stretch of a buffer */
    td_upload_part part;
    size_t at, n_bytes;
} piece;

/* A buffer goes round: the engine thread writes down what it shall hold and submits it, a reader
 * fills it, the engine thread has it copied. Whose turn it is follows from the counters of the
 * ring; st, err and filled are written by the reader under the lock. */
typedef struct {
    unsigned char *bytes;
    piece pieces[MAX_PIECES];
    uint32_t n_pieces;
    size_t used;
    td_event *copied; /* recorded behind the copies, when `copying` */
    int copying, filled;
    td_status st;
    td_err err;
} buffer;

struct td_upload {
    td_device *device;
    td_stream *stream;
    size_t buffer_bytes;
    int64_t patience_ms;
    float e4m3[256];
    unsigned char *memory; /* page-locked, of all buffers */
    buffer *ring;          /* [n] */
    uint64_t n, copied;    /* engine thread: buffers whose copies were enqueued */
    uint64_t submitted;    /* written by the engine thread under the lock */
    uint64_t taken;        /* by readers; under the lock */
    int stop;              /* under the lock */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t threads[MAX_THREADS];
    uint32_t n_threads; /* that were started */
};

/* ---- readers ---- */

static void fill(const td_upload *u, buffer *b)
{
    b->st = TD_OK;
    for (uint32_t i = 0; i < b->n_pieces && b->st == TD_OK; i++)
        b->st = td_upload_fill(&b->pieces[i].part, u->e4m3, b->bytes + b->pieces[i].at, &b->err);
}

static void *read_buffers(void *arg)
{
    td_upload *u = arg;
    pthread_mutex_lock(&u->lock);
    while (!u->stop) {
        if (u->taken == u->submitted) {
            pthread_cond_wait(&u->work, &u->lock); /* until there is some, or stop */
            continue;
        }
        buffer *b = &u->ring[u->taken++ % u->n];
        pthread_mutex_unlock(&u->lock);
        fill(u, b);
        pthread_mutex_lock(&u->lock);
        b->filled = 1;
        pthread_cond_signal(&u->done);
    }
    pthread_mutex_unlock(&u->lock);
    return NULL;
}

/* ---- the engine thread ---- */

static int is_filled(td_upload *u, const buffer *b)
{
    pthread_mutex_lock(&u->lock);
    int filled = b->filled;
    pthread_mutex_unlock(&u->lock);
    return filled;
}

static td_status wait_filled(td_upload *u, const buffer *b, td_err *err)
{
    int64_t deadline = td_now_ns() + u->patience_ms * TD_NS_PER_MS;
    struct timespec at = {deadline / TD_NS_PER_S, deadline % TD_NS_PER_S};
    int late = 0;
    pthread_mutex_lock(&u->lock);
    while (!b->filled && !late)
        late = pthread_cond_timedwait(&u->done, &u->lock, &at) != 0;
    int filled = b->filled;
    pthread_mutex_unlock(&u->lock);
    return filled ? TD_OK
                  : td_fail(err, TD_DEADLINE, "tensor %s was not read within %lld ms",
                            b->pieces[0].part.m.w->name, (long long)u->patience_ms);
}

/* Has a filled buffer copied, piece by piece: pieces that lie side by side may lie in different
 * allocations, and no copy may go over the end of one. */
static td_status copy(td_upload *u, buffer *b, td_err *err)
{
    td_status st = b->st;
    if (st < 0)
        return td_fail(err, st, "%s", b->err.text);
    for (uint32_t i = 0; i < b->n_pieces && st == TD_OK; i++)
        st = td_stream_write(u->stream, b->pieces[i].part.dst, b->bytes + b->pieces[i].at,
                             b->pieces[i].n_bytes);
    if (st == TD_OK)
        st = td_event_record(b->copied, u->stream);
    b->copying = st == TD_OK;
    u->copied++;
    return st == TD_OK ? TD_OK
                       : td_fail(err, st, "tensor %s: copying it to the device",
                                 b->pieces[0].part.m.w->name);
}

/* Waits for the oldest submitted buffer and has it copied. */
static td_status copy_oldest(td_upload *u, td_err *err)
{
    buffer *b = &u->ring[u->copied % u->n];
    td_status st = wait_filled(u, b, err);
    return st == TD_OK ? copy(u, b, err) : st;
}

/* Makes the buffer behind the last submitted one ready to be written down in. */
static td_status next_buffer(td_upload *u, td_err *err)
{
    td_status st = TD_OK;
    buffer *b = &u->ring[u->submitted % u->n];
    if (u->submitted - u->copied == u->n)
        st = copy_oldest(u, err);
    while (st == TD_OK && u->copied < u->submitted &&
           is_filled(u, &u->ring[u->copied % u->n])) /* keep the copies busy */
        st = copy(u, &u->ring[u->copied % u->n], err);
    if (st == TD_OK && b->copying)
        st = td_event_wait(b->copied, u->stream, err);
    b->copying = b->filled = 0;
    b->n_pieces = 0;
    b->used = 0;
    return st;
}

static td_status submit(td_upload *u, td_err *err)
{
    pthread_mutex_lock(&u->lock);
    u->submitted++;
    pthread_cond_signal(&u->work);
    pthread_mutex_unlock(&u->lock);
    return next_buffer(u, err);
}

/* Where in the buffer a piece of the part begins: behind the last one when it continues it. */
static size_t place(const buffer *b, const td_upload_part *part)
{
    if (b->n_pieces == 0)
        return 0;
    const piece *last = &b->pieces[b->n_pieces - 1];
    int goes_on = last->part.dst + last->n_bytes == part->dst && last->part.dtype == part->dtype;
    return goes_on ? b->used : (b->used + ALIGN - 1) / ALIGN * ALIGN;
}

/* The first n rows of what dst gets, of row_bytes each. */
static void append(buffer *b, td_upload_part *rest, int32_t n, size_t row_bytes)
{
    piece *p = &b->pieces[b->n_pieces];
    p->at = place(b, rest);
    p->n_bytes = (size_t)n * row_bytes;
    p->part = *rest;
    int32_t *lo = rest->turned ? &rest->cut.col_lo : &rest->cut.row_lo;
    int32_t *hi = rest->turned ? &p->part.cut.col_hi : &p->part.cut.row_hi;
    *lo += n;
    *hi = *lo;
    rest->dst += p->n_bytes;
    b->used = p->at + p->n_bytes;
    b->n_pieces++;
}

td_status td_upload_add(td_upload *u, const td_upload_part *part, td_err *err)
{
    td_upload_part rest = *part;
    const td_cut *c = &rest.cut;
    size_t across = (size_t)(rest.turned ? c->row_hi - c->row_lo : c->col_hi - c->col_lo);
    size_t row_bytes = across * td_dtype_bytes(rest.dtype);
    td_status st = TD_OK;
    if (row_bytes == 0)
        return TD_OK;
    if (row_bytes > u->buffer_bytes)
        return td_fail(err, TD_UNSUPPORTED, "tensor %s: rows of %zu bytes", rest.m.w->name,
                       row_bytes);
    while (st == TD_OK && c->row_lo < c->row_hi && c->col_lo < c->col_hi) {
        buffer *b = &u->ring[u->submitted % u->n];
        size_t at = place(b, &rest), room = at < u->buffer_bytes ? u->buffer_bytes - at : 0;
        size_t left = (size_t)(rest.turned ? c->col_hi - c->col_lo : c->row_hi - c->row_lo);
        size_t n = room / row_bytes < left ? room / row_bytes : left;
        if (n > 0 && b->n_pieces < MAX_PIECES)
            append(b, &rest, (int32_t)n, row_bytes);
        else
            st = submit(u, err);
    }
    return st;
}

td_status td_upload_finish(td_upload *u, td_err *err)
{
    td_status st = u->ring[u->submitted % u->n].n_pieces > 0 ? submit(u, err) : TD_OK;
    while (st == TD_OK && u->copied < u->submitted)
        st = copy_oldest(u, err);
    return st == TD_OK ? td_stream_sync(u->stream, err) : st;
}

static td_status alloc_ring(td_upload *u, uint32_t n, td_err *err)
{
    void *memory = NULL;
    u->ring = calloc(n, sizeof(*u->ring));
    if (u->ring == NULL)
        return td_fail(err, TD_NOMEM, "weights: no memory for %u buffers", n);
    u->n = n;
    td_status st = td_device_alloc_host(u->device, n * u->buffer_bytes, &memory, err);
    u->memory = memory;
    for (uint32_t i = 0; i < n && st == TD_OK; i++) {
        u->ring[i].bytes = u->memory + i * u->buffer_bytes;
        st = td_event_create(u->device, &u->ring[i].copied, err);
    }
    return st;
}

static td_status init_locks(td_upload *u, td_err *err)
{
    pthread_condattr_t clock;
    if (pthread_condattr_init(&clock) != 0)
        return td_fail(err, TD_NOMEM, "weights: no condition variable");
    int bad = pthread_condattr_setclock(&clock, CLOCK_MONOTONIC) != 0 ||
              pthread_mutex_init(&u->lock, NULL) != 0 || pthread_cond_init(&u->work, NULL) != 0 ||
              pthread_cond_init(&u->done, &clock) != 0;
    pthread_condattr_destroy(&clock);
    return bad ? td_fail(err, TD_NOMEM, "weights: no condition variable") : TD_OK;
}

td_status td_upload_create(td_device *device, const td_upload_options *o, td_upload **out,
                           td_err *err)
{
    uint32_t n = o->n_threads;
    if (n == 0)
        n = td_device_cpus() < DEFAULT_THREADS ? td_device_cpus() : DEFAULT_THREADS;
    n = n < MAX_THREADS ? n : MAX_THREADS;
    td_upload *u = calloc(1, sizeof(*u));
    if (u == NULL)
        return td_fail(err, TD_NOMEM, "weights: no memory");
    u->device = device;
    u->stream = td_device_stream(device);
    u->patience_ms = o->patience_ms > 0 ? o->patience_ms : DEFAULT_PATIENCE_MS;
    u->buffer_bytes = o->buffer_bytes > 0 ? o->buffer_bytes : DEFAULT_BYTES;
    u->buffer_bytes = (u->buffer_bytes + ALIGN - 1) / ALIGN * ALIGN;
    for (int i = 0; i < 256; i++)
        u->e4m3[i] = td_e4m3_to_f32((uint8_t)i);
    td_status st = init_locks(u, err);
    if (st < 0) { /* nothing else was begun */
        free(u);
        return st;
    }
    st = alloc_ring(u, 2 * n, err);
    for (uint32_t i = 0; i < n && st == TD_OK; i++) {
        if (pthread_create(&u->threads[i], NULL, read_buffers, u) != 0)
            st = td_fail(err, TD_NOMEM, "weights: cannot start a reader");
        else
            u->n_threads++;
    }
    if (st == TD_OK)
        *out = u;
    else
        td_upload_destroy(u);
    return st;
}

void td_upload_destroy(td_upload *u)
{
    if (u == NULL)
        return;
    pthread_mutex_lock(&u->lock);
    u->stop = 1;
    pthread_cond_broadcast(&u->work);
    pthread_mutex_unlock(&u->lock);
    for (uint32_t i = 0; i < u->n_threads; i++)
        pthread_join(u->threads[i], NULL);
    for (uint64_t i = 0; i < u->n; i++)
        td_event_destroy(u->device, u->ring[i].copied);
    if (u->memory != NULL)
        td_device_free_host(u->device, u->memory); /* waits for copies that are under way */
    free(u->ring);
    pthread_cond_destroy(&u->work);
    pthread_cond_destroy(&u->done);
    pthread_mutex_destroy(&u->lock);
    free(u);
}
