#include "tools/tandem-logits/ranks.h"

static td_rank_thread *head(void *workers, size_t size, uint32_t i)
{
    return (td_rank_thread *)(void *)((char *)workers + i * size);
}

static td_status verdict(void *workers, size_t size, uint32_t n, td_err *err)
{
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < n; i++) {
            const td_rank_thread *t = head(workers, size, i);
            int own = t->st != TD_CANCELLED && t->st != TD_DEADLINE;
            if (t->st < 0 && (own || pass == 1))
                return td_fail(err, t->st, "%s", t->err.text);
        }
    return TD_OK;
}

td_status td_logits_run_ranks(void *workers, size_t size, uint32_t n, void *(*work)(void *),
                              td_comm_group *group, td_err *err)
{
    td_status st = TD_OK;
    for (uint32_t i = 1; i < n && st == TD_OK; i++) {
        td_rank_thread *t = head(workers, size, i);
        if (pthread_create(&t->thread, NULL, work, t) != 0)
            st = td_fail(err, TD_NOMEM, "cannot start a thread for rank %u", i);
        else
            t->started = 1;
    }
    if (st == TD_OK)
        work(workers);
    else
        td_comm_group_abort(group);
    for (uint32_t i = 1; i < n; i++)
        if (head(workers, size, i)->started)
            pthread_join(head(workers, size, i)->thread, NULL);
    return st == TD_OK ? verdict(workers, size, n, err) : st;
}
