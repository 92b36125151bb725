/* class.h - what each form of the collectives implements; for the forms alone (comm.c dispatches,
 * threads.c is the CPU's form, the CUDA plug-in brings others). A form's td_comm_group and td_comm
 * start with these heads. */
#ifndef TD_COMM_CLASS_H
#define TD_COMM_CLASS_H
#include "common/comm/comm.h"

typedef struct { /* contracts: comm.h */
    const char *name;
    void (*destroy)(td_comm_group *group);
    void (*abort)(td_comm_group *group);
    td_comm *(*rank)(td_comm_group *group, uint32_t rank); /* rank < n_ranks */
    td_status (*all_gather)(td_comm *comm, const void *send, size_t n_bytes, void *recv,
                            td_stream *stream);
    td_status (*reduce_scatter_f32)(td_comm *comm, const float *send, size_t n, float *recv,
                                    td_stream *stream);
    td_status (*all_to_all_rows)(td_comm *comm, const void *send, const int32_t *send_counts,
                                 uint32_t cap_rows, size_t row_bytes, void *recv,
                                 int32_t *recv_counts, td_stream *stream);
    td_status (*barrier)(td_comm *comm);
    const char *(*unrecordable)(const td_comm_group *group);
} td_comm_class;

typedef struct {
    const td_comm_class *class_;
    uint32_t n_ranks;
} td_comm_group_head;

typedef struct {
    td_comm_group *group;
    uint32_t rank;
} td_comm_head;
#endif
