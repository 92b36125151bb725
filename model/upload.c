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
#define DEFAULT_BYTES ((size_t)4 << 20)
#define DEFAULT_PATIENCE_MS 120000
#define MAX_PIECES 64 /* of a batch */
#define N_BATCHES 256 /* written down ahead: allocating takes its time, and readers have work */
#define N_BUFFERS 2   /* of a reader */
#define ALIGN 64

typedef struct { /* what becomes one stretch of a buffer */
    td_upload_part part;
    size_t at, n_bytes;
} piece;

/* What goes through one buffer: the engine thread writes it down and submits it, a reader fills a
 * buffer with it and has that copied. */
typedef struct {
    piece pieces[MAX_PIECES];
    uint32_t n_pieces;
    size_t used;
    int done; /* under the lock: its copies are enqueued, or it failed */
} batch;

/* Its buffers, streams and events are its own: what it filled stays in its core's cache until it
 * is copied, and no other thread has to wake up for that. */
typedef struct {
    struct td_upload *upload;
    pthread_t thread;
    td_stream *stream;
    unsigned char
        *buffers[N_BUFFERS];     /* page-locked; by the reader itself: it takes milliseconds */
    td_event *copied[N_BUFFERS]; /* recorded behind a buffer's copies, when `copying` */
    int copying[N_BUFFERS];
    uint32_t next;
} reader;

struct td_upload {
    td_device *device;
    td_stream *stream; /* the engine's: fills new memory with zeros */
    size_t buffer_bytes;
    int64_t patience_ms;
    float e4m3[256];
    batch *ring;        /* [N_BATCHES] */
    int fresh;          /* memory was allocated: its zeros may be under way */
    uint64_t submitted; /* written by the engine thread under the lock */
    uint64_t taken;     /* by readers; under the lock */
    int stop;           /* under the lock */
    td_status st;       /* under the lock: of the batch that failed first */
    td_err err;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    reader readers[MAX_THREADS];
    uint32_t n_readers, n_threads; /* that have what they need; that were started */
    uint32_t n_ready;              /* under the lock: that have their buffers, or failed */
};

/* ---- readers ---- */

/* Has a filled buffer copied, piece by piece: pieces that lie side by side may lie in different
 * allocations, and no copy may go over the end of one. */
static td_status copy(reader *r, const batch *b, uint32_t k, td_err *err)
{
    td_status st = TD_OK;
    for (uint32_t i = 0; i < b->n_pieces && st == TD_OK; i++)
        st = td_stream_write(r->stream, b->pieces[i].part.dst, r->buffers[k] + b->pieces[i].at,
                             b->pieces[i].n_bytes);
    if (st == TD_OK)
        st = td_event_record(r->copied[k], r->stream);
    r->copying[k] = st == TD_OK;
    return st == TD_OK ? TD_OK
                       : td_fail(err, st, "tensor %s: copying it to the device",
                                 b->pieces[0].part.m.w->name);
}

static td_status carry(reader *r, const batch *b, td_err *err)
{
    const td_upload *u = r->upload;
    uint32_t k = r->next++ % N_BUFFERS;
    td_status st = TD_OK;
    if (r->copying[k])
        st = td_event_wait(r->copied[k], r->stream, err);
    r->copying[k] = 0;
    for (uint32_t i = 0; i < b->n_pieces && st == TD_OK; i++)
        st = td_upload_fill(&b->pieces[i].part, u->e4m3, r->buffers[k] + b->pieces[i].at, err);
    return st == TD_OK ? copy(r, b, k, err) : st;
}

static td_status alloc_buffers(reader *r, td_err *err)
{
    const td_upload *u = r->upload;
    td_status st = td_device_bind(u->device, err);
    for (uint32_t k = 0; k < N_BUFFERS && st == TD_OK; k++) {
        void *memory = NULL;
        st = td_device_alloc_host(u->device, u->buffer_bytes, &memory, err);
        r->buffers[k] = memory;
    }
    return st;
}

/* Under the lock. */
static void note(td_upload *u, td_status st, const td_err *err)
{
    if (st < 0 && u->st == TD_OK) {
        u->st = st;
        u->err = *err;
    }
}

static void *read_batches(void *arg)
{
    reader *r = arg;
    td_upload *u = r->upload;
    td_err err = {0};
    td_status st = alloc_buffers(r, &err);
    pthread_mutex_lock(&u->lock);
    note(u, st, &err);
    u->n_ready++;
    pthread_cond_signal(&u->done);
    while (!u->stop) {
        if (u->taken == u->submitted) {
            pthread_cond_wait(&u->work, &u->lock); /* until there is some, or stop */
            continue;
        }
        batch *b = &u->ring[u->taken++ % N_BATCHES];
        pthread_mutex_unlock(&u->lock);
        if (st == TD_OK)
            st = carry(r, b, &err);
        pthread_mutex_lock(&u->lock);
        note(u, st, &err);
        b->done = 1;
        pthread_cond_signal(&u->done);
    }
    pthread_mutex_unlock(&u->lock);
    return NULL;
}

/* ---- the engine thread ---- */

