#include "model/upload.h"

#include "common/base/clock.h"
#include "kernels/numbers.h"
#include "model/upload_fill.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_THREADS 64
#define DEFAULT_BYTES ((size_t)16 << 20)
#define DEFAULT_PATIENCE_MS 120000
#define PIECE_BYTES ((size_t)1 << 20)  /* what a reader takes at a time, unless a row is longer */
#define SMALL_BYTES ((size_t)64 << 10) /* parts below this go together, not between large ones */
#define MAX_PIECES 64                  /* of a batch */
#define N_BATCHES 256 /* written down ahead: allocating takes its time, and readers have work */
#define N_BUFFERS 5   /* some are being filled, some stand behind the one that is copied */
#define ALIGN 64

typedef struct { /* what becomes one stretch of a buffer */
    td_upload_part part;
    size_t at, n_bytes;
    int goes_on; /* the piece before it ends where this one begins, in the part's memory, too */
} piece;

/* What goes through one buffer: the engine thread writes it down and submits it, readers fill a
 * buffer with its pieces, and the one that is the last to be done has that copied. */
typedef struct {
    piece pieces[MAX_PIECES];
    uint32_t n_pieces;
    uint32_t n_given, n_filled; /* under the lock: pieces that readers took, and were done with */
    size_t used;
    int done; /* under the lock: its copies are enqueued, or it failed */
} batch;

enum { ABSENT, COMING, FREE, FILLING, COPYING };

/* Batch i goes through buffer i % N_BUFFERS. Readers share them, so that few suffice for long
 * copies, without gaps between them, of what still stands in the CPU's caches. */
typedef struct {
    unsigned char *memory; /* page-locked; by its first reader: it takes milliseconds */
    td_stream *stream;     /* of its copies, one reader at a time */
    td_event *copied;      /* recorded behind them */
    int state;             /* under the lock */
} buffer;

struct td_upload {
    td_device *device;
    td_stream *stream; /* the engine's: fills new memory with zeros */
    size_t buffer_bytes;
    int64_t patience_ms;
    float e4m3[256];
    batch *ring;         /* [N_BATCHES] */
    batch small;         /* what is to become a batch of small parts */
    int fresh;           /* memory was allocated: its zeros may be under way */
    const void **starts; /* [n_starts] of allocations */
    size_t n_starts;
    uint64_t submitted; /* written by the engine thread under the lock */
    uint64_t taken;     /* batches whose pieces are all given; under the lock */
    int stop;           /* under the lock */
    td_status st;       /* under the lock: of the piece that failed first */
    td_err err;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    buffer buffers[N_BUFFERS];
    pthread_t readers[MAX_THREADS];
    uint32_t n_readers;
};

/* ---- readers ---- */

/* Has a filled buffer copied, in one go what lies in one piece on the device, too: each copy costs
 * some microseconds; none may go over the end of an allocation. */
static td_status copy(const buffer *to, const batch *b, td_err *err)
{
    td_status st = TD_OK;
    for (uint32_t i = 0, next; i < b->n_pieces && st == TD_OK; i = next) {
        size_t n = b->pieces[i].n_bytes;
        for (next = i + 1; next < b->n_pieces && b->pieces[next].goes_on; next++)
            n += b->pieces[next].n_bytes;
        st = td_stream_write(to->stream, b->pieces[i].part.dst, to->memory + b->pieces[i].at, n);
    }
    if (st == TD_OK)
        st = td_event_record(to->copied, to->stream);
    return st == TD_OK ? TD_OK
                       : td_fail(err, st, "tensor %s: copying it to the device",
                                 b->pieces[0].part.m.w->name);
}

/* Under the lock. */
static void note(td_upload *u, td_status st, const td_err *err)
{
    if (st < 0 && u->st == TD_OK) {
        u->st = st;
        u->err = *err;
        pthread_cond_signal(&u->done); /* the engine need not wait for what hangs */
    }
}

/* A buffer gets its memory, or its copies are waited for; called under the lock, which is let go
 * meanwhile. Readers that wait for the same copies each do so themselves: nobody has to be woken
 * up. One that comes back late finds that the others went on. */
static void prepare(td_upload *u, buffer *to)
{
    const uint64_t batch_no = u->taken;
    const int make = to->state == ABSENT;
    void *memory = NULL;
    td_err err = {0};
    if (make)
        to->state = COMING;
    pthread_mutex_unlock(&u->lock);
    td_status st = make ? td_device_alloc_host(u->device, u->buffer_bytes, &memory, &err)
                        : td_event_wait(to->copied, to->stream, &err);
    pthread_mutex_lock(&u->lock);
    note(u, st, &err);
    if (make)
        to->memory = memory;
    if (make || (u->taken == batch_no && to->state == COPYING))
        to->state = FREE;
    if (make)
        pthread_cond_broadcast(&u->work);
}

