#include "common/kv/layout.h"
#include "kernels/kv_write/kv_write.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static size_t row_bytes(int dtype, int C, int R)
{
    return (size_t)(dtype == 0 ? C + C / 128 * 4 + 2 * R : (dtype == 1 ? 2 : 4) * (C + R));
}

/* Writes by cpu into a copy of the cache, by ref into another; both must be the same to the last
 * byte, the untouched ones included. */
static void check(kt_rng *rng, kt_ways *w, int dtype, int C, int R, int T)
{
    const int page_rows = KT_PICK(rng, 1, 16, 64);
    kt_cache cache =
        kt_cache_new(rng, dtype, page_rows, (size_t)page_rows * row_bytes(dtype, C, R), 3, 5);
    td_kv_write_args a = {.kv = cache.kv, .T = T, .C = C, .R = R};
    a.act = dtype == 2 ? TD_F32 : TD_BF16;
    a.c_stride = C + R + kt_int(rng, 0, 40);
    size_t n = (size_t)(T * a.c_stride);
    void *c = kt_alloc(n * td_dtype_bytes(a.act));
    kt_fill_act(rng, c, n, ldexpf(1.0f, kt_int(rng, -20, 20)), a.act);
    for (int i = 0; i < T && a.act == TD_BF16 && kt_int(rng, 0, 2) == 0; i++)
        ((td_bf16 *)c)[kt_int(rng, 0, (int)n - 1)] = td_f32_to_bf16(kt_odd(rng));
    int32_t *slots = kt_alloc((size_t)T * 4);
    int request = kt_int(rng, 0, 2), first = kt_int(rng, 0, page_rows * 5 - T);
    for (int t = 0; t < T; t++)
        slots[t] = kt_int(rng, 0, 4) == 0 ? -1 : kt_cache_slot(&cache, request, first + t);
    a.c = c;
    a.slots = slots;
    kt_out want = kt_out_new(1, cache.n_bytes, cache.n_bytes);
    kt_out got = kt_out_new(1, cache.n_bytes, cache.n_bytes);
    memcpy(want.p, cache.kv.plane, cache.n_bytes);
    a.kv.plane = want.p;
    TD_EQ(TD_OK, td_kv_write_ref(&a, NULL));
    while (kt_ways_next(w)) {
        memcpy(got.p, cache.kv.plane, cache.n_bytes);
        a.kv.plane = got.p;
        TD_EQ(TD_OK, td_kv_write_cpu(&a, w->stream));
        kt_out_check(&got);
        kt_out_same(&want, &got);
    }
    kt_out_free(&want);
    kt_out_free(&got);
    kt_cache_free(&cache);
    free(c);
    free(slots);
}

TEST(has_the_references_bytes_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++) {
        int dtype = i % 3, C = dtype == 0 ? KT_PICK(&rng, 128, 256, 512) : kt_int(&rng, 1, 520);
        check(&rng, &w, dtype, C, KT_PICK(&rng, 0, 2, 6, 64), KT_PICK(&rng, 0, 1, 2, 5));
    }
    check(&rng, &w, 0, 512, 64, 5);
    kt_ways_close(&w);
}

/* The bytes of model-spec B.1: 512 codes, 4 scales, 64 bf16; what the layout says is what we write.
 */
TEST(an_fp8_row_is_656_bytes_in_the_published_order)
{
    td_device *device = kt_open(1);
    td_kv_layout layout;
    td_bf16 c[576];
    int32_t slot = 64 * 2 + 7;
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 1, 0, 512, 64, 128, NULL));
    TD_EQ(656, td_kv_layout_plane(&layout, 0, TD_KV_LATENT)->row_bytes);
    unsigned char *slab = kt_alloc(3 * layout.page_stride);
    for (int i = 0; i < 576; i++)
        c[i] = td_f32_to_bf16((float)(i % 128 - 64) * (i < 128 ? 7.0f : 0.01f));
    td_kv_write_args a = {c,   &slot,  {slab, layout.page_stride, 64, TD_KV_FP8}, 1, 512, 64,
                          576, TD_BF16};
    TD_EQ(TD_OK, td_kv_write_cpu(&a, td_device_stream(device)));
    const unsigned char *row = slab + 2 * layout.page_stride + 7 * 656;
    float scale[4];
    memcpy(scale, row + 512, 16);
    TD_TRUE(scale[0] == 1.0f);    /* 448 / 448 */
    TD_TRUE(scale[1] == 0x1p-9f); /* 0.64 / 448 = 0.00143, up to a power of two */
    for (int i = 0; i < 512; i++)
        TD_EQ(td_quant_code(td_bf16_to_f32(c[i]), scale[i / 128]), row[i]);
    TD_MEM(c + 512, row + 528, 128);
    for (size_t i = 0; i < 3 * layout.page_stride; i++)
        if (slab + i < row || slab + i >= row + 656)
            TD_EQ(0, slab[i]);
    free(slab);
    td_device_close(device);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    static unsigned char plane[4096];
    td_bf16 c[192] = {0};
    int32_t slot = 0;
    td_kv_write_args good = {c, &slot, {plane, 4096, 4, 0}, 1, 128, 64, 192, TD_BF16};
    td_kv_write_args bad[] = {good, good, good, good, good, good, good, good, good, good};
    TD_EQ(TD_OK, td_kv_write_cpu(&good, td_device_stream(device)));
    bad[0].T = -1;
    bad[1].C = 100;
    bad[2].R = -1;
    bad[3].act = TD_F32;
    bad[4].kv.dtype = 2;
    bad[5].kv.dtype = 3;
    bad[6].kv.page_rows = 0;
    bad[7].c = NULL;
    bad[8].slots = NULL;
    bad[9].kv.plane = NULL;
    for (int i = 0; i < 10; i++)
        TD_EQ(TD_BAD_SHAPE, td_kv_write_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
