/* index_key_write_cpu.c - a key per piece of work; rows of one call stand in different slots. */
#include "kernels/index_key_write/index_key_write.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/index_key_write/index_key_write_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_index_key_write_args *a;
    void (*fp8)(unsigned char *page, int page_rows, int row, const td_bf16 *k);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_index_key_write_args *a = j->a;
    const size_t f32_bytes = (size_t)a->dim * sizeof(float);
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        if (a->slots[t] < 0)
            continue;
        unsigned char *page =
            a->kv.plane + (uint64_t)(a->slots[t] / a->kv.page_rows) * a->kv.page_stride;
        int row = a->slots[t] % a->kv.page_rows;
        if (a->kv.dtype == 2)
            memcpy(page + (size_t)row * f32_bytes, (const float *)a->k + t * a->dim, f32_bytes);
        else
            j->fp8(page, a->kv.page_rows, row, (const td_bf16 *)a->k + t * a->dim);
    }
}

td_status td_index_key_write_cpu(const td_index_key_write_args *a, td_stream *stream)
{
    if (!td_index_key_write_valid(a))
        return TD_BAD_SHAPE;
    job j = {a, LANES_PICK(td_cpu_isa(stream), index_key_write_fp8)};
    td_cpu_for(stream, a->T, 128, do_rows, &j);
    return TD_OK;
}
