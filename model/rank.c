#include "model/rank.h"

#include <stdlib.h>
#include <string.h>

td_kv_dtype td_rank_kv_dtype(td_rank_kv knob, int precise)
{
    switch (knob) {
    case TD_RANK_KV_FP8: return TD_KV_FP8;
    case TD_RANK_KV_BF16: return TD_KV_BF16;
    case TD_RANK_KV_F32: return TD_KV_F32;
    default: return precise ? TD_KV_F32 : TD_KV_FP8;
    }
}

static td_status open_slab(td_rank *rank, const td_rank_options *o, td_err *err)
{
    if (o->backend == TD_BACKEND_CPU)
        return td_kv_slab_init(&rank->slab, o->layout, o->n_pages, o->poison, err);
    if (o->poison)
        return td_fail(err, TD_UNSUPPORTED,
                       "debug-poison: backend cuda has its pages in GPU memory, where they are not "
                       "checked");
    td_status st =
        td_device_alloc(rank->device, td_kv_slab_bytes(o->layout, o->n_pages), &rank->kv, err);
    if (st != TD_OK)
        return err == NULL ? st : td_fail_prefix(err, "KV pool of %u pages", o->n_pages);
    return td_kv_slab_init_remote(&rank->slab, o->layout, o->n_pages, rank->kv, err);
}

static uint32_t gpu_of(const td_rank_options *o, uint32_t rank)
{
    return o->gpu + rank / (o->ranks_per_gpu > 0 ? o->ranks_per_gpu : 1);
}

td_status td_rank_open(td_rank *rank, const td_rank_options *o, td_err *err)
{
    td_weights_options weights = {.precise = o->precise,
                                  .moe = o->moe,
                                  .rank = (int32_t)o->rank,
                                  .n_ranks = (int32_t)o->n_ranks,
                                  .tensor = o->tensor,
                                  .load_threads = o->load_threads};
    td_backend_options backend = {o->backend, o->n_threads, o->spin_us, gpu_of(o, o->rank)};
    td_status st = td_backend_open(&backend, &rank->device, &rank->ops, err);
    if (st == TD_OK)
        st = td_weights_load(o->ckpt, o->config, &weights, rank->device, &rank->weights, err);
    if (st == TD_OK)
        st = open_slab(rank, o, err);
    if (st != TD_OK)
        td_rank_close(rank);
    return st;
}

void td_rank_close(td_rank *rank)
{
    td_kv_slab_fini(&rank->slab);
    if (rank->device != NULL)
        td_device_free(rank->device, rank->kv);
    td_weights_destroy(rank->weights);
    td_device_close(rank->device);
    memset(rank, 0, sizeof(*rank));
}

td_status td_rank_group(const td_rank_options *o, td_comm_form comm, int64_t deadline_ms,
                        td_comm_group **out, td_err *err)
{
    uint32_t *gpus = calloc(o->n_ranks, sizeof(*gpus));
    if (gpus == NULL)
        return td_fail(err, TD_NOMEM, "no memory for %u ranks", o->n_ranks);
    for (uint32_t r = 0; r < o->n_ranks; r++)
        gpus[r] = gpu_of(o, r);
    td_backend_comm_options options = {.kind = o->backend,
                                       .form = comm,
                                       .gpus = gpus,
                                       .n_ranks = o->n_ranks,
                                       .spin_us = o->spin_us,
                                       .deadline_ms = deadline_ms};
    td_status st = td_backend_comm(&options, out, err);
    free(gpus);
    return st;
}

td_status td_rank_open_page(td_rank *rank, uint32_t page, td_err *err)
{
    uint64_t stride = rank->slab.page_stride;
    td_status st = td_kv_slab_open(&rank->slab, page, err);
    if (st != TD_OK || !rank->slab.is_remote)
        return st;
    st = td_stream_fill(td_device_stream(rank->device), rank->slab.base + page * stride, 0, stride);
    return st == TD_OK ? st : td_fail(err, st, "zeroing page %u failed", page);
}

td_status td_rank_take_page(const td_rank *rank, const td_rank *from, uint32_t page)
{
    uint64_t stride = rank->slab.page_stride, at = page * stride;
    return td_stream_copy(td_device_stream(rank->device), rank->slab.base + at,
                          from->slab.base + at, stride);
}

td_status td_rank_page_crc(void *arg, td_stream *stream, const int32_t *pages, uint32_t n,
                           uint64_t offset, uint64_t n_bytes, uint32_t *crc)
{
    const td_rank *rank = arg;
    td_page_crc_args args = {.base = rank->slab.base,
                             .pages = pages,
                             .crc = crc,
                             .page_stride = rank->slab.page_stride,
                             .offset = offset,
                             .n_bytes = n_bytes,
                             .n = (int)n};
    return rank->ops->page_crc(&args, stream);
}

td_engine_config td_rank_engine(const td_rank *rank, const td_kv_layout *layout, td_comm *comm)
{
    return (td_engine_config){
        .weights = rank->weights,
        .ops = rank->ops,
        .device = rank->device,
        .comm = comm,
        .layout = layout,
        .kv_base = rank->slab.base,
        .n_pages = rank->slab.n_pages,
        .max_context = (uint32_t)rank->weights->config.max_positions,
        .graphs =
            td_device_records(rank->device) && (comm == NULL || td_comm_unrecordable(comm) == NULL),
    };
}

uint32_t td_rank_threads(uint32_t n_threads, uint32_t n_ranks)
{
    td_assert(n_ranks > 0);
    if (n_threads == 0)
        n_threads = td_device_cpus();
    return n_threads > n_ranks ? n_threads / n_ranks : 1;
}

void td_rank_set_threads(td_rank_options *o, uint32_t n_threads)
{
    o->n_threads = td_rank_threads(n_threads, o->n_ranks);
    o->load_threads = n_threads == 0 ? 0 : o->n_threads;
}
