/* rank_threads.h - what the tests of collectives share: ranks that are threads, each with a device
 * of its own, on one GPU or on several. */
#ifndef TD_TESTS_CUDA_RANK_THREADS_H
#define TD_TESTS_CUDA_RANK_THREADS_H
#include "tests/cuda/cuda_test.h"

#include <pthread.h>

#define CT_MAX_RANKS 4
/* Filled before a rank's bytes are there: peers must wait. */
#define CT_SLOW_BYTES ((size_t)256 << 20)

typedef struct ct_rank ct_rank;
typedef void (*ct_rank_main)(ct_rank *a);

struct ct_rank {
    td_comm *comm;
    uint32_t rank, n, index; /* index: of its GPU */
    ct_rank_main fn;
    ct_gpu gpu;
    td_status st;
    pthread_t thread;
};

/* Skips the test where there are fewer. */
static inline void ct_need_gpus(uint32_t n)
{
    ct_gpu g = ct_open_on(n - 1);
    ct_close(&g);
}

/* Rank r is on GPU first_gpu + r * step. */
static inline td_status ct_make_group(uint32_t n, td_comm_form form, uint32_t first_gpu,
                                      uint32_t step, int64_t deadline_ms, td_comm_group **out,
                                      td_err *err)
{
    uint32_t gpus[CT_MAX_RANKS];
    for (uint32_t r = 0; r < n; r++)
        gpus[r] = first_gpu + r * step;
    td_backend_comm_options o = {.kind = TD_BACKEND_CUDA,
                                 .form = form,
                                 .gpus = gpus,
                                 .n_ranks = n,
                                 .spin_us = 20,
                                 .deadline_ms = deadline_ms};
    return td_backend_comm(&o, out, err);
}

static inline void *ct_thread_main(void *arg)
{
    ct_rank *a = arg;
    a->gpu = ct_open_on(a->index); /* its thread's own */
    a->fn(a);
    return NULL;
}

/* Every rank on a thread; buffers go when all ranks' streams have passed them. */
static inline void ct_run_in(td_comm_group *group, uint32_t n, uint32_t step, ct_rank_main fn,
                             ct_rank *args)
{
    for (uint32_t r = 0; r < n; r++) {
        args[r] = (ct_rank){
            .comm = td_comm_group_rank(group, r), .rank = r, .n = n, .index = r * step, .fn = fn};
        TD_EQ(0, pthread_create(&args[r].thread, NULL, ct_thread_main, &args[r]));
    }
    for (uint32_t r = 0; r < n; r++)
        pthread_join(args[r].thread, NULL);
    for (uint32_t r = 0; r < n; r++)
        td_stream_sync(args[r].gpu.stream, NULL);
    for (uint32_t r = 0; r < n; r++)
        ct_close(&args[r].gpu);
}

/* The rank that is late differs from round to round. */
static inline void ct_be_late(ct_rank *a, void *slow, int round)
{
    if ((uint32_t)round % a->n == a->rank)
        for (int i = 0; i < 4; i++)
            TD_EQ(TD_OK, td_stream_fill(a->gpu.stream, slow, i, CT_SLOW_BYTES));
}

static inline unsigned char ct_byte(uint32_t rank, size_t i, int round)
{
    return (unsigned char)(rank * 31 + i * 7 + (size_t)round * 3 + i / 251);
}
#endif
