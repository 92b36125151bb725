/* The CUDA forms of what touches the paged cache, byte by byte as the judges', the bytes that must
 * stay untouched included. */
#include "kernels/hadamard_quant/hadamard_quant.h"
#include "kernels/index_key_write/index_key_write.h"
#include "kernels/kv_write/kv_write.h"
#include "kernels/page_crc/page_crc.h"
#include "tests/cuda/cuda_test.h"

TD_TEST_MAIN

/* Slots of T positions of one request, one in five skipped. */
static int32_t *make_slots(kt_rng *rng, const kt_cache *cache, int T)
{
    int32_t *slots = kt_alloc((size_t)T * 4);
    const int request = kt_int(rng, 0, cache->B - 1);
    const int first = kt_int(rng, 0, cache->kv.page_rows * cache->max_pages - T);
    for (int t = 0; t < T; t++)
        slots[t] = kt_int(rng, 0, 4) == 0 ? -1 : kt_cache_slot(cache, request, first + t);
    return slots;
}

static void *make_rows(kt_rng *rng, int T, size_t n, td_dtype act)
{
    void *x = kt_alloc(n * td_dtype_bytes(act));
    kt_fill_act(rng, x, n, ldexpf(1.0f, kt_int(rng, -20, 20)), act);
    for (int t = 0; t < T && act == TD_BF16 && kt_int(rng, 0, 2) == 0; t++)
        ((td_bf16 *)x)[kt_int(rng, 0, (int)n - 1)] = td_f32_to_bf16(kt_odd(rng));
    return x;
}

static size_t latent_bytes(int dtype, int C, int R)
{
    return (size_t)(dtype == 0 ? C + C / 128 * 4 + 2 * R : (dtype == 1 ? 2 : 4) * (C + R));
}

static void check_kv_write(kt_rng *rng, ct_gpu *g, int dtype, int C, int R, int T)
{
    const int page_rows = KT_PICK(rng, 16, 64);
    kt_cache cache =
        kt_cache_new(rng, dtype, page_rows, (size_t)page_rows * latent_bytes(dtype, C, R), 3, 5);
    td_kv_write_args a = {
        .kv = cache.kv, .T = T, .C = C, .R = R, .act = dtype == 2 ? TD_F32 : TD_BF16};
    a.c_stride = C + R + KT_PICK(rng, 0, 0, kt_int(rng, 1, 40));
    const size_t n = (size_t)(T * a.c_stride);
    void *c = make_rows(rng, T, n, a.act);
    int32_t *slots = make_slots(rng, &cache, T);
    ct_result plane = ct_result_new(1, cache.n_bytes, cache.n_bytes);
    ct_result_fill(&plane, cache.kv.plane);
    td_kv_write_args d = a;
    a.c = c;
    a.slots = slots;
    a.kv.plane = plane.want.p;
    TD_EQ(TD_OK, td_kv_write_ref(&a, NULL));
    d.c = ct_up(g, c, n * td_dtype_bytes(a.act));
    d.slots = ct_up(g, slots, (size_t)T * 4);
    ct_result_up(g, &plane);
    for (int k = 0; k < 2; k++) {
        d.kv.plane = plane.device[k];
        TD_EQ(TD_OK, g->ops->kv_write(&d, g->stream));
    }
    ct_result_bits(g, &plane);
    ct_clear(g);
    ct_result_free(&plane);
    kt_cache_free(&cache);
    free(c);
    free(slots);
}

TEST(kv_write_leaves_the_judges_cache)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 45; i++) {
        const int dtype = i % 3;
        const int C = dtype == 0 ? KT_PICK(&rng, 128, 256, 512, 640) : kt_int(&rng, 1, 520);
        check_kv_write(&rng, &g, dtype, C, KT_PICK(&rng, 0, 1, 2, 6, 64),
                       KT_PICK(&rng, 0, 1, 2, 5, 40));
    }
    for (int dtype = 0; dtype < 3; dtype++)
        check_kv_write(&rng, &g, dtype, 512, 64, 70);
    ct_close(&g);
}

static void check_key_write(kt_rng *rng, ct_gpu *g, int dtype, int dim, int T)
{
    const int page_rows = KT_PICK(rng, 4, 16, 64);
    const size_t row_bytes = dtype == 2 ? 4 * (size_t)dim : 132;
    kt_cache cache = kt_cache_new(rng, dtype, page_rows, (size_t)page_rows * row_bytes, 2, 6);
    td_index_key_write_args a = {
        .kv = cache.kv, .T = T, .dim = dim, .act = dtype == 2 ? TD_F32 : TD_BF16};
    const size_t n = (size_t)T * (size_t)dim;
    void *k = make_rows(rng, T, n, a.act);
    int32_t *slots = make_slots(rng, &cache, T);
    ct_result plane = ct_result_new(1, cache.n_bytes, cache.n_bytes);
    ct_result_fill(&plane, cache.kv.plane);
    td_index_key_write_args d = a;
    a.k = k;
    a.slots = slots;
    a.kv.plane = plane.want.p;
    TD_EQ(TD_OK, td_index_key_write_ref(&a, NULL));
    d.k = ct_up(g, k, n * td_dtype_bytes(a.act));
    d.slots = ct_up(g, slots, (size_t)T * 4);
    ct_result_up(g, &plane);
    for (int i = 0; i < 2; i++) {
        d.kv.plane = plane.device[i];
        TD_EQ(TD_OK, g->ops->index_key_write(&d, g->stream));
    }
    ct_result_bits(g, &plane);
    ct_clear(g);
    ct_result_free(&plane);
    kt_cache_free(&cache);
    free(k);
    free(slots);
}

