#include "kernels/accept/accept.h"
#include "tests/kernels/ways.h"

TD_TEST_MAIN

TEST(counts_drafts_up_to_the_first_that_differs)
{
    td_device *device = kt_open(1);
    const int32_t target[5][4] = {
        {1, 2, 3, 4}, {1, 2, 3, 4}, {9, 2, 3, 4}, {1, 2, 3, 4}, {-1, 2, 3, 4}};
    const int32_t draft[5][3] = {{1, 2, 3}, {1, 7, 3}, {1, 2, 3}, {1, 2, 3}, {-1, 2, 9}};
    const int32_t n_drafts[5] = {3, 3, 3, 2, 3}, want[5] = {3, 1, 0, 2, 2};
    int32_t got[5];
    td_accept_args a = {target[0], draft[0], n_drafts, got, 5, 4};
    TD_EQ(TD_OK, td_accept_cpu(&a, td_device_stream(device)));
    TD_MEM(want, got, sizeof(got));
    td_device_close(device);
}

TEST(agrees_with_the_reference)
{
    kt_rng rng = kt_seeded();
    kt_ways w = kt_ways_open();
    for (int i = 0; i < 200; i++) {
        int B = kt_int(&rng, 0, 9), N = kt_int(&rng, 1, 5);
        int32_t *target = kt_alloc((size_t)(B * N) * 4), *draft = kt_alloc((size_t)(B * N) * 4);
        int32_t *n_drafts = kt_alloc((size_t)B * 4);
        for (int j = 0; j < B * N; j++) {
            target[j] = kt_int(&rng, 0, 2);
            draft[j] = kt_int(&rng, 0, 2);
        }
        for (int b = 0; b < B; b++)
            n_drafts[b] = kt_int(&rng, -1, N + 1);
        kt_out want = kt_out_new((size_t)B, 4, 4), got = kt_out_new((size_t)B, 4, 4);
        td_accept_args a = {target, draft, n_drafts, (int32_t *)(void *)want.p, B, N};
        TD_EQ(TD_OK, td_accept_ref(&a, NULL));
        a.n_accepted = (int32_t *)(void *)got.p;
        while (kt_ways_next(&w)) {
            kt_out_poison(&got);
            TD_EQ(TD_OK, td_accept_cpu(&a, w.stream));
            kt_out_check(&got);
            kt_out_same(&want, &got);
        }
        kt_out_free(&want);
        kt_out_free(&got);
        free(target);
        free(draft);
        free(n_drafts);
    }
    kt_ways_close(&w);
}

TEST(refuses_what_it_has_no_kernel_for)
{
    td_device *device = kt_open(1);
    int32_t x[4] = {0}, n;
    td_accept_args good = {x, x, x, &n, 1, 2}, bad[] = {good, good, good, good, good, good};
    bad[0].B = -1;
    bad[1].N = 0;
    bad[2].target = NULL;
    bad[3].draft = NULL;
    bad[4].n_drafts = NULL;
    bad[5].n_accepted = NULL;
    for (int i = 0; i < 6; i++)
        TD_EQ(TD_BAD_SHAPE, td_accept_cpu(&bad[i], td_device_stream(device)));
    td_device_close(device);
}
