#include "model/slice_bytes.h"

#include "kernels/numbers.h"
#include "kernels/random.h"

#include <string.h>

#define LANES 16       /* blocks made side by side, so that the compiler finds vectors */
#define BLOCK_BYTES 16 /* that one counter gives */
#define CHUNK_BYTES (LANES * BLOCK_BYTES)
#define CODE_DEVIATION 155.0f /* of the e4m3 codes: the largest of them is then 448 */

/* One random byte makes an element: the sign, and one of 128 equally likely magnitudes of a normal
 * distribution (the middle of each 256th). Written out, because logarithms and roots of different
 * libraries need not agree in the last bit. */
static const float magnitudes[128] = {
    0.0048958f, 0.0146878f, 0.0244812f, 0.0342770f, 0.0440761f, 0.0538794f, 0.0636879f, 0.0735025f,
    0.0833242f, 0.0931540f, 0.1029927f, 0.1128415f, 0.1227012f, 0.1325728f, 0.1424574f, 0.1523559f,
    0.1622693f, 0.1721988f, 0.1821452f, 0.1921097f, 0.2020933f, 0.2120971f, 0.2221222f, 0.2321696f,
    0.2422406f, 0.2523361f, 0.2624575f, 0.2726058f, 0.2827823f, 0.2929881f, 0.3032245f, 0.3134929f,
    0.3237943f, 0.3341303f, 0.3445021f, 0.3549110f, 0.3653586f, 0.3758462f, 0.3863753f, 0.3969474f,
    0.4075641f, 0.4182269f, 0.4289374f, 0.4396974f, 0.4505086f, 0.4613727f, 0.4722915f, 0.4832669f,
    0.4943008f, 0.5053953f, 0.5165523f, 0.5277739f, 0.5390625f, 0.5504201f, 0.5618492f, 0.5733522f,
    0.5849315f, 0.5965898f, 0.6083298f, 0.6201542f, 0.6320660f, 0.6440681f, 0.6561638f, 0.6683562f,
    0.6806488f, 0.6930451f, 0.7055488f, 0.7181639f, 0.7308942f, 0.7437442f, 0.7567181f, 0.7698207f,
    0.7830568f, 0.7964315f, 0.8099503f, 0.8236187f, 0.8374427f, 0.8514287f, 0.8655832f, 0.8799134f,
    0.8944265f, 0.9091305f, 0.9240337f, 0.9391451f, 0.9544740f, 0.9700306f, 0.9858255f, 1.0018703f,
    1.0181772f, 1.0347595f, 1.0516313f, 1.0688079f, 1.0863057f, 1.1041427f, 1.1223380f, 1.1409127f,
    1.1598896f, 1.1792937f, 1.1991523f, 1.2194953f, 1.2403560f, 1.2617709f, 1.2837806f, 1.3064304f,
    1.3297710f, 1.3538594f, 1.3787600f, 1.4045462f, 1.4313018f, 1.4591230f, 1.4881219f, 1.5184291f,
    1.5501990f, 1.5836155f, 1.6189001f, 1.6563239f, 1.6962225f, 1.7390200f, 1.7852625f, 1.8356715f,
    1.8912292f, 1.9533237f, 2.0240136f, 2.1065541f, 2.2065752f, 2.3352330f, 2.5205022f, 2.8856349f,
};

