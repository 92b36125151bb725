/* rank_team.h - several ranks of this process, each on a thread of its own, for benchmarks. */
#ifndef TD_TESTS_BENCH_RANK_TEAM_H
#define TD_TESTS_BENCH_RANK_TEAM_H
#include "model/rank.h"

typedef struct {
    td_rank rank;
    td_comm *comm; /* NULL: it is alone */
    uint32_t index;
    td_err err; /* what work() says when it fails */
} td_team_member;

typedef td_status (*td_team_work)(td_team_member *member, void *arg);

/* Opens options->n_ranks ranks (options->rank apart) and calls work() for each, on its thread, when
 * all of them are open; n_threads are shared out. Returns when all have ended: with what the rank
 * that failed by itself said, rather than one that was told. */
td_status td_team_run(const td_rank_options *options, td_comm_form comm, td_team_work work,
                      void *arg, td_err *err);
#endif
