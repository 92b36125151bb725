/* ranks.h - private: the threads of a run's ranks. */
#ifndef TD_TOOLS_LOGITS_RANKS_H
#define TD_TOOLS_LOGITS_RANKS_H
#include "common/comm/comm.h"

#include <pthread.h>

typedef struct { /* the head of what a rank's thread works with */
    pthread_t thread;
    int started;
    td_status st; /* what work() ended with; err says why when it is negative */
    td_err err;
} td_rank_thread;

/* Runs work(worker) for n workers of size bytes, each with a td_rank_thread first: rank 0 on this
 * thread, the others on theirs; returns when all have ended. The first rank that failed by itself
 * is blamed. group: what ends the others' waits when not all can be started; NULL for one. */
td_status td_logits_run_ranks(void *workers, size_t size, uint32_t n, void *(*work)(void *),
                              td_comm_group *group, td_err *err);
#endif
