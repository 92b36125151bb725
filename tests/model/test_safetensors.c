/* The reader trusts nothing in the header; the writer's files are read back. */
#include "model/safetensors.h"
#include "tests/common/base/td_hard.h"
#include "tests/model/scratch.h"
#include "tests/td_test.h"

TD_TEST_MAIN

/* A file of this header and n_data bytes of data. */
static unsigned char *make(const char *header, size_t n_data, size_t *n_bytes)
{
    size_t n = strlen(header);
    unsigned char *bytes = calloc(1, 8 + n + n_data + 1);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(n >> (8 * i));
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < n_data; i++)
        bytes[8 + n + i] = (unsigned char)i;
    *n_bytes = 8 + n + n_data;
    return bytes;
}

/* Parses with the last byte flush against a guard page. */
static td_status parse(const void *data, size_t n_bytes, td_err *err)
{
    td_safetensors *file = NULL;
    void *guarded = td_guard_alloc(data, n_bytes);
    td_status st = td_safetensors_parse(guarded, n_bytes, &file, err);
    if (st == TD_OK) /* touch all of it */
        for (size_t i = 0; i < td_safetensors_count(file); i++) {
            const td_tensor *t = td_safetensors_at(file, i);
            volatile unsigned char sum = 0;
            for (uint64_t k = 0; k < t->n_bytes; k++)
                sum = (unsigned char)(sum + t->data[k]);
            TD_TRUE(td_safetensors_find(file, t->name) == t);
        }
    td_safetensors_close(file);
    td_guard_free(guarded, n_bytes);
    return st;
}

static void refuse(const char *header, size_t n_data, td_status want, const char *text)
{
    size_t n_bytes;
    td_err err = {0};
    unsigned char *bytes = make(header, n_data, &n_bytes);
    TD_EQ(want, parse(bytes, n_bytes, &err));
    if (strstr(err.text, text) == NULL) {
        fprintf(stderr, "%s\n  gave '%s', not '%s'\n", header, err.text, text);
        TD_TRUE(0);
    }
    free(bytes);
}

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
    "\"empty\":{\"dtype\":\"F8_E4M3\",\"shape\":[0,7],\"data_offsets\":[8,8]},"
    "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[20,28]}}   ";

TEST(reads_names_shapes_and_bytes_in_order_of_name)
{
    size_t n_bytes;
    td_safetensors *file = NULL;
    unsigned char *bytes = make(good, 28, &n_bytes);
    TD_EQ(TD_OK, td_safetensors_parse(bytes, n_bytes, &file, NULL));
    TD_EQ(4, td_safetensors_count(file));
    TD_STR("a", td_safetensors_at(file, 0)->name);
    TD_STR("b.weight", td_safetensors_at(file, 1)->name);
    const td_tensor *b = td_safetensors_find(file, "b.weight");
    TD_EQ(TD_ST_BF16, b->dtype);
    TD_EQ(2, b->n_dims);
    TD_EQ(3, b->shape[1]);
    TD_EQ(12, b->n_bytes);
    TD_EQ(8, b->data[0]);
    TD_EQ(0, td_safetensors_find(file, "empty")->n_bytes);
    TD_EQ(0, td_safetensors_find(file, "scalar")->n_dims);
    TD_TRUE(td_safetensors_find(file, "c") == NULL);
    td_safetensors_close(file);
    td_safetensors_close(NULL);
    free(bytes);
}

#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

