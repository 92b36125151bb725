/* kv_write_cpu.c - a row per piece of work; rows of one call stand in different slots. */
#include "kernels/kv_write/kv_write.h"

#include "common/device/cpu.h"

#define LANES_BODY "kernels/kv_write/kv_write_lanes.h"
#include "kernels/cpu/each_isa.h"

typedef struct {
    const td_kv_write_args *a;
    size_t row_bytes;
    void (*fp8)(unsigned char *row, const td_bf16 *c, int C, int R);
} job;

static void do_rows(void *arg, int64_t begin, int64_t end, uint32_t thread)
{
    const job *j = arg;
    const td_kv_write_args *a = j->a;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        if (a->slots[t] < 0)
            continue;
        unsigned char *row = a->kv.plane +
                             (uint64_t)(a->slots[t] / a->kv.page_rows) * a->kv.page_stride +
                             (size_t)(a->slots[t] % a->kv.page_rows) * j->row_bytes;
        if (a->kv.dtype == 0)
            j->fp8(row, (const td_bf16 *)a->c + t * a->c_stride, a->C, a->R);
        else if (a->kv.dtype == 1)
            memcpy(row, (const td_bf16 *)a->c + t * a->c_stride, j->row_bytes);
        else
            memcpy(row, (const float *)a->c + t * a->c_stride, j->row_bytes);
    }
}

td_status td_kv_write_cpu(const td_kv_write_args *a, td_stream *stream)
{
    if (!td_kv_write_valid(a))
        return TD_BAD_SHAPE;
    const size_t dims = (size_t)a->C + (size_t)a->R;
    job j = {a, 0, LANES_PICK(td_cpu_isa(stream), kv_write_fp8)};
    j.row_bytes = a->kv.dtype == 0   ? (size_t)(a->C + a->C / TD_QUANT_GROUP * 4 + 2 * a->R)
                  : a->kv.dtype == 1 ? 2 * dims
                                     : 4 * dims;
    td_cpu_for(stream, a->T, 32, do_rows, &j);
    return TD_OK;
}
