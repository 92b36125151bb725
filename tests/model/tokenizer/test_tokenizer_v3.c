/* The tokenizer of DeepSeek-V3, which is not in the tree: scripts/fetch-v3-tokenizer.sh DEST, then
 * cmake -DTANDEM_V3_TOKENIZER=DEST. */
#include "tests/model/tokenizer/vectors.h"
#include "tests/td_test.h"

TD_TEST_MAIN

static td_tokenizer *v3(void)
{
    const char *dir = getenv("TANDEM_V3_TOKENIZER");
    if (dir == NULL || dir[0] == '\0')
        td_skip("TANDEM_V3_TOKENIZER names no folder");
    td_tokenizer *tok = vectors_open(dir);
    if (tok == NULL)
        td_skip("no tokenizer.json in the folder that TANDEM_V3_TOKENIZER names");
    return tok;
}

TEST(v3_ids_are_those_of_hugging_face)
{
    td_tokenizer *tok = v3();
    TD_EQ(128815, td_tokenizer_describe(tok)->n_tokens);
    TD_EQ(0, td_tokenizer_describe(tok)->bos_id);
    TD_EQ(1, td_tokenizer_describe(tok)->eos_id);
    vectors_check_ids(tok, "v3");
    vectors_check_more(tok, "v3");
    td_tokenizer_destroy(tok);
}

TEST(v3_decoding_gives_the_text_back)
{
    td_tokenizer *tok = v3();
    vectors_check_round_trip(tok);
    td_tokenizer_destroy(tok);
}

TEST(v3_streams_never_split_a_character_and_add_up)
{
    td_tokenizer *tok = v3();
    vectors_check_stream(tok);
    td_tokenizer_destroy(tok);
}
