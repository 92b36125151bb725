/* td_test.h - TEST(claim) over cmocka. A test program runs the one claim named by argv[1] (ctest
 * starts a process for each), or all of them when none is named. argv[2] is the seed of tests with
 * random inputs (they print theirs): it repeats a failure. Exit 77 (td_skip) means: not possible on
 * this machine. */
#ifndef TD_TESTS_TD_TEST_H
#define TD_TESTS_TD_TEST_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the four that cmocka.h needs */
#include <cmocka.h>

#define TD_TEST_MAX 256

/* A sanitizer makes computing some ten times slower, and finds what it finds in short runs too. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TD_SANITIZED 1
#else
#define TD_SANITIZED 0
#endif

extern struct CMUnitTest td_tests[TD_TEST_MAX];
extern int td_n_tests;
extern const char *td_test_seed; /* NULL: none was given */

#define TEST(claim)                                                                                \
    static void test_##claim(void **state);                                                        \
    __attribute__((constructor)) static void register_##claim(void)                                \
    {                                                                                              \
        td_tests[td_n_tests++] = (struct CMUnitTest){#claim, test_##claim, NULL, NULL, NULL};      \
    }                                                                                              \
    static void test_##claim(void **state __attribute__((unused)))

#define TD_EQ(want, got) assert_int_equal((long long)(want), (long long)(got))
#define TD_NE(a, b) assert_int_not_equal((long long)(a), (long long)(b))
#define TD_TRUE(c) assert_true(c)
#define TD_STR(want, got) assert_string_equal(want, got)
#define TD_MEM(want, got, n) assert_memory_equal(want, got, n)

/* Put once in every test program, after its includes. */
#define TD_TEST_MAIN                                                                               \
    struct CMUnitTest td_tests[TD_TEST_MAX];                                                       \
    int td_n_tests;                                                                                \
    const char *td_test_seed;                                                                      \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        int n = 0;                                                                                 \
        td_test_seed = argc > 2 ? argv[2] : NULL;                                                  \
        for (int i = 0; i < td_n_tests; i++)                                                       \
            if (argc < 2 || strcmp(argv[1], td_tests[i].name) == 0)                                \
                td_tests[n++] = td_tests[i];                                                       \
        if (n == 0) {                                                                              \
            fprintf(stderr, "no such test: %s\n", argc < 2 ? "(none)" : argv[1]);                  \
            return 1;                                                                              \
        }                                                                                          \
        return _cmocka_run_group_tests(argv[0], td_tests, (size_t)n, NULL, NULL);                  \
    }

static inline void td_skip(const char *why)
{
    fprintf(stderr, "skipped: %s\n", why);
    exit(77);
}
#endif
