#include "common/device/team.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/base/clock.h"

#define LINE 64 /* bytes; keeps words that different threads write apart */
#define SCRATCH_STEP 4096U

typedef struct {
    void *ptr;
    size_t n_bytes;
} scratch;

typedef struct {
    td_stream *stream;
    pthread_t thread;
    uint32_t index; /* 1..n_threads-1; the caller is 0 */
} helper;

/* A job is open while its caller works on it. A helper that wants to join first counts itself in
 * (`inside`), then looks whether the job is open; the caller first closes, then waits until nobody
 * is inside. Both orders are sequentially consistent, so no helper touches a job that has been
 * given up, and a helper that sleeps or comes late is never waited for. */
struct td_stream {
    td_stream_head head;
    uint32_t n_threads, n_helpers; /* n_helpers: those that were started */
    int64_t spin_ns;
    td_isa isa, best_isa;
    int busy;         /* the caller is inside of td_cpu_for */
    scratch *scratch; /* [n_threads + 1]; the last is the operation's */
    helper *helpers;  /* [n_threads - 1] */
    /* The job: written by the caller while it is closed and nobody is inside. */
    td_cpu_part part;
    void *arg;
    int64_t n, grain, n_pieces;
    _Alignas(LINE) _Atomic int64_t next; /* piece to hand out */
    _Alignas(LINE) _Atomic uint32_t open;
    _Alignas(LINE) _Atomic uint32_t inside; /* futex: the caller may sleep on it */
    _Atomic uint32_t caller_asleep;
    _Alignas(LINE) _Atomic uint32_t bell; /* futex: rung for each job and at the end */
    _Atomic uint32_t n_asleep;
    _Atomic uint32_t quit;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Spins until *word differs from (want_equal 0) or equals (1) value; 0: time is up. */
static int spin(td_stream *s, _Atomic uint32_t *word, uint32_t value, int want_equal)
{
    int64_t end_ns = 0;
    for (uint32_t i = 0;; i++) {
        if ((atomic_load(word) == value) == want_equal)
            return 1;
        relax();
        if (i % 64 != 0)
            continue;
        int64_t now_ns = td_now_ns();
        if (end_ns == 0)
            end_ns = now_ns + s->spin_ns;
        if (now_ns >= end_ns)
            return 0;
    }
}

static void do_pieces(td_stream *s, uint32_t thread)
{
    for (;;) {
        int64_t piece = atomic_fetch_add(&s->next, 1);
        if (piece >= s->n_pieces)
            return;
        int64_t begin = piece * s->grain;
        int64_t end = s->n - begin < s->grain ? s->n : begin + s->grain;
        s->part(s->arg, begin, end, thread);
    }
}

static void *helper_main(void *arg)
{
    helper *me = arg;
    td_stream *s = me->stream;
    uint32_t seen = 0; /* the bell as it was before the first job */
    for (;;) {
        if (!spin(s, &s->bell, seen, 0)) {
            atomic_fetch_add(&s->n_asleep, 1);
            futex_wait(&s->bell, seen);
            atomic_fetch_sub(&s->n_asleep, 1);
            continue;
        }
        seen = atomic_load(&s->bell);
        if (atomic_load(&s->quit))
            return NULL;
        atomic_fetch_add(&s->inside, 1);
        if (atomic_load(&s->open))
            do_pieces(s, me->index);
        if (atomic_fetch_sub(&s->inside, 1) == 1 && atomic_load(&s->caller_asleep))
            futex_wake(&s->inside, 1);
    }
}

static void ring(td_stream *s, int64_t n_wanted)
{
    atomic_fetch_add(&s->bell, 1);
    if (atomic_load(&s->n_asleep) > 0)
        futex_wake(&s->bell, n_wanted < INT_MAX ? (int)n_wanted : INT_MAX);
}

static void wait_empty(td_stream *s)
{
    if (spin(s, &s->inside, 0, 1))
        return;
    atomic_store(&s->caller_asleep, 1);
    for (uint32_t n; (n = atomic_load(&s->inside)) != 0;)
        futex_wait(&s->inside, n);
    atomic_store(&s->caller_asleep, 0);
}

static td_isa find_isa(void)
{
#if defined(__x86_64__)
    unsigned a, b, c = 0, d; /* clang 16's __builtin_cpu_supports() does not know "f16c" */
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__get_cpuid(1, &a, &b, &c, &d) || (c & bit_F16C) == 0)
        return TD_ISA_PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return TD_ISA_AVX512;
    return TD_ISA_AVX2;
#else
    return TD_ISA_PORTABLE;
#endif
}

