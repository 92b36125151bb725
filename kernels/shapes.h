/* shapes.h - the letters and types that every operation's contract uses. Row-major; strides in
 * elements unless a name says bytes; int counts fit 31 bits.
 *
 *   T rows (tokens) of a step    D hidden size        H attention heads      V vocabulary
 *   C kv_lora_rank (512)         R rope dims (64)     Hi indexer heads       I intermediate width
 * (of this rank) E experts                    K experts per token, or the inner width of a product
 * P ranks   B requests
 *
 * act: the activations' type, bf16 (quantised mode) or f32 (precise mode). */
#ifndef TD_KERNELS_SHAPES_H
#define TD_KERNELS_SHAPES_H
#include "common/base/status.h"
#include "common/device/device.h"
#include "kernels/fn.h"

#include <stddef.h>
#include <stdint.h>

typedef enum { TD_F32, TD_BF16, TD_E4M3 } td_dtype;

#define TD_QUANT_GROUP 128 /* AQ_128; weight blocks are 128x128 */

TD_FN size_t td_dtype_bytes(td_dtype dtype)
{
    return dtype == TD_F32 ? 4 : dtype == TD_BF16 ? 2 : 1;
}

TD_FN int td_ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

typedef uint16_t td_bf16; /* upper half of an f32; round to nearest even */

/* One plane of the paged KV cache as a kernel sees it: row `slot` = page * page_rows + row stands
 * at plane + page * page_stride + (the plane's row layout). */
typedef struct {
    unsigned char *plane; /* slab base + the plane's offset */
    uint64_t page_stride; /* bytes */
    int page_rows;        /* 64 */
    int dtype;            /* td_kv_dtype: 0 fp8, 1 bf16, 2 f32 (common/kv/layout.h) */
} td_kv_view;

/* Which request a row belongs to and what it sees. All in device memory. A padding row has seq -1
 * and len 0. */
typedef struct {
    const int32_t *row_seq; /* [T] index of the row's request, -1: padding */
    const int32_t
        *row_len; /* [T] how many positions the row sees: its own position + 1; 0: padding */
    const int32_t *block_table; /* [B, max_pages] page ids */
    int max_pages;
} td_rows_view;
#endif