/* One piece of a batch, and the copies when it was the last; called under the lock, which is let go
 * meanwhile. After an error, whoever's, nothing is read or copied any more. */
static void fill(td_upload *u, batch *b, buffer *to)
{
    const piece *p = &b->pieces[b->n_given++];
    td_status st = u->st;
    td_err err = {0};
    to->state = FILLING;
    u->taken += b->n_given == b->n_pieces;
    pthread_mutex_unlock(&u->lock);
    if (st == TD_OK)
        st = td_upload_fill(&p->part, u->e4m3, to->memory + p->at, &err);
    pthread_mutex_lock(&u->lock);
    note(u, st, &err);
    if (++b->n_filled < b->n_pieces)
        return;
    st = u->st;
    pthread_mutex_unlock(&u->lock);
    if (st == TD_OK)
        st = copy(to, b, &err);
    pthread_mutex_lock(&u->lock);
    note(u, st, &err);
    to->state = st == TD_OK ? COPYING : FREE;
    b->done = 1;
    pthread_cond_signal(&u->done);
    pthread_cond_broadcast(&u->work);
}

static void *read_pieces(void *arg)
{
    td_upload *u = arg;
    td_err err = {0};
    td_status st = td_device_bind(u->device, &err);
    pthread_mutex_lock(&u->lock);
    note(u, st, &err);
    while (!u->stop) {
        batch *b = &u->ring[u->taken % N_BATCHES];
        buffer *to = &u->buffers[u->taken % N_BUFFERS];
        if (u->taken == u->submitted)
            pthread_cond_wait(&u->work, &u->lock); /* until there is some, or stop */
        else if (b->n_given > 0 || to->state == FREE)
            fill(u, b, to);
        else if (to->state == ABSENT || to->state == COPYING)
            prepare(u, to);
        else
            pthread_cond_wait(&u->work, &u->lock); /* another reader is at it */
    }
    pthread_mutex_unlock(&u->lock);
    return NULL;
}

/* ---- the engine thread ---- */

/* Until the batch is done, or something failed. */
static td_status wait_for(td_upload *u, const batch *b, td_err *err)
{
    int64_t deadline = td_now_ns() + u->patience_ms * TD_NS_PER_MS;
    struct timespec at = {deadline / TD_NS_PER_S, deadline % TD_NS_PER_S};
    int late = 0;
    pthread_mutex_lock(&u->lock);
    while (!b->done && u->st == TD_OK && !late)
        late = pthread_cond_timedwait(&u->done, &u->lock, &at) != 0;
    td_status st = u->st;
    int done = b->done;
    pthread_mutex_unlock(&u->lock);
    if (st < 0)
        return td_fail(err, st, "%s", u->err.text);
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
    pthread_cond_broadcast(&u->work);
    pthread_mutex_unlock(&u->lock);
    batch *b = &u->ring[u->submitted % N_BATCHES];
    if (u->submitted >= N_BATCHES)
        st = wait_for(u, b, err);
    if (st == TD_OK) {
        b->done = 0;
        b->n_pieces = b->n_given = b->n_filled = 0;
        b->used = 0;
    }
    return st;
}

/* The small parts become a batch; the one that was being written down goes on behind it. */
static td_status submit_small(td_upload *u, td_err *err)
{
    batch *b = &u->ring[u->submitted % N_BATCHES];
    const batch rest = *b;
    *b = u->small;
    u->small = (batch){0};
    td_status st = submit(u, err);
    if (st == TD_OK)
        u->ring[u->submitted % N_BATCHES] = rest;
    return st;
}

/* Whether the part goes on where the batch's last piece ends on the device. */
static int continues(const batch *b, const td_upload_part *part)
{
    if (b->n_pieces == 0)
        return 0;
    const piece *last = &b->pieces[b->n_pieces - 1];
    return last->part.dst + last->n_bytes == part->dst && last->part.dtype == part->dtype;
}

/* Where in the buffer a piece of the part begins: behind the last one when it continues it. */
static size_t place(const batch *b, const td_upload_part *part)
{
    return continues(b, part) ? b->used : (b->used + ALIGN - 1) / ALIGN * ALIGN;
}

/* Whether one copy may serve the last piece and this one: they continue, in one allocation. */
static int goes_on(const td_upload *u, const batch *b, const td_upload_part *part)
{
    if (!continues(b, part))
        return 0;
    for (size_t i = u->n_starts; i > 0; i--)
        if (u->starts[i - 1] == part->dst)
            return 0;
    return 1;
}

