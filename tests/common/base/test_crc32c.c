#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "tests/common/base/td_hard.h"

static uint32_t bitwise(uint32_t crc, const unsigned char *p, size_t n)
{
    crc = ~crc;
    for (; n > 0; n--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static unsigned char *random_bytes(size_t n)
{
    uint64_t state = 1;
    unsigned char *bytes = malloc(n);
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)td_random(&state);
    return bytes;
}

TEST(the_published_values_come_out)
{
    unsigned char zeros[32] = {0}, ones[32], up[32];
    memset(ones, 0xff, sizeof(ones));
    for (int i = 0; i < 32; i++)
        up[i] = (unsigned char)i;
    uint32_t (*both[2])(uint32_t, const void *, size_t) = {td_crc32c, td_crc32c_portable};
    for (int i = 0; i < 2; i++) {
        TD_EQ(0xe3069283u, both[i](0, "123456789", 9));
        TD_EQ(0x8a9136aau, both[i](0, zeros, 32));
        TD_EQ(0x62a8ab43u, both[i](0, ones, 32));
        TD_EQ(0x46dd794eu, both[i](0, up, 32));
        TD_EQ(0, both[i](0, "", 0));
    }
}

TEST(fast_portable_and_bitwise_agree_for_every_length_and_offset)
{
    unsigned char *bytes = random_bytes(70000);
    for (size_t n = 0; n < 1700; n++) {
        const unsigned char *p = bytes + n % 17;
        uint32_t want = bitwise(0, p, n);
        TD_EQ(want, td_crc32c(0, p, n));
        TD_EQ(want, td_crc32c_portable(0, p, n));
    }
    for (size_t n = 24000; n < 70000; n += 1777)
        TD_EQ(bitwise(0, bytes, n), td_crc32c(0, bytes, n));
    free(bytes);
}

TEST(pieces_give_the_value_of_the_whole)
{
    unsigned char *bytes = random_bytes(60000);
    uint32_t whole = td_crc32c(0, bytes, 60000);
    for (size_t cut = 0; cut <= 60000; cut += 997)
        TD_EQ(whole, td_crc32c(td_crc32c(0, bytes, cut), bytes + cut, 60000 - cut));
    free(bytes);
}

TEST(one_damaged_bit_changes_the_value)
{
    unsigned char *bytes = random_bytes(4096);
    uint32_t whole = td_crc32c(0, bytes, 4096);
    for (size_t bit = 0; bit < 8 * 4096; bit += 13) {
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        TD_NE(whole, td_crc32c(0, bytes, 4096));
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    free(bytes);
}

TEST(no_byte_behind_the_end_is_read)
{
    for (size_t n = 0; n < 900; n++) {
        unsigned char *p = td_guard_alloc(NULL, n);
        TD_EQ(td_crc32c(0, p, n), td_crc32c_portable(0, p, n));
        td_guard_free(p, n);
    }
}

TD_TEST_MAIN
