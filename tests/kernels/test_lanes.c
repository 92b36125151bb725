#include "tests/kernels/ways.h"

typedef struct {
    float exp[16], max[16], arith[16], select[16], bf16[16], shuffles[128];
    float part[256], transposed[256], sum, hmax;
    td_bf16 bf16_bits[16];
    uint8_t e4m3[16];
    int32_t keys[16];
    uint32_t gt, eq;
} lanes_out;

#define LANES_BODY "tests/kernels/lanes_body.h"
#include "kernels/cpu/each_isa.h"

TD_TEST_MAIN

static void same(const float *want, const float *got, int n)
{
    for (int i = 0; i < n; i++)
        if (!(isnan(want[i]) && isnan(got[i])))
            TD_MEM(want + i, got + i, 4);
}

static void same_out(const lanes_out *a, const lanes_out *b)
{
    same(a->exp, b->exp, 16);
    same(a->max, b->max, 16);
    same(a->arith, b->arith, 16);
    same(a->select, b->select, 16);
    same(a->bf16, b->bf16, 16);
    same(a->shuffles, b->shuffles, 128);
    same(a->part, b->part, 256);
    same(a->transposed, b->transposed, 256);
    same(&a->sum, &b->sum, 1);
    same(&a->hmax, &b->hmax, 1);
    TD_MEM(a->bf16_bits, b->bf16_bits, sizeof(a->bf16_bits));
    TD_MEM(a->e4m3, b->e4m3, sizeof(a->e4m3));
    TD_MEM(a->keys, b->keys, sizeof(a->keys));
    TD_EQ(a->gt, b->gt);
    TD_EQ(a->eq, b->eq);
}

static void fill(kt_rng *rng, float *x)
{
    int kind = kt_int(rng, 0, 3);
    for (int i = 0; i < 32; i++) {
        uint32_t u = (uint32_t)kt_u64(rng);
        memcpy(&x[i], &u, 4); /* any number at all */
        if (isnan(x[i]) && kind != 0)
            x[i] = kt_normal(rng);
        if (kind == 2)
            x[i] = kt_normal(rng) * 100.0f;
        if (kind == 3)
            x[i] = kt_normal(rng) * 0.01f;
        if (kt_int(rng, 0, 15) == 0)
            x[i] = kind == 0 ? kt_odd(rng) : -0.0f;
    }
}

/* The portable form is the scalar formulas of numbers.h in a loop. */
static void check_scalar(const float *x, const lanes_out *o)
{
    for (int i = 0; i < 16; i++) {
        float e = td_expf(x[i]), b = td_bf16_to_f32(td_f32_to_bf16(x[i]));
        same(&e, &o->exp[i], 1);
        same(&b, &o->bf16[i], 1);
        TD_EQ(td_f32_to_bf16(x[i]), o->bf16_bits[i]);
        TD_EQ(td_quant_code(x[i], 1.0f), o->e4m3[i]);
        for (int j = 0; j < 16; j++) {
            float xi = isnan(x[i]) ? -INFINITY : x[i], xj = isnan(x[j]) ? -INFINITY : x[j];
            TD_EQ(xi < xj, o->keys[i] < o->keys[j]);
            TD_EQ(xi == xj, o->keys[i] == o->keys[j]);
        }
    }
}

TEST(every_form_gives_the_same_bits)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    for (int round = 0; round < 20000; round++) {
        float x[32];
        lanes_out want, got;
        memset(&want, 0, sizeof(want));
        fill(&rng, x);
        run_lanes_portable(x, &want);
        check_scalar(x, &want);
        for (int isa = 1; kt_next_isa(stream, isa); isa++) {
            memset(&got, 0, sizeof(got));
            LANES_PICK((td_isa)isa, run_lanes)(x, &got);
            same_out(&want, &got);
        }
    }
    td_device_close(device);
}