/* The first n rows of what dst gets, of row_bytes each. */
static void append(const td_upload *u, batch *b, td_upload_part *rest, int32_t n, size_t row_bytes)
{
    piece *p = &b->pieces[b->n_pieces];
    p->at = place(b, rest);
    p->n_bytes = (size_t)n * row_bytes;
    p->part = *rest;
    p->goes_on = goes_on(u, b, rest);
    int32_t *lo = rest->turned ? &rest->cut.col_lo : &rest->cut.row_lo;
    int32_t *hi = rest->turned ? &p->part.cut.col_hi : &p->part.cut.row_hi;
    *lo += n;
    *hi = *lo;
    rest->dst += p->n_bytes;
    b->used = p->at + p->n_bytes;
    b->n_pieces++;
}

td_status td_upload_allocated(td_upload *u, const void *memory, td_err *err)
{
    if ((u->n_starts & (u->n_starts + 1)) == 0) { /* grow at 0, 1, 3, 7, .. */
        const void **more = realloc(u->starts, (u->n_starts * 2 + 1) * sizeof(*u->starts));
        if (more == NULL)
            return td_fail(err, TD_NOMEM, "weights: no memory");
        u->starts = more;
    }
    u->starts[u->n_starts++] = memory;
    u->fresh = 1;
    return TD_OK;
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
    size_t most = row_bytes < PIECE_BYTES ? PIECE_BYTES / row_bytes : 1;
    size_t n_rows = (size_t)(rest.turned ? c->col_hi - c->col_lo : c->row_hi - c->row_lo);
    const int small = n_rows * row_bytes < SMALL_BYTES && n_rows * row_bytes <= u->buffer_bytes;
    while (st == TD_OK && c->row_lo < c->row_hi && c->col_lo < c->col_hi) {
        batch *b = small ? &u->small : &u->ring[u->submitted % N_BATCHES];
        size_t at = place(b, &rest), room = at < u->buffer_bytes ? u->buffer_bytes - at : 0;
        size_t left = (size_t)(rest.turned ? c->col_hi - c->col_lo : c->row_hi - c->row_lo);
        size_t n = room / row_bytes < left ? room / row_bytes : left;
        if (n > 0 && b->n_pieces < MAX_PIECES)
            append(u, b, &rest, (int32_t)(n < most ? n : most), row_bytes);
        else
            st = small ? submit_small(u, err) : submit(u, err);
    }
    return st;
}

td_status td_upload_finish(td_upload *u, td_err *err)
{
    td_status st = u->small.n_pieces > 0 ? submit_small(u, err) : TD_OK;
    if (st == TD_OK && u->ring[u->submitted % N_BATCHES].n_pieces > 0)
        st = submit(u, err);
    uint64_t oldest = u->submitted >= N_BATCHES ? u->submitted - N_BATCHES + 1 : 0;
    for (uint64_t i = oldest; i < u->submitted && st == TD_OK; i++)
        st = wait_for(u, &u->ring[i % N_BATCHES], err);
    for (uint32_t i = 0; i < N_BUFFERS && st == TD_OK; i++) /* readers are idle */
        st = td_stream_sync(u->buffers[i].stream, err);
    return st;
}

/* Batches, and all that buffers have but their memory. */
static td_status alloc_all(td_upload *u, td_err *err)
{
    td_status st = TD_OK;
    u->ring = calloc(N_BATCHES, sizeof(*u->ring));
    if (u->ring == NULL)
        return td_fail(err, TD_NOMEM, "weights: no memory for what is to be read");
    for (uint32_t i = 0; i < N_BUFFERS && st == TD_OK; i++) {
        st = td_device_open_stream(u->device, &u->buffers[i].stream, err);
        if (st == TD_OK)
            st = td_event_create(u->device, &u->buffers[i].copied, err);
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
    const uint32_t n = o->n_threads < MAX_THREADS ? o->n_threads : MAX_THREADS;
    td_assert(n > 0);
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
    st = alloc_all(u, err);
    for (uint32_t i = 0; i < n && st == TD_OK; i++) {
        if (pthread_create(&u->readers[i], NULL, read_pieces, u) != 0)
            st = td_fail(err, TD_NOMEM, "weights: cannot start a reader");
        else
            u->n_readers++;
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
    for (uint32_t i = 0; i < u->n_readers; i++)
        pthread_join(u->readers[i], NULL);
    for (uint32_t i = 0; i < N_BUFFERS; i++) {
        buffer *b = &u->buffers[i];
        td_device_close_stream(b->stream); /* waits for copies that are under way */
        td_event_destroy(u->device, b->copied);
        td_device_free_host(u->device, b->memory);
    }
    free(u->starts);
    free(u->ring);
    pthread_cond_destroy(&u->work);
    pthread_cond_destroy(&u->done);
    pthread_mutex_destroy(&u->lock);
    free(u);
}
