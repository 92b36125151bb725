#include "kernels/random.h"
#include "tests/kernels/kernel_test.h"

TD_TEST_MAIN

static void philox(td_random_words counter, uint32_t key0, uint32_t key1, td_random_words want)
{
    td_random_words got = td_philox4x32_10(counter, key0, key1);
    TD_MEM(&want, &got, sizeof(got));
}

/* Random123, tests/kat_vectors */
TEST(philox_gives_the_published_numbers)
{
    philox((td_random_words){{0, 0, 0, 0}}, 0, 0,
           (td_random_words){{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
    philox((td_random_words){{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff,
           0xffffffff, (td_random_words){{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
    philox((td_random_words){{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822,
           0x299f31d0, (td_random_words){{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(the_key_is_seed_position_and_purpose)
{
    td_random_words w =
        td_philox4x32_10((td_random_words){{7, 0, TD_RANDOM_TEST, 0}}, 0x89abcdef, 0x01234567);
    TD_TRUE(td_random_u64(0x0123456789abcdef, 7, TD_RANDOM_TEST) ==
            ((uint64_t)w.x[1] << 32 | w.x[0]));
    TD_TRUE(td_random_u64(1, 7, TD_RANDOM_TOKEN) != td_random_u64(2, 7, TD_RANDOM_TOKEN));
    TD_TRUE(td_random_u64(1, 7, TD_RANDOM_TOKEN) != td_random_u64(1, 8, TD_RANDOM_TOKEN));
    TD_TRUE(td_random_u64(1, 7, TD_RANDOM_TOKEN) != td_random_u64(1, 7, TD_RANDOM_TEST));
}

/* Chi-square over 256 cells: 255 degrees of freedom, 99.99 % below 347. Fixed seeds. */
TEST(upper_bits_are_uniform)
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        int cells[256] = {0};
        double chi = 0.0, n = 256 * 400.0;
        for (int i = 0; i < (int)n; i++) {
            cells[td_random_u64(seed, i, TD_RANDOM_TEST) >> 56]++;
        }
        for (int i = 0; i < 256; i++)
            chi += (cells[i] - n / 256) * (cells[i] - n / 256) / (n / 256);
        TD_TRUE(chi < 347.0);
    }
}

TEST(below_is_the_upper_half_of_the_product)
{
    kt_rng rng = kt_seeded();
    for (int i = 0; i < 100000; i++) {
        uint64_t r = kt_u64(&rng) >> kt_int(&rng, 0, 63), n = kt_u64(&rng) >> kt_int(&rng, 0, 63);
        TD_TRUE(td_random_below(r, n) == (uint64_t)(((unsigned __int128)r * n) >> 64));
    }
    TD_TRUE(td_random_below(UINT64_MAX, UINT64_MAX) == UINT64_MAX - 1);
    TD_TRUE(td_random_below(UINT64_MAX, 1) == 0);
}
