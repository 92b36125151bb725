#include "tests/td_test.h"

#include "common/base/conf.h"
#include "tests/common/base/td_hard.h"

static const char sample[] = "// head\n"
                             "{ /* a \"b\" // c */ \"key//no\": \"va/*l*/ue\\\"//\", // tail, }\n"
                             "  \"list\": [1, 2, /* x */ ], /**/\n"
                             "  \"n\": {\"m\": 1,},\n"
                             "}\n";

static void strip_to(const char *want, const char *from)
{
    size_t n = strlen(from);
    char *text = td_guard_alloc(from, n);
    TD_EQ(TD_OK, td_json_strip(text, n, NULL));
    TD_EQ(strlen(want), n);
    TD_MEM(want, text, n);
    td_guard_free(text, n);
}

TEST(comments_and_trailing_commas_become_blanks_and_lines_stay)
{
    strip_to("[1 ]", "[1,]");
    strip_to("{\"a\":1 }  ", "{\"a\":1,}//");
    strip_to("[1      \n ]", "[1,/**/ \n ]");
    strip_to("   \n  1", "/*a\n*/1");
    strip_to("\"//\"", "\"//\"");
    strip_to("\"\\\"/*\"", "\"\\\"/*\"");
    strip_to("1/2", "1/2");
    strip_to("", "");
    strip_to("[{} ,[]  ]", "[{} ,[], ]");
}

TEST(a_comma_after_nothing_stays_for_the_parser_to_refuse)
{
    strip_to("[,]", "[,]");
    strip_to("{,}", "{,}");
    strip_to("[1,,]", "[1,,]");
    strip_to("{\"a\":,}", "{\"a\":,}");
}

TEST(a_comment_without_an_end_is_refused_with_its_line)
{
    td_err err;
    char text[] = "1\n2 /* 3\n4 *";
    TD_EQ(TD_CONFIG, td_json_strip(text, strlen(text), &err));
    TD_STR("line 2: a comment without an end", err.text);
    char open[] = "/*/";
    TD_EQ(TD_CONFIG, td_json_strip(open, strlen(open), &err));
}

TEST(every_beginning_of_a_file_is_read_without_a_byte_behind_it)
{
    for (size_t n = 0; n <= strlen(sample); n++) {
        char *text = td_guard_alloc(sample, n);
        td_status st = td_json_strip(text, n, NULL);
        TD_TRUE(st == TD_OK || st == TD_CONFIG);
        td_guard_free(text, n);
    }
}

TEST(damaged_text_never_harms)
{
    uint64_t seed = 7;
    size_t n = strlen(sample);
    unsigned char *text = td_guard_alloc(NULL, n);
    for (int i = 0; i < 100000; i++) {
        memcpy(text, sample, n);
        td_mutate(text, n, &seed);
        td_status st = td_json_strip((char *)text, n, NULL);
        TD_TRUE(st == TD_OK || st == TD_CONFIG);
    }
    td_guard_free(text, n);
}

TD_TEST_MAIN