/* Signals belong to the process's main thread. */
static int start_helper(helper *h)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&h->thread, NULL, helper_main, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0) {
        char name[16];
        snprintf(name, sizeof(name), "td-cpu-%u", h->index);
        pthread_setname_np(h->thread, name);
    }
    return error;
}

td_status td_team_create(uint32_t n_threads, uint32_t spin_us, td_stream **out, td_err *err)
{
    td_assert(n_threads > 0);
    td_stream *s = aligned_alloc(LINE, (sizeof(*s) + LINE - 1) / LINE * LINE);
    if (s == NULL)
        return td_fail(err, TD_NOMEM, "device: no memory for a stream");
    memset(s, 0, sizeof(*s));
    s->head.class_ = &td_cpu_class;
    s->n_threads = n_threads;
    s->spin_ns = (int64_t)spin_us * 1000;
    s->isa = s->best_isa = find_isa();
    s->scratch = calloc((size_t)n_threads + 1, sizeof(*s->scratch));
    s->helpers = calloc(n_threads, sizeof(*s->helpers));
    if (s->scratch == NULL || s->helpers == NULL) {
        td_team_destroy(s);
        return td_fail(err, TD_NOMEM, "device: no memory for %u threads", n_threads);
    }
    for (uint32_t i = 1; i < n_threads; i++) {
        helper *h = &s->helpers[i - 1];
        h->stream = s;
        h->index = i;
        int error = start_helper(h);
        if (error != 0) {
            td_team_destroy(s);
            return td_fail(err, TD_NOMEM, "device: cannot start thread %u of %u: %s", i, n_threads,
                           strerror(error));
        }
        s->n_helpers++;
    }
    *out = s;
    return TD_OK;
}

void td_team_destroy(td_stream *s)
{
    if (s == NULL)
        return;
    atomic_store(&s->quit, 1);
    ring(s, INT_MAX);
    for (uint32_t i = 0; i < s->n_helpers; i++)
        pthread_join(s->helpers[i].thread, NULL);
    for (uint32_t i = 0; s->scratch != NULL && i <= s->n_threads; i++)
        free(s->scratch[i].ptr);
    free(s->scratch);
    free(s->helpers);
    free(s);
}

void td_cpu_for(td_stream *s, int64_t n, int64_t grain, td_cpu_part part, void *arg)
{
    if (n <= 0)
        return;
    if (grain <= 0)
        grain = 1;
    td_assert(!s->busy);
    s->busy = 1;
    s->part = part;
    s->arg = arg;
    s->n = n;
    s->grain = grain;
    s->n_pieces = (n - 1) / grain + 1;
    atomic_store(&s->next, 0);
    if (s->n_helpers == 0 || s->n_pieces == 1) {
        do_pieces(s, 0);
    } else {
        atomic_store(&s->open, 1);
        ring(s, s->n_pieces - 1);
        do_pieces(s, 0);
        atomic_store(&s->open, 0);
        wait_empty(s);
    }
    s->busy = 0;
}

uint32_t td_cpu_threads(const td_stream *s)
{
    return s->n_threads;
}

static void *grow(scratch *sc, size_t n_bytes)
{
    if (n_bytes <= sc->n_bytes && sc->ptr != NULL)
        return sc->ptr;
    if (n_bytes > SIZE_MAX - SCRATCH_STEP)
        return NULL;
    size_t room = (n_bytes / SCRATCH_STEP + 1) * SCRATCH_STEP;
    void *ptr = aligned_alloc(LINE, room);
    if (ptr == NULL)
        return NULL;
    free(sc->ptr);
    sc->ptr = ptr;
    sc->n_bytes = room;
    return ptr;
}

void *td_cpu_scratch(td_stream *s, uint32_t thread, size_t n_bytes)
{
    td_assert(thread < s->n_threads);
    return grow(&s->scratch[thread], n_bytes);
}

void *td_cpu_shared_scratch(td_stream *s, size_t n_bytes)
{
    return grow(&s->scratch[s->n_threads], n_bytes);
}

td_status td_cpu_reserve(td_stream *s, size_t n_bytes)
{
    for (uint32_t i = 0; i < s->n_threads; i++)
        if (grow(&s->scratch[i], n_bytes) == NULL)
            return TD_NOMEM;
    return TD_OK;
}

td_isa td_cpu_isa(const td_stream *s)
{
    return s->isa;
}

void td_cpu_set_isa(td_stream *s, td_isa isa)
{
    s->isa = isa < s->best_isa ? isa : s->best_isa;
}
