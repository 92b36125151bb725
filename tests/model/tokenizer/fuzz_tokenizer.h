/* fuzz_tokenizer.h - libFuzzer's entry, which the mutation test calls too. First byte even: the
 * rest is a tokenizer.json; odd: the rest is a text for mini.json's tokenizer. Aborts when a claim
 * does not hold. */
#ifndef TD_TESTS_FUZZ_TOKENIZER_H
#define TD_TESTS_FUZZ_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
#endif