TEST(every_code_decodes_as_the_scalar_formula)
{
    static uint8_t codes[256];
    static td_bf16 bf16[65536];
    static float got[256 + 65536];
    td_device *device = kt_open(1);
    for (int i = 0; i < 65536; i++) {
        codes[i % 256] = (uint8_t)i;
        bf16[i] = (td_bf16)i;
    }
    for (int isa = 0; kt_next_isa(td_device_stream(device), isa); isa++) {
        LANES_PICK((td_isa)isa, run_codes)(codes, bf16, got);
        for (int i = 0; i < 256; i++) {
            float want = td_e4m3_to_f32((uint8_t)i);
            same(&want, &got[i], 1);
            if (!isnan(want)) /* and back */
                TD_EQ(i, td_f32_to_e4m3(want));
        }
        for (int i = 0; i < 65536; i++) {
            float want = td_bf16_to_f32((td_bf16)i);
            same(&want, &got[256 + i], 1);
        }
    }
    td_device_close(device);
}

TEST(bytes_are_transposed)
{
    td_device *device = kt_open(1);
    uint8_t src[16 * 24], dst[256];
    for (int i = 0; i < 16 * 24; i++)
        src[i] = (uint8_t)(i * 7 + i / 24 + 1);
    for (int isa = 0; kt_next_isa(td_device_stream(device), isa); isa++)
        for (int n = 0; n <= 16; n++) {
            LANES_PICK((td_isa)isa, run_bytes)(src, n, dst);
            for (int i = 0; i < 16; i++)
                for (int j = 0; j < 16; j++)
                    TD_EQ(j < n ? src[j * 24 + i] : 0, dst[16 * i + j]);
        }
    td_device_close(device);
}

TEST(e4m3_rounds_to_the_nearest_even_code)
{
    for (int i = 0; i < 0x7e; i++) {
        float lo = td_e4m3_to_f32((uint8_t)i), hi = td_e4m3_to_f32((uint8_t)(i + 1));
        float mid = lo + (hi - lo) / 2;
        TD_EQ(i, td_f32_to_e4m3(nextafterf(mid, 0.0f)));
        TD_EQ(i + 1, td_f32_to_e4m3(nextafterf(mid, 1000.0f)));
        TD_EQ(i % 2 == 0 ? i : i + 1, td_f32_to_e4m3(mid));
        TD_EQ(0x80 | i, td_f32_to_e4m3(-nextafterf(mid, 0.0f)));
    }
    TD_EQ(0x7f, td_f32_to_e4m3(NAN));
    TD_EQ(0x7f, td_f32_to_e4m3(-NAN));
    TD_EQ(0x7e, td_f32_to_e4m3(INFINITY));
}

TEST(a_quantised_group_is_the_scalar_one)
{
    kt_rng rng = kt_seeded();
    td_device *device = kt_open(1);
    for (int round = 0; round < 3000; round++) {
        float x[128], amax = 0.0f;
        int n = round % 3 == 0 ? kt_int(&rng, 1, 128) : 128, ue8m0 = kt_int(&rng, 0, 1);
        float spread = ldexpf(1.0f, kt_int(&rng, -60, 60));
        for (int i = 0; i < n; i++) {
            x[i] = kt_normal(&rng) * spread;
            if (round % 7 == 0 && kt_int(&rng, 0, 9) == 0)
                x[i] = kt_odd(&rng);
            amax = fmaxf(amax, fabsf(x[i]));
        }
        float scale = td_quant_scale(amax, ue8m0);
        for (int isa = 0; kt_next_isa(td_device_stream(device), isa); isa++) {
            kt_out q = kt_out_new(1, (size_t)n, (size_t)n);
            float got = LANES_PICK((td_isa)isa, run_quant)(x, n, q.p, ue8m0);
            TD_MEM(&scale, &got, 4);
            for (int i = 0; i < n; i++)
                TD_EQ(td_quant_code(x[i], scale), q.p[i]);
            kt_out_check(&q);
            kt_out_free(&q);
        }
    }
    td_device_close(device);
}

/* ---- the quantiser's formula once more (model-spec 0.3), sharing nothing with kernels/numbers.h,
 * which the references use as well ---- */

/* s = max(amax, 1e-4) * (1/448) in f32; with ue8m0 the least power of two that is not below it. */
static float plain_scale(float amax, int ue8m0)
{
    const float floored = amax > 1e-4f ? amax : 1e-4f, inverse = 1.0f / 448.0f;
    const float s = (float)((double)floored * (double)inverse); /* the product is exact in double */
    int e;
    if (!ue8m0 || isinf(s))
        return s;
    return frexpf(s, &e) == 0.5f ? ldexpf(0.5f, e) : ldexpf(1.0f, e);
}

