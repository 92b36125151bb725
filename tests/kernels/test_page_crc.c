/* A checksum: bits equal the reference's. */
#include "kernels/page_crc/page_crc.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

TEST(sums_of_ranges_equal_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 20; i++) {
        const int n_pages = kt_int(&rng, 1, 20), n = KT_PICK(&rng, 0, 1, 7, 40);
        td_page_crc_args a = {.n = n, .page_stride = (uint64_t)KT_PICK(&rng, 1, 100, 8448, 52000)};
        a.offset = kt_u64(&rng) % (a.page_stride + 1);
        a.n_bytes =
            i == 0 ? a.page_stride - a.offset : kt_u64(&rng) % (a.page_stride - a.offset + 1);
        unsigned char *slab = kt_alloc((size_t)n_pages * a.page_stride);
        int32_t *pages = kt_alloc((size_t)n * 4);
        for (size_t b = 0; b < (size_t)n_pages * a.page_stride; b++)
            slab[b] = (unsigned char)kt_u64(&rng);
        for (int p = 0; p < n; p++)
            pages[p] = kt_int(&rng, 0, n_pages - 1);
        kt_out want = kt_out_new(1, (size_t)n * 4, (size_t)n * 4 + 4), crc = want;
        crc = kt_out_new(1, (size_t)n * 4, (size_t)n * 4 + 4);
        a.base = slab;
        a.pages = pages;
        a.crc = (uint32_t *)(void *)want.p;
        TD_EQ(TD_OK, td_page_crc_ref(&a, NULL));
        while (kt_ways_next(&w)) {
            kt_out_poison(&crc);
            a.crc = (uint32_t *)(void *)crc.p;
            TD_EQ(TD_OK, td_page_crc_cpu(&a, w.stream));
            kt_out_check(&crc);
            kt_out_same(&want, &crc);
        }
        kt_out_free(&want);
        kt_out_free(&crc);
        free(slab);
        free(pages);
    }
    kt_ways_close(&w);
}

TEST(known_value)
{
    td_device *device = kt_open(1);
    const int32_t page = 1;
    uint32_t crc = 0;
    td_page_crc_args a = {(const unsigned char *)"__________#123456789", &page, &crc, 10, 1, 9, 1};
    TD_EQ(TD_OK, td_page_crc_cpu(&a, td_device_stream(device)));
    TD_EQ(0xe3069283u, crc);
    td_device_close(device);
}

TEST(refuses_what_it_cannot_do)
{
    td_device *device = kt_open(1);
    unsigned char slab[20] = {0};
    int32_t pages[1] = {0};
    uint32_t crc[1];
    const td_page_crc_args good = {slab, pages, crc, 20, 4, 16, 1};
    td_page_crc_args bad[6];
    for (int i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].n = -1;
    bad[1].n_bytes = 17;
    bad[2].offset = UINT64_MAX;
    bad[3].base = NULL;
    bad[4].pages = NULL;
    bad[5].crc = NULL;
    for (int i = 0; i < 6; i++)
        TD_EQ(TD_BAD_SHAPE, td_page_crc_cpu(&bad[i], td_device_stream(device)));
    TD_EQ(TD_OK, td_page_crc_cpu(&good, td_device_stream(device)));
    td_device_close(device);
}
