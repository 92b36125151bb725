#include "common/kv/layout.h"
#include "tests/td_test.h"

static td_kv_layout layout; /* 20 KB: not for the stack */

TEST(fp8_page_of_v32_has_the_published_bytes)
{
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 61, 1, 512, 64, 128, NULL));
    TD_EQ(62, layout.n_layers);
    TD_EQ(61, layout.draft_layer);
    TD_EQ(656, td_kv_layout_plane(&layout, 0, TD_KV_LATENT)->row_bytes);
    TD_EQ(132, td_kv_layout_plane(&layout, 61, TD_KV_INDEX_KEY)->row_bytes);
    TD_EQ(62 * 64 * (656 + 132), layout.page_stride);
}

TEST(bf16_and_f32_rows_have_the_published_bytes)
{
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_BF16, 4, 0, 512, 64, 128, NULL));
    TD_EQ(1152, td_kv_layout_plane(&layout, 3, TD_KV_LATENT)->row_bytes);
    TD_EQ(132, td_kv_layout_plane(&layout, 3, TD_KV_INDEX_KEY)->row_bytes);
    TD_EQ(-1, layout.draft_layer);
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_F32, 4, 0, 512, 64, 128, NULL));
    TD_EQ(2304, td_kv_layout_plane(&layout, 3, TD_KV_LATENT)->row_bytes);
    TD_EQ(512, td_kv_layout_plane(&layout, 3, TD_KV_INDEX_KEY)->row_bytes);
}

TEST(planes_stand_one_behind_the_other_by_layer_then_kind)
{
    for (int dtype = TD_KV_FP8; dtype <= TD_KV_F32; dtype++) {
        uint64_t at = 0;
        TD_EQ(TD_OK, td_kv_layout_init(&layout, (td_kv_dtype)dtype, 7, 1, 512, 64, 128, NULL));
        TD_EQ(16, layout.n_planes);
        for (uint32_t i = 0; i < layout.n_planes; i++) {
            const td_kv_plane *plane = &layout.planes[i];
            TD_EQ(i / 2, plane->layer);
            TD_EQ(i % 2, plane->kind);
            TD_EQ(TD_KV_PAGE_ROWS, plane->rows);
            TD_EQ(at, plane->offset);
            TD_EQ(0, plane->offset % 64);
            TD_EQ((uint64_t)plane->rows * plane->row_bytes, plane->n_bytes);
            at += plane->n_bytes;
        }
        TD_EQ(at, layout.page_stride);
    }
}

TEST(ranges_of_layer_groups_tile_the_page)
{
    uint64_t offset, n_bytes, at = 0;
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 10, 1, 512, 64, 128, NULL));
    for (uint32_t first = 0; first < layout.n_layers; first += 4) {
        uint32_t last = first + 4 < layout.n_layers ? first + 4 : layout.n_layers;
        td_kv_layout_range(&layout, first, last, &offset, &n_bytes);
        TD_EQ(at, offset);
        at += n_bytes;
    }
    TD_EQ(layout.page_stride, at);
    td_kv_layout_range(&layout, layout.n_layers, layout.n_layers, &offset, &n_bytes);
    TD_EQ(layout.page_stride, offset);
    TD_EQ(0, n_bytes);
}

TEST(bad_dimensions_are_refused_and_named)
{
    static const struct {
        int dtype;
        uint32_t n_layers, latent, rope, index;
        const char *names;
    } bad[] = {
        {TD_KV_FP8, 61, 500, 64, 128, "latent"},
        {TD_KV_FP8, 61, 0, 64, 128, "latent"},
        {TD_KV_FP8, 61, 512, 63, 128, "rope"},
        {TD_KV_FP8, 61, 512, 64, 64, "index"},
        {TD_KV_F32, 61, 512, 64, 0, "index"},
        {TD_KV_BF16, 0, 512, 64, 128, "layers"},
        {TD_KV_FP8, 256, 512, 64, 128, "layers"},
        {7, 61, 512, 64, 128, "dtype"},
        {TD_KV_FP8, 61, 0xffffff80U, 64, 128, "latent"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        td_err err;
        memset(&layout, 0x5a, sizeof(layout));
        TD_EQ(TD_INVALID, td_kv_layout_init(&layout, (td_kv_dtype)bad[i].dtype, bad[i].n_layers, 1,
                                            bad[i].latent, bad[i].rope, bad[i].index, &err));
        TD_TRUE(strstr(err.text, bad[i].names) != NULL);
        TD_EQ(0x5a5a5a5a, layout.n_planes); /* written only on success */
    }
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_FP8, 255, 1, 512, 64, 128, NULL));
    TD_EQ(TD_OK, td_kv_layout_init(&layout, TD_KV_F32, 1, 0, 512, 64, 60, NULL));
}

TEST(dtypes_have_the_names_of_the_knob)
{
    TD_STR("fp8", td_kv_dtype_name(TD_KV_FP8));
    TD_STR("bf16", td_kv_dtype_name(TD_KV_BF16));
    TD_STR("f32", td_kv_dtype_name(TD_KV_F32));
}

TD_TEST_MAIN
