#include "common/base/crc32c.h"
#include "common/transfer/desc.h"
#include "tests/td_test.h"

#include <sys/mman.h>
#include <unistd.h>

#define HEAD 116 /* bytes before the regions */

static td_xfer_desc example(void)
{
    td_xfer_desc desc = {
        .incarnation = "8f3a2b11c0ffee00",
        .rank = 3,
        .host_id = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
        .ip_version = 4,
        .ip = {127, 0, 0, 1},
        .port = 47001,
        .n_regions = 2,
        .regions = {{.stride = 3124736, .n_slots = 4096}, {.stride = 14336, .n_slots = 64}},
    };
    return desc;
}

static size_t encode(const td_xfer_desc *desc, unsigned char *out)
{
    size_t n_bytes;
    TD_EQ(TD_OK, td_xfer_desc_encode(desc, out, TD_XFER_MAX_DESC_BYTES, &n_bytes, NULL));
    return n_bytes;
}

static void sign(unsigned char *bytes, size_t n_bytes)
{
    uint32_t crc = td_crc32c(0, bytes, n_bytes - 4);
    for (int i = 0; i < 4; i++)
        bytes[n_bytes - 4 + (size_t)i] = (unsigned char)(crc >> (8 * i));
}

TEST(what_was_encoded_is_decoded)
{
    unsigned char bytes[TD_XFER_MAX_DESC_BYTES];
    td_xfer_desc in = example(), out;
    size_t n_bytes = encode(&in, bytes);
    TD_EQ(HEAD + 2 * 16 + 4, n_bytes);
    TD_EQ(TD_OK, td_xfer_desc_decode(bytes, n_bytes, &out, NULL));
    TD_STR(in.incarnation, out.incarnation);
    TD_EQ(in.rank, out.rank);
    TD_MEM(in.host_id, out.host_id, sizeof(in.host_id));
    TD_EQ(4, out.ip_version);
    TD_MEM(in.ip, out.ip, 16);
    TD_EQ(47001, out.port);
    TD_EQ(2, out.n_regions);
    TD_EQ(3124736, out.regions[0].stride);
    TD_EQ(4096, out.regions[0].n_slots);
    TD_EQ(64, out.regions[1].n_slots);
}

TEST(encode_refuses_a_small_buffer)
{
    unsigned char bytes[64];
    size_t n_bytes;
    td_xfer_desc desc = example();
    TD_EQ(TD_TOO_LARGE, td_xfer_desc_encode(&desc, bytes, sizeof(bytes), &n_bytes, NULL));
}

/* Against a guard page: a byte read behind the end crashes. */
TEST(every_cut_is_refused_without_reading_on)
{
    unsigned char bytes[TD_XFER_MAX_DESC_BYTES];
    td_xfer_desc desc = example(), out;
    td_err err;
    size_t n_bytes = encode(&desc, bytes), page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *map =
        mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TD_TRUE(map != MAP_FAILED);
    TD_EQ(0, mprotect(map + page, page, PROT_NONE));
    for (size_t n = 0; n <= n_bytes; n++) {
        unsigned char *at = map + page - n;
        memcpy(at, bytes, n);
        TD_EQ(n == n_bytes ? TD_OK : TD_PROTOCOL, td_xfer_desc_decode(at, n, &out, &err));
    }
    munmap(map, 2 * page);
}

TEST(every_damaged_byte_is_refused)
{
    unsigned char bytes[TD_XFER_MAX_DESC_BYTES];
    td_xfer_desc desc = example(), out;
    size_t n_bytes = encode(&desc, bytes);
    for (size_t i = 0; i < n_bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] ^= (unsigned char)(1 << bit);
            TD_EQ(TD_PROTOCOL, td_xfer_desc_decode(bytes, n_bytes, &out, NULL));
            bytes[i] ^= (unsigned char)(1 << bit);
        }
}

/* With a right checksum: what a broken or hostile peer could send. */
TEST(nonsense_with_a_right_checksum_is_refused_and_named)
{
    static const struct {
        size_t at;
        unsigned char bytes[8];
        size_t n;
        const char *names;
    } bad[] = {
        {4, {2, 0}, 2, "version"},
        {6, {0, 1}, 2, "bytes"},
        {8, {0}, 1, "incarnation"},
        {8, {'\n'}, 1, "incarnation"},
        {92, {5}, 1, "IP version"},
        {94, {0, 0}, 2, "port"},
        {112, {3, 0, 0, 0}, 4, "regions"},
        {112, {255, 255, 255, 255}, 4, "regions"},
        {HEAD, {0, 0, 0, 0, 0, 0, 0, 0}, 8, "region 0"},
        {HEAD + 16, {255, 255, 255, 255, 255, 255, 255, 255}, 8, "region 1"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        unsigned char bytes[TD_XFER_MAX_DESC_BYTES];
        td_xfer_desc desc = example(), out;
        td_err err;
        size_t n_bytes = encode(&desc, bytes);
        memcpy(bytes + bad[i].at, bad[i].bytes, bad[i].n);
        sign(bytes, n_bytes);
        TD_EQ(TD_PROTOCOL, td_xfer_desc_decode(bytes, n_bytes, &out, &err));
        if (strstr(err.text, bad[i].names) == NULL)
            fail_msg("case %zu says: %s", i, err.text);
    }
}

TEST(random_bytes_with_a_right_checksum_never_give_impossible_values)
{
    uint32_t rng = 7;
    unsigned n_accepted = 0;
    for (int round = 0; round < 200000; round++) {
        unsigned char bytes[TD_XFER_MAX_DESC_BYTES];
        td_xfer_desc desc = example(), out;
        size_t n_bytes = encode(&desc, bytes);
        for (int k = 0; k < 3; k++) {
            rng = rng * 1664525U + 1013904223U;
            bytes[8 + (rng >> 8) % (n_bytes - 12)] = (unsigned char)(rng >> 24);
        }
        sign(bytes, n_bytes);
        if (td_xfer_desc_decode(bytes, n_bytes, &out, NULL) != TD_OK)
            continue;
        n_accepted++;
        TD_TRUE(out.n_regions <= TD_XFER_MAX_REGIONS && out.port != 0);
        TD_TRUE(strlen(out.incarnation) < TD_XFER_INCARNATION_BYTES);
        for (uint32_t i = 0; i < out.n_regions; i++)
            TD_TRUE(out.regions[i].n_slots == 0 ||
                    out.regions[i].stride <= (1ULL << 62) / out.regions[i].n_slots);
    }
    TD_TRUE(n_accepted > 0);
}

TD_TEST_MAIN