static int is_there(const td_upload *u, const batch *b)
{
    return b != NULL ? b->done : u->n_ready == u->n_threads;
}

/* Until the batch is done (NULL: all readers have begun), or something failed. */
static td_status wait_for(td_upload *u, const batch *b, td_err *err)
{
    int64_t deadline = td_now_ns() + u->patience_ms * TD_NS_PER_MS;
    struct timespec at = {deadline / TD_NS_PER_S, deadline % TD_NS_PER_S};
    int late = 0;
    pthread_mutex_lock(&u->lock);
    while (!is_there(u, b) && u->st == TD_OK && !late)
        late = pthread_cond_timedwait(&u->done, &u->lock, &at) != 0;
    td_status st = u->st;
    int done = is_there(u, b);
    pthread_mutex_unlock(&u->lock);
    if (st < 0)
        return td_fail(err, st, "%s", u->err.text);
    if (!done && b == NULL)
        return td_fail(err, TD_DEADLINE, "weights: readers did not begin within %lld ms",
                       (long long)u->patience_ms);
    return done ? TD_OK
                : td_fail(err, TD_DEADLINE, "tensor %s was not read within %lld ms",
                          b->pieces[0].part.m.w->name, (long long)u->patience_ms);
}

/* Readers get the batch that was written down; the one behind it is made ready for the next. */
static td_status submit(td_upload *u, td_err *err)
{
    td_status st = u->fresh ? td_stream_sync(u->stream, err) : TD_OK; /* zeros come first */
    if (st < 0)
        return st;
    u->fresh = 0;
    pthread_mutex_lock(&u->lock);
    u->submitted++;
    pthread_cond_signal(&u->work);
    pthread_mutex_unlock(&u->lock);
    batch *b = &u->ring[u->submitted % N_BATCHES];
    if (u->submitted >= N_BATCHES)
        st = wait_for(u, b, err);
    if (st == TD_OK) {
        b->done = 0;
        b->n_pieces = 0;
        b->used = 0;
    }
    return st;
}

/* Where in the buffer a piece of the part begins: behind the last one when it continues it. */
static size_t place(const batch *b, const td_upload_part *part)
{
    if (b->n_pieces == 0)
        return 0;
    const piece *last = &b->pieces[b->n_pieces - 1];
    int goes_on = last->part.dst + last->n_bytes == part->dst && last->part.dtype == part->dtype;
    return goes_on ? b->used : (b->used + ALIGN - 1) / ALIGN * ALIGN;
}

/* The first n rows of what dst gets, of row_bytes each. */
static void append(batch *b, td_upload_part *rest, int32_t n, size_t row_bytes)
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

void td_upload_allocated(td_upload *u)
{
    u->fresh = 1;
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
        batch *b = &u->ring[u->submitted % N_BATCHES];
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
    td_status st = u->ring[u->submitted % N_BATCHES].n_pieces > 0 ? submit(u, err) : TD_OK;
    if (st == TD_OK)
        st = wait_for(u, NULL, err);
    uint64_t oldest = u->submitted >= N_BATCHES ? u->submitted - N_BATCHES + 1 : 0;
    for (uint64_t i = oldest; i < u->submitted && st == TD_OK; i++)
        st = wait_for(u, &u->ring[i % N_BATCHES], err);
    for (uint32_t i = 0; i < u->n_readers && st == TD_OK; i++) /* they are idle */
        st = td_stream_sync(u->readers[i].stream, err);
    return st;
}

static td_status open_reader(td_upload *u, uint32_t i, td_err *err)
{
    reader *r = &u->readers[i];
    r->upload = u;
    u->n_readers++;
    td_status st = td_device_open_stream(u->device, &r->stream, err);
    for (uint32_t k = 0; k < N_BUFFERS && st == TD_OK; k++)
        st = td_event_create(u->device, &r->copied[k], err);
    return st;
}

/* Batches, and all that n readers have but their threads and what these make. */
static td_status alloc_all(td_upload *u, uint32_t n, td_err *err)
{
    td_status st = TD_OK;
    u->ring = calloc(N_BATCHES, sizeof(*u->ring));
    if (u->ring == NULL)
        return td_fail(err, TD_NOMEM, "weights: no memory for what is to be read");
    for (uint32_t i = 0; i < n && st == TD_OK; i++)
        st = open_reader(u, i, err);
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
    st = alloc_all(u, n, err);
    for (uint32_t i = 0; i < n && st == TD_OK; i++) {
        if (pthread_create(&u->readers[i].thread, NULL, read_batches, &u->readers[i]) != 0)
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
        pthread_join(u->readers[i].thread, NULL);
    for (uint32_t i = 0; i < u->n_readers; i++) {
        reader *r = &u->readers[i];
        td_device_close_stream(r->stream); /* waits for copies that are under way */
        for (uint32_t k = 0; k < N_BUFFERS; k++) {
            td_event_destroy(u->device, r->copied[k]);
            td_device_free_host(u->device, r->buffers[k]);
        }
    }
    free(u->ring);
    pthread_cond_destroy(&u->work);
    pthread_cond_destroy(&u->done);
    pthread_mutex_destroy(&u->lock);
    free(u);
}