TEST(refuses_headers_that_lie)
{
    refuse("{\"a\":" T("F32", "[2]", "[0,8]") "", 8, TD_DATA_LOSS, "not JSON");
    refuse("[]", 0, TD_DATA_LOSS, "not a JSON object");
    refuse("{}x", 0, TD_DATA_LOSS, "bytes behind");
    refuse("{\"a\":" T("F32", "[2]", "[0,12]") "}", 12, TD_DATA_LOSS, "needs 8 bytes");
    refuse("{\"a\":" T("F32", "[2]", "[0,8]") "}", 7, TD_DATA_LOSS, "outside the file's 7 bytes");
    refuse("{\"a\":" T("F32", "[2]", "[8,0]") "}", 8, TD_DATA_LOSS, "outside");
    refuse("{\"a\":" T("F32", "[2]", "[-8,0]") "}", 8, TD_DATA_LOSS, "two whole numbers");
    refuse("{\"a\":" T("F32", "[2]", "[0.5,8.5]") "}", 8, TD_DATA_LOSS, "two whole numbers");
    refuse("{\"a\":" T("F32", "[2]", "[0]") "}", 8, TD_DATA_LOSS, "two whole numbers");
    refuse("{\"a\":" T("F32", "[2]", "[0,8,9]") "}", 8, TD_DATA_LOSS, "two whole numbers");
    refuse("{\"a\":" T("F32", "[-2]", "[0,8]") "}", 8, TD_DATA_LOSS, "dimension");
    refuse("{\"a\":" T("F32", "[2.5]", "[0,8]") "}", 8, TD_DATA_LOSS, "dimension");
    refuse("{\"a\":" T("F32", "[1e300]", "[0,8]") "}", 8, TD_DATA_LOSS, "dimension");
    refuse("{\"a\":" T("F32", "\"2\"", "[0,8]") "}", 8, TD_DATA_LOSS, "not an array");
    refuse("{\"a\":" T("F32", "[9007199254740992,9007199254740992]", "[0,8]") "}", 8, TD_DATA_LOSS,
           "overflows");
    refuse("{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]") "}", 8, TD_UNSUPPORTED, "dimensions");
    refuse("{\"a\":" T("F4_XYZ", "[2]", "[0,8]") "}", 8, TD_UNSUPPORTED, "unknown dtype 'F4_XYZ'");
    refuse("{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, TD_DATA_LOSS, "dtype");
    refuse("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, TD_DATA_LOSS, "shape");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, TD_DATA_LOSS, "data_offsets");
    refuse("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8, TD_DATA_LOSS, "stands twice");
    refuse("{\"a\":{\"stuff\":1}}", 8, TD_DATA_LOSS, "unknown key");
    refuse("{\"a\":7}", 8, TD_DATA_LOSS, "not an object");
    refuse("{\"\":" T("F32", "[2]", "[0,8]") "}", 8, TD_DATA_LOSS, "empty or longer");
}

TEST(refuses_overlaps_holes_and_duplicates_by_name)
{
    refuse("{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[2]", "[4,12]") "}", 12,
           TD_DATA_LOSS, "tensors a and b overlap");
    refuse("{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[2]", "[0,8]") "}", 8,
           TD_DATA_LOSS, "overlap");
    refuse("{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[8,12]") "}", 12,
           TD_DATA_LOSS, "4 bytes before tensor b");
    refuse("{\"a\":" T("F32", "[1]", "[0,4]") "}", 8, TD_DATA_LOSS, "last 4 bytes");
    refuse("{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]", "[4,8]") "}", 8,
           TD_DATA_LOSS, "tensor a stands twice");
}

/* "a" and "a<NUL>b" would read alike. */
TEST(refuses_names_with_a_nul_in_any_spelling)
{
    refuse("{\"a\\u0000b\":" T("F32", "[2]", "[0,8]") "}", 8, TD_DATA_LOSS, "NUL in the header");
    refuse("{\"\\u0000\":" T("F32", "[2]", "[0,8]") "}", 8, TD_DATA_LOSS, "NUL in the header");
    refuse("{\"\\\\\\u0000\":" T("F32", "[2]", "[0,8]") "}", 8, TD_DATA_LOSS, "NUL in the header");
    static const char header[] = "{\"a?b\":" T("F32", "[2]", "[0,8]") "}";
    size_t n_bytes;
    td_err err = {0};
    unsigned char *bytes = make(header, 8, &n_bytes);
    *(unsigned char *)memchr(bytes, '?', n_bytes) = '\0';
    TD_EQ(TD_DATA_LOSS, parse(bytes, n_bytes, &err));
    TD_TRUE(strstr(err.text, "NUL in the header, at byte 3") != NULL);
    free(bytes);
    /* An escaped backslash before "u0000" is no NUL. */
    bytes = make("{\"a\\\\u0000\":" T("F32", "[2]", "[0,8]") "}", 8, &n_bytes);
    TD_EQ(TD_OK, parse(bytes, n_bytes, &err));
    free(bytes);
}

TEST(refuses_files_cut_off_at_any_byte)
{
    size_t n_bytes;
    unsigned char *bytes = make(good, 28, &n_bytes);
    for (size_t n = 0; n < n_bytes; n++)
        TD_EQ(TD_DATA_LOSS, parse(bytes, n, NULL));
    TD_EQ(TD_OK, parse(bytes, n_bytes, NULL));
    free(bytes);
}

