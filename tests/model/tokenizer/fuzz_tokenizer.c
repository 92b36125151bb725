#include "tests/model/tokenizer/fuzz_tokenizer.h"

#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"
#include "tests/model/tokenizer/vectors.h"

#include <stdlib.h>
#include <string.h>

/* Encodes and decodes; without added tokens in it the text must come back. */
static void check_text(const td_tokenizer *tok, const uint8_t *text, size_t n)
{
    int32_t *ids;
    char *back;
    size_t n_ids, n_back;
    bool added = false;
    td_err err;
    td_status st = td_tokenizer_encode(tok, text, n, TD_ENCODE_SPECIAL, &ids, &n_ids, &err);
    if (st == TD_EXHAUSTED) /* a wild pattern */
        return;
    td_assert(st == TD_OK);
    for (size_t i = 0; i < n_ids; i++) {
        td_assert(ids[i] >= 0 && (uint32_t)ids[i] < tok->info.n_tokens);
        added = added || (tok->marks[ids[i]] & TD_TOK_ADDED) != 0;
    }
    td_assert(td_tokenizer_decode(tok, ids, n_ids, 0, &back, &n_back, &err) == TD_OK);
    td_assert(td_utf8_valid((uint8_t *)back, n_back));
    uint8_t *repaired = malloc(3 * n + 1);
    td_assert(repaired != NULL);
    size_t n_repaired = td_utf8_repair(text, n, repaired);
    td_assert(added || (n_back == n_repaired && memcmp(back, repaired, n_back) == 0));
    free(repaired);
    free(back);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char sample[] = "The <L> quick wort 123 \u4e2d\u6587\n\n#x \xc3\xff  end";
    static td_tokenizer *mini;
    td_tokenizer *tok = NULL;
    td_err err = {.status = TD_OK};
    if (n == 0)
        return 0;
    if (data[0] % 2 == 1) {
        if (mini == NULL)
            mini = vectors_mini();
        check_text(mini, data + 1, n - 1);
        return 0;
    }
    td_status st = td_tokenizer_parse((const char *)data + 1, n - 1, NULL, 0, &tok, &err);
    td_assert(st == err.status && (st == TD_OK) == (tok != NULL));
    td_assert(st == TD_OK || err.text[0] != '\0');
    if (st == TD_OK)
        check_text(tok, (const uint8_t *)sample, sizeof(sample) - 1);
    td_tokenizer_destroy(tok);
    return 0;
}
