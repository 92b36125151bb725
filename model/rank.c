#include "model/rank.h"

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

td_status td_rank_open(td_rank *rank, const td_rank_options *o, td_err *err)
{
    td_weights_options weights = {.precise = o->precise,
                                  .moe = o->moe,
                                  .rank = (int32_t)o->rank,
                                  .n_ranks = (int32_t)o->n_ranks};
    rank->ops = td_ops_cpu();
    td_status st = td_device_open_cpu(o->n_threads, o->spin_us, &rank->device, err);
    if (st == TD_OK)
        st = td_weights_load(o->ckpt, o->config, &weights, rank->device, &rank->weights, err);
    if (st == TD_OK)
        st = td_kv_slab_init(&rank->slab, o->layout, o->n_pages, o->poison, err);
    if (st != TD_OK)
        td_rank_close(rank);
    return st;
}

void td_rank_close(td_rank *rank)
{
    td_kv_slab_fini(&rank->slab);
    td_weights_destroy(rank->weights);
    td_device_close(rank->device);
    memset(rank, 0, sizeof(*rank));
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
    };
}

uint32_t td_rank_threads(uint32_t n_threads, uint32_t n_ranks)
{
    td_assert(n_ranks > 0);
    if (n_threads == 0)
        n_threads = td_device_cpus();
    return n_threads > n_ranks ? n_threads / n_ranks : 1;
}
