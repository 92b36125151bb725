#include "tests/bench/cuda/rank_team.h"

#include <pthread.h>
#include <stdlib.h>

#define DEADLINE_MS 60000

typedef struct {
    td_team_member m;
    const td_rank_options *options;
    td_comm_group *group; /* NULL: one rank */
    td_team_work work;
    void *arg;
    td_status st;
    pthread_t thread;
} worker;

static void *run(void *arg)
{
    worker *w = arg;
    td_rank_options o = *w->options;
    o.rank = w->m.index;
    o.n_threads = td_rank_threads(o.n_threads, o.n_ranks);
    w->st = td_rank_open(&w->m.rank, &o, &w->m.err);
    if (w->st == TD_OK && w->m.comm != NULL && (w->st = td_comm_barrier(w->m.comm)) < 0)
        td_fail(&w->m.err, w->st, "another rank failed");
    if (w->st == TD_OK)
        w->st = w->work(&w->m, w->arg);
    if (w->st < 0 && w->group != NULL)
        td_comm_group_abort(w->group);
    return NULL;
}

static td_status verdict(const worker *workers, uint32_t n, td_err *err)
{
    for (int told = 0; told < 2; told++)
        for (uint32_t i = 0; i < n; i++)
            if (workers[i].st < 0 && (told || workers[i].st != TD_CANCELLED))
                return td_fail(err, workers[i].st, "rank %u: %s", i, workers[i].m.err.text);
    return TD_OK;
}

td_status td_team_run(const td_rank_options *options, td_comm_form comm, td_team_work work,
                      void *arg, td_err *err)
{
    const uint32_t n = options->n_ranks;
    td_comm_group *group = NULL;
    uint32_t n_started = 0;
    worker *workers = calloc(n, sizeof(*workers));
    td_status st = workers == NULL ? td_fail(err, TD_NOMEM, "no memory for %u ranks", n)
                   : n > 1         ? td_rank_group(options, comm, DEADLINE_MS, &group, err)
                                   : TD_OK;
    for (; n_started < n && st == TD_OK; n_started += st == TD_OK) {
        worker *w = &workers[n_started];
        *w = (worker){.m.index = n_started,
                      .m.comm = n > 1 ? td_comm_group_rank(group, n_started) : NULL,
                      .options = options,
                      .group = group,
                      .work = work,
                      .arg = arg};
        if (pthread_create(&w->thread, NULL, run, w) != 0)
            st = td_fail(err, TD_NOMEM, "cannot start a thread for rank %u", n_started);
    }
    if (st < 0 && group != NULL)
        td_comm_group_abort(group);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(workers[i].thread, NULL);
    if (st == TD_OK)
        st = verdict(workers, n, err);
    for (uint32_t i = 0; i < n_started; i++)
        td_rank_close(&workers[i].m.rank);
    td_comm_group_destroy(group);
    free(workers);
    return st;
}