static double plain_value(int code)
{
    int e = code >> 3 & 15, m = code & 7;
    return (code & 128 ? -1 : 1) * (e > 0 ? ldexp(8 + m, e - 10) : ldexp(m, -9));
}

/* The nearest code, the even one of two. */
static int plain_code(float x, float scale)
{
    const float v = x / scale;
    int best = signbit(v) ? 128 : 0;
    for (int code = best; code < (best | 127); code++) {
        double was = fabs(v - plain_value(best)), is = fabs(v - plain_value(code));
        if (is < was || (is == was && code % 2 == 0))
            best = code;
    }
    return best;
}

static void check_plain(td_stream *stream, float amax)
{
    const float x[4] = {amax, -amax, amax * 0.3f, -amax * 0.77f};
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++) {
        const float want = plain_scale(amax, ue8m0), scalar = td_quant_scale(amax, ue8m0);
        TD_MEM(&want, &scalar, 4);
        for (int isa = 0; kt_next_isa(stream, isa); isa++) {
            uint8_t q[4];
            float got = LANES_PICK((td_isa)isa, run_quant)(x, 4, q, ue8m0);
            TD_MEM(&want, &got, 4);
            for (int i = 0; i < 4; i++)
                TD_EQ(plain_code(x[i], want), q[i]);
        }
    }
}

TEST(scales_and_codes_are_the_formula_s_at_every_edge)
{
    td_device *device = kt_open(1);
    td_stream *stream = td_device_stream(device);
    static const float edges[] = {0.0f,  1e-45f,  1e-38f,  1e-5f,
                                  1e-4f, 0.0448f, 3.0e38f, 3.4028234e38f};
    kt_rng rng = kt_seeded();
    for (size_t i = 0; i < sizeof(edges) / sizeof(*edges); i++) {
        check_plain(stream, edges[i]);
        check_plain(stream, nextafterf(edges[i], 1.0f));
        check_plain(stream, nextafterf(edges[i], 0.0f));
    }
    /* Around every power of two of the scale, and anywhere between. */
    for (int e = -30; e < 119; e++) {
        float at = ldexpf(448.0f, e);
        check_plain(stream, at);
        check_plain(stream, nextafterf(at, INFINITY));
        check_plain(stream, nextafterf(nextafterf(at, INFINITY), INFINITY));
        check_plain(stream, nextafterf(at, 0.0f));
        check_plain(stream, nextafterf(nextafterf(at, 0.0f), 0.0f));
        check_plain(stream, at * (1.0f + kt_unit(&rng)));
    }
    td_device_close(device);
}

/* Every 101st f32 of the range, in every form; the library's exp in double is exact to f32. */
TEST(exp_is_within_one_unit_in_the_last_place)
{
    td_device *device = kt_open(1);
    for (int isa = 0; kt_next_isa(td_device_stream(device), isa); isa++) {
        float x[16], y[16];
        double worst = 0.0;
        int n = 0;
        for (uint64_t u = 0; u <= 0xffffffffu; u += TD_SANITIZED ? 1009 : 101) {
            uint32_t bits = (uint32_t)u;
            memcpy(&x[n], &bits, 4);
            if (!(x[n] >= -87.33654f && x[n] <= 88.72283f) || ++n < 16)
                continue;
            n = 0;
            LANES_PICK((td_isa)isa, run_exp)(x, y);
            for (int i = 0; i < 16; i++) {
                int exponent;
                double want = exp((double)x[i]);
                frexp(want, &exponent);
                double ulps = fabs(y[i] - want) * ldexp(1.0, 24 - exponent);
                worst = ulps > worst ? ulps : worst;
            }
        }
        printf("%s: %.3f ulp\n", kt_isa_name((td_isa)isa), worst);
        TD_TRUE(worst < 1.0);
    }
    TD_TRUE(td_expf(0.0f) == 1.0f && td_expf(-0.0f) == 1.0f);
    TD_TRUE(td_expf(-INFINITY) == 0.0f && td_expf(-90.0f) == 0.0f);
    TD_TRUE(td_expf(INFINITY) == INFINITY && td_expf(89.0f) == INFINITY);
    TD_TRUE(isnan(td_expf(NAN)));
    td_device_close(device);
}
