#include "kernels/hadamard_quant/hadamard_quant.h"
#include "kernels/index_key_write/index_key_write.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

static void check(kt_rng *rng, kt_ways *w, int dtype, int dim, int T)
{
    const int page_rows = KT_PICK(rng, 4, 16, 64);
    const size_t row_bytes = dtype == 2 ? 4 * (size_t)dim : 132;
    kt_cache cache = kt_cache_new(rng, dtype, page_rows, (size_t)page_rows * row_bytes, 2, 6);
    td_index_key_write_args a = {.kv = cache.kv, .T = T, .dim = dim};
    a.act = dtype == 2 ? TD_F32 : TD_BF16;
    size_t n = (size_t)T * (size_t)dim;
    void *k = kt_alloc(n * td_dtype_bytes(a.act));
    kt_fill_act(rng, k, n, ldexpf(1.0f, kt_int(rng, -20, 20)), a.act);
    for (int i = 0; i < T && a.act == TD_BF16 && kt_int(rng, 0, 2) == 0; i++)
        ((td_bf16 *)k)[kt_int(rng, 0, (int)n - 1)] = td_f32_to_bf16(kt_odd(rng));
    int32_t *slots = kt_alloc((size_t)T * 4);
    int request = kt_int(rng, 0, 1), first = kt_int(rng, 0, page_rows * 6 - T);
    for (int t = 0; t < T; t++)
        slots[t] = kt_int(rng, 0, 4) == 0 ? -1 : kt_cache_slot(&cache, request, first + t);
    a.k = k;
    a.slots = slots;
    kt_out want = kt_out_new(1, cache.n_bytes, cache.n_bytes);
    kt_out got = kt_out_new(1, cache.n_bytes, cache.n_bytes);
    memcpy(want.p, cache.kv.plane, cache.n_bytes);
    a.kv.plane = want.p;
    TD_EQ(TD_OK, td_index_key_write_ref(&a, NULL));
    while (kt_ways_next(w)) {
        memcpy(got.p, cache.kv.plane, cache.n_bytes);
        a.kv.plane = got.p;
        TD_EQ(TD_OK, td_index_key_write_cpu(&a, w->stream));
        kt_out_check(&got);
        kt_out_same(&want, &got);
    }
    kt_out_free(&want);
    kt_out_free(&got);
    kt_cache_free(&cache);
    free(k);
    free(slots);
}

TEST(has_the_references_bytes_in_every_form)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 60; i++)
        check(&rng, &w, i % 3, i % 3 == 2 ? KT_PICK(&rng, 1, 7, 32, 128, 200) : 128,
              KT_PICK(&rng, 0, 1, 2, 20));
    kt_ways_close(&w);
}

/* The same codes and scales as hadamard_quant of the query side; scales behind all codes (B.3). */
TEST(keys_and_queries_are_quantised_alike)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    td_bf16 k[3 * 128];
    uint8_t q[3 * 128];
    float qs[3];
    static unsigned char page[64 * 132];
    int32_t slots[3] = {5, 63, 0};
    kt_fill_bf16(&rng, k, 3 * 128, 2.0f);
    td_hadamard_quant_args h = {k, q, qs, 3, 1};
    td_index_key_write_args a = {k, slots, {page, sizeof(page), 64, 1}, 3, 128, TD_BF16};
    TD_EQ(TD_OK, td_hadamard_quant_cpu(&h, td_device_stream(device)));
    TD_EQ(TD_OK, td_index_key_write_cpu(&a, td_device_stream(device)));
    for (int t = 0; t < 3; t++) {
        TD_MEM(q + t * 128, page + slots[t] * 128, 128);
        TD_MEM(&qs[t], page + 64 * 128 + slots[t] * 4, 4);
    }
    td_device_close(device);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    static unsigned char plane[64 * 132];
    td_bf16 k[128] = {0};
    int32_t slot = 0;
    td_index_key_write_args good = {k, &slot, {plane, sizeof(plane), 64, 0}, 1, 128, TD_BF16};
    td_index_key_write_args bad[] = {good, good, good, good, good, good, good, good};
    bad[0].T = -1;
    bad[1].dim = 64;
    bad[2].act = TD_F32;
    bad[3].kv.dtype = -1;
    bad[4].kv.page_rows = 0;
    bad[5].k = NULL;
    bad[6].slots = NULL;
    bad[7].kv.plane = NULL;
    for (int i = 0; i < 8; i++)
        TD_EQ(TD_BAD_SHAPE, td_index_key_write_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
