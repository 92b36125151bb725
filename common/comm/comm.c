#include "common/comm/comm.h"

#include "common/comm/class.h"

static const td_comm_group_head *head_of(const td_comm_group *group)
{
    return (const td_comm_group_head *)(const void *)group;
}

static const td_comm_head *end_of(const td_comm *comm)
{
    return (const td_comm_head *)(const void *)comm;
}

static const td_comm_class *class_of(const td_comm *comm)
{
    return head_of(end_of(comm)->group)->class_;
}

void td_comm_group_destroy(td_comm_group *group)
{
    if (group != NULL)
        head_of(group)->class_->destroy(group);
}

void td_comm_group_abort(td_comm_group *group)
{
    head_of(group)->class_->abort(group);
}

const char *td_comm_group_form(const td_comm_group *group)
{
    return head_of(group)->class_->name;
}

td_comm *td_comm_group_rank(td_comm_group *group, uint32_t rank)
{
    td_assert(rank < head_of(group)->n_ranks);
    return head_of(group)->class_->rank(group, rank);
}

uint32_t td_comm_rank(const td_comm *comm)
{
    return end_of(comm)->rank;
}

uint32_t td_comm_n_ranks(const td_comm *comm)
{
    return head_of(end_of(comm)->group)->n_ranks;
}

void td_comm_abort(td_comm *comm)
{
    td_comm_group_abort(end_of(comm)->group);
}

td_status td_comm_all_gather(td_comm *comm, const void *send, size_t n_bytes, void *recv,
                             td_stream *stream)
{
    return class_of(comm)->all_gather(comm, send, n_bytes, recv, stream);
}

td_status td_comm_reduce_scatter_f32(td_comm *comm, const float *send, size_t n, float *recv,
                                     td_stream *stream)
{
    return class_of(comm)->reduce_scatter_f32(comm, send, n, recv, stream);
}

td_status td_comm_all_to_all_rows(td_comm *comm, const void *send, const int32_t *send_counts,
                                  uint32_t cap_rows, size_t row_bytes, void *recv,
                                  int32_t *recv_counts, td_stream *stream)
{
    return class_of(comm)->all_to_all_rows(comm, send, send_counts, cap_rows, row_bytes, recv,
                                           recv_counts, stream);
}

td_status td_comm_barrier(td_comm *comm)
{
    return class_of(comm)->barrier(comm);
}

const char *td_comm_unrecordable(const td_comm *comm)
{
    return class_of(comm)->unrecordable(end_of(comm)->group);
}