uint64_t td_slice_key(uint32_t seed, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u ^ seed; /* FNV-1a */
    for (const char *p = name; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    return h ^ (uint64_t)seed << 32;
}

float td_slice_e4m3_scale(float deviation)
{
    float want = deviation / CODE_DEVIATION, scale = 1;
    while (scale > want * 1.41421356f)
        scale *= 0.5f;
    return scale;
}

/* td_philox4x32_10 of LANES counters from `block` on. */
static void random_chunk(uint64_t key, uint64_t block, unsigned char out[CHUNK_BYTES])
{
    uint32_t a[LANES], b[LANES], c[LANES], d[LANES], words[LANES][4];
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (uint32_t i = 0; i < LANES; i++) {
        a[i] = (uint32_t)(block + i);
        b[i] = (uint32_t)((block + i) >> 32);
        c[i] = TD_RANDOM_WEIGHT;
        d[i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LANES; i++) {
            uint64_t p0 = (uint64_t)0xd2511f53u * a[i], p1 = (uint64_t)0xcd9e8d57u * c[i];
            a[i] = (uint32_t)(p1 >> 32) ^ b[i] ^ key0;
            b[i] = (uint32_t)p1;
            c[i] = (uint32_t)(p0 >> 32) ^ d[i] ^ key1;
            d[i] = (uint32_t)p0;
        }
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    for (int i = 0; i < LANES; i++) {
        words[i][0] = a[i];
        words[i][1] = b[i];
        words[i][2] = c[i];
        words[i][3] = d[i];
    }
    memcpy(out, words, CHUNK_BYTES);
}

static float normal(unsigned byte)
{
    float z = magnitudes[byte & 127];
    return byte & 128 ? -z : z;
}

/* Elements [first, first + n) of one or two bytes each, looked up by their random byte. */
static void fill(uint64_t key, uint64_t first, uint64_t n, const void *table, size_t size,
                 unsigned char *dst)
{
    unsigned char chunk[CHUNK_BYTES];
    const uint8_t *narrow = table;
    const uint16_t *wide = table;
    while (n > 0) {
        uint64_t skip = first % CHUNK_BYTES, got = CHUNK_BYTES - skip;
        got = got < n ? got : n;
        random_chunk(key, first / CHUNK_BYTES * LANES, chunk);
        if (size == 1)
            for (uint64_t i = 0; i < got; i++)
                dst[i] = narrow[chunk[skip + i]];
        else
            for (uint64_t i = 0; i < got; i++)
                memcpy(dst + 2 * i, &wide[chunk[skip + i]], 2);
        first += got;
        n -= got;
        dst += got * size;
    }
}

static void make_constant(float value, uint64_t offset, uint64_t n_bytes, unsigned char *dst)
{
    unsigned char bytes[sizeof(value)];
    memcpy(bytes, &value, sizeof(value));
    for (uint64_t i = 0; i < n_bytes; i++)
        dst[i] = bytes[(offset + i) % sizeof(value)];
}

/* bf16 elements, from and to any byte. */
static void make_bf16(const td_slice_recipe *r, uint64_t offset, uint64_t n_bytes,
                      unsigned char *dst)
{
    uint16_t table[256], edge;
    for (unsigned i = 0; i < 256; i++)
        table[i] = td_f32_to_bf16(normal(i) * r->value);
    if (offset % 2 != 0 && n_bytes > 0) {
        fill(r->key, offset / 2, 1, table, 2, (unsigned char *)&edge);
        *dst++ = ((unsigned char *)&edge)[1];
        offset++;
        n_bytes--;
    }
    fill(r->key, offset / 2, n_bytes / 2, table, 2, dst);
    if (n_bytes % 2 != 0) {
        fill(r->key, (offset + n_bytes) / 2, 1, table, 2, (unsigned char *)&edge);
        dst[n_bytes - 1] = ((unsigned char *)&edge)[0];
    }
}

void td_slice_codes(uint8_t codes[256])
{
    for (unsigned i = 0; i < 256; i++)
        codes[i] = td_f32_to_e4m3(normal(i) * CODE_DEVIATION);
}

void td_slice_make(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes, void *dst)
{
    const td_slice_recipe *r = tensor->make_arg;
    if (!r->random) {
        td_assert(tensor->dtype == TD_ST_F32);
        make_constant(r->value, offset, n_bytes, dst);
        return;
    }
    if (tensor->dtype == TD_ST_BF16) {
        make_bf16(r, offset, n_bytes, dst);
        return;
    }
    td_assert(tensor->dtype == TD_ST_F8_E4M3);
    fill(r->key, offset, n_bytes, r->codes, 1, dst);
}