TEST(refuses_a_header_length_beyond_the_file_and_beyond_the_limit)
{
    size_t n_bytes;
    td_err err;
    unsigned char *bytes = make(good, 28, &n_bytes);
    bytes[3] = 2; /* 32 MiB */
    TD_EQ(TD_DATA_LOSS, parse(bytes, n_bytes, &err));
    TD_TRUE(strstr(err.text, "truncated") != NULL);
    memset(bytes, 0xff, 8);
    TD_EQ(TD_DATA_LOSS, parse(bytes, n_bytes, &err));
    TD_TRUE(strstr(err.text, "over the limit") != NULL);
    free(bytes);
}

TEST(damaged_files_are_refused_or_read_but_never_overrun)
{
    size_t n_bytes;
    uint64_t seed = 11;
    unsigned char *bytes = make(good, 28, &n_bytes), *copy = malloc(n_bytes);
    int n_ok = 0;
    for (int i = 0; i < 20000; i++) {
        memcpy(copy, bytes, n_bytes);
        td_mutate(copy, n_bytes, &seed);
        td_status st = parse(copy, n_bytes, NULL);
        TD_TRUE(st == TD_OK || st == TD_DATA_LOSS || st == TD_UNSUPPORTED);
        n_ok += st == TD_OK;
    }
    TD_TRUE(n_ok > 0 && n_ok < 20000);
    free(copy);
    free(bytes);
}

TEST(every_failed_allocation_is_reported)
{
    size_t n_bytes;
    td_safetensors *file = NULL;
    unsigned char *bytes = make(good, 28, &n_bytes);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_safetensors_parse(bytes, n_bytes, &file, NULL),
                        td_safetensors_close(file));
    free(bytes);
}

TEST(a_written_file_reads_back)
{
    const char *path = td_scratch_path(td_scratch_dir(), "out.safetensors");
    float numbers[6] = {1, 2, 3, 4, 5, 6};
    int32_t ids[3] = {7, 8, 9};
    const unsigned char *data = (const unsigned char *)numbers;
    td_tensor out[3] = {
        {.name = "logits", .dtype = TD_ST_F32, .n_dims = 2, .shape = {2, 3}, .data = data},
        {.name = "ids", .dtype = TD_ST_I32, .n_dims = 1, .shape = {3}},
        {.name = "nothing", .dtype = TD_ST_F32, .n_dims = 2, .shape = {0, 3}, .data = data}};
    out[0].n_bytes = sizeof(numbers);
    out[1].data = (const unsigned char *)ids;
    out[1].n_bytes = sizeof(ids);
    td_safetensors *file = NULL;
    td_err err;
    TD_EQ(TD_OK, td_safetensors_write(path, out, 3, NULL));
    TD_EQ(TD_OK, td_safetensors_open(path, &file, NULL));
    TD_EQ(3, td_safetensors_count(file));
    const td_tensor *t = td_safetensors_find(file, "logits");
    TD_MEM(numbers, t->data, sizeof(numbers));
    TD_EQ(0, (uintptr_t)t->data % 64);
    TD_MEM(ids, td_safetensors_find(file, "ids")->data, sizeof(ids));
    td_safetensors_close(file);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, td_safetensors_write(path, out, 3, NULL), (void)0);
    out[0].name = "a \"quoted\" name";
    TD_EQ(TD_INVALID, td_safetensors_write(path, out, 3, &err));
    out[0].name = "logits";
    TD_EQ(TD_IO, td_safetensors_write("/nonexistent-folder/x", out, 3, &err));
    TD_TRUE(strstr(err.text, "/nonexistent-folder/x") != NULL);
}

TEST(opening_says_which_file_and_why)
{
    const char *dir = td_scratch_dir(), *path = td_scratch_path(dir, "x.safetensors");
    td_safetensors *file = NULL;
    td_err err;
    TD_EQ(TD_NOT_FOUND, td_safetensors_open(path, &file, &err));
    TD_TRUE(strstr(err.text, "x.safetensors") != NULL);
    TD_EQ(TD_IO, td_safetensors_open(dir, &file, &err));
    td_scratch_write(path, "", 0);
    TD_EQ(TD_DATA_LOSS, td_safetensors_open(path, &file, &err));
    td_scratch_write(path, "short", 5);
    TD_EQ(TD_DATA_LOSS, td_safetensors_open(path, &file, &err));
    TD_TRUE(strstr(err.text, "too short") != NULL);
}

TEST(shapes_print_and_long_ones_are_cut_off)
{
    int64_t shape[3] = {2, 30, 400};
    char text[32], little[6];
    TD_STR("[2, 30, 400]", td_st_shape_text(shape, 3, text, sizeof(text)));
    TD_STR("[]", td_st_shape_text(shape, 0, text, sizeof(text)));
    TD_STR("[2, 3", td_st_shape_text(shape, 3, little, sizeof(little)));
}