TEST(index_key_write_leaves_the_judges_cache)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 45; i++)
        check_key_write(&rng, &g, i % 3, i % 3 == 2 ? KT_PICK(&rng, 1, 7, 32, 128, 200) : 128,
                        KT_PICK(&rng, 0, 1, 2, 20));
    ct_close(&g);
}

/* The same codes and scales as hadamard_quant of the query side; scales behind all codes (B.3). */
TEST(keys_and_queries_are_quantised_alike)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    td_bf16 k[3 * 128];
    uint8_t q[3 * 128];
    float qs[3];
    static unsigned char page[64 * 132];
    const int32_t slots[3] = {5, 63, 0};
    kt_fill_bf16(&rng, k, 3 * 128, 2.0f);
    const td_bf16 *dk = ct_up(&g, k, sizeof(k));
    unsigned char *plane = ct_alloc(&g, sizeof(page));
    td_hadamard_quant_args h = {dk, ct_alloc(&g, sizeof(q)), ct_alloc(&g, sizeof(qs)), 3, 1};
    td_index_key_write_args a = {
        dk, ct_up(&g, slots, sizeof(slots)), {plane, sizeof(page), 64, 1}, 3, 128, TD_BF16};
    TD_EQ(TD_OK, g.ops->hadamard_quant(&h, g.stream));
    TD_EQ(TD_OK, g.ops->index_key_write(&a, g.stream));
    ct_down(&g, q, h.q, sizeof(q));
    ct_down(&g, qs, h.qs, sizeof(qs));
    ct_down(&g, page, plane, sizeof(page));
    for (int t = 0; t < 3; t++) {
        TD_MEM(q + t * 128, page + slots[t] * 128, 128);
        TD_MEM(&qs[t], page + 64 * 128 + slots[t] * 4, 4);
    }
    ct_close(&g);
}

/* ---- page_crc: a checksum, bits ---- */

/* shift: of the slab against the device's alignment. */
static void check_crc(kt_rng *rng, ct_gpu *g, td_page_crc_args a, int n_pages, size_t shift)
{
    const size_t n = (size_t)a.n, n_bytes = (size_t)n_pages * a.page_stride;
    unsigned char *slab = kt_alloc(shift + n_bytes);
    int32_t *pages = kt_alloc(n * 4);
    for (size_t b = 0; b < shift + n_bytes; b += 1 + b % 3) /* most bytes random, some zero */
        slab[b] = (unsigned char)kt_u64(rng);
    for (size_t p = 0; p < n; p++)
        pages[p] = kt_int(rng, 0, n_pages - 1);
    ct_result crc = ct_result_new(1, n * 4, n * 4 + 4);
    td_page_crc_args d = a;
    a.base = slab + shift;
    a.pages = pages;
    a.crc = (uint32_t *)(void *)crc.want.p;
    TD_EQ(TD_OK, td_page_crc_ref(&a, NULL));
    d.base = (unsigned char *)ct_up(g, slab, shift + n_bytes) + shift;
    d.pages = ct_up(g, pages, n * 4);
    ct_result_up(g, &crc);
    for (int k = 0; k < 2; k++) {
        d.crc = crc.device[k];
        TD_EQ(TD_OK, g->ops->page_crc(&d, g->stream));
    }
    ct_result_bits(g, &crc);
    ct_clear(g);
    ct_result_free(&crc);
    free(slab);
    free(pages);
}

TEST(page_crc_of_ranges_equals_the_judges)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 60; i++) {
        td_page_crc_args a = {.n = KT_PICK(&rng, 0, 1, 7, 40)};
        a.page_stride = (uint64_t)KT_PICK(&rng, 0, 1, 15, 17, 32, 100, 8448, 41984, 52000);
        a.offset = kt_u64(&rng) % (a.page_stride + 1);
        a.n_bytes =
            i % 3 == 0 ? a.page_stride - a.offset : kt_u64(&rng) % (a.page_stride - a.offset + 1);
        if (i % 4 == 0) {
            a.offset = 0;
            a.n_bytes = a.page_stride;
        }
        check_crc(&rng, &g, a, kt_int(&rng, 1, 10), (size_t)KT_PICK(&rng, 0, 0, 1, 7, 16, 31));
    }
    ct_close(&g);
}

/* Around the size that a block takes (128 KiB), and several of them. */
TEST(page_crc_of_large_pages_equals_the_judges)
{
    kt_rng rng = kt_seeded();
    ct_gpu g = ct_open();
    for (int i = 0; i < 12; i++) {
        td_page_crc_args a = {.n = 3, .offset = (uint64_t)KT_PICK(&rng, 0, 64, 3)};
        a.n_bytes = (uint64_t)KT_PICK(&rng, 131072, 262144, 524288) + (uint64_t)kt_int(&rng, 0, 40);
        a.n_bytes -= (uint64_t)KT_PICK(&rng, 0, 20, 40);
        a.page_stride = a.offset + a.n_bytes + (uint64_t)KT_PICK(&rng, 0, 64, 5);
        check_crc(&rng, &g, a, 2, (size_t)KT_PICK(&rng, 0, 0, 9));
    }
    const td_page_crc_args aligned = {.n = 2, .n_bytes = 3 << 20, .page_stride = (3 << 20) + 64};
    check_crc(&rng, &g, aligned, 2, 0);
    ct_close(&g);
}

TEST(page_crc_has_the_known_value)
{
    ct_gpu g = ct_open();
    const int32_t page = 1;
    uint32_t crc = 0;
    td_page_crc_args a = {
        ct_up(&g, "__________#123456789", 20), ct_up(&g, &page, 4), ct_alloc(&g, 4), 10, 1, 9, 1};
    TD_EQ(TD_OK, g.ops->page_crc(&a, g.stream));
    ct_down(&g, &crc, a.crc, 4);
    TD_EQ(0xe3069283u, crc);
    ct_close(&g);
}
