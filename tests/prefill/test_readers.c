/* The decode daemons that have shaken hands. */
#include "prefill/readers.h"
#include "tests/td_test.h"

#include "common/base/clock.h"

TD_TEST_MAIN

static td_prefill_readers readers;

static td_prefill_reader *note(uint32_t i)
{
    char incarnation[TD_INCARNATION_BYTES], address[32];
    snprintf(incarnation, sizeof(incarnation), "%016x", i);
    snprintf(address, sizeof(address), "10.0.0.1:%u", 1000 + i);
    TD_EQ(TD_OK, td_prefill_readers_note(&readers, incarnation, address, "10.0.0.9:1", NULL));
    return td_prefill_readers_find(&readers, incarnation);
}

TEST(who_has_connected_is_found_by_incarnation)
{
    TD_TRUE(td_prefill_readers_find(&readers, "") == NULL);
    td_prefill_reader *r = note(7);
    TD_STR("10.0.0.1:1007", r->address);
    TD_STR("10.0.0.9:1", r->remote);
    TD_STR("0000000000000007", r->incarnation);
    TD_TRUE(note(8) != r);
    TD_TRUE(note(7) == r); /* again */
    TD_TRUE(td_prefill_readers_find(&readers, "0000000000000009") == NULL);
    TD_TRUE(td_prefill_readers_find(&readers, "") == NULL); /* free rows have no name */
}

TEST(what_is_no_incarnation_or_no_address_is_refused)
{
    static const char good[] = "0123456789abcdef";
    static const char *const bad[] = {
        "",
        "0123456789abcde",
        "0123456789abcdef0",
        "0123456789ABCDEF",
        "0123456789abcde\n",
        "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"};
    td_err err;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        TD_EQ(TD_INVALID, td_prefill_readers_note(&readers, bad[i], "a:1", "-", &err));
    TD_EQ(TD_INVALID, td_prefill_readers_note(&readers, good, "", "-", &err));
    TD_EQ(TD_INVALID, td_prefill_readers_note(&readers, good, "nowhere", "-", &err));
    TD_EQ(TD_INVALID, td_prefill_readers_note(&readers, good, "a\nb:1", "-", &err));
    TD_EQ(TD_INVALID, td_prefill_readers_note(&readers, good, "\xff:1", "-", &err));
    TD_TRUE(td_prefill_readers_find(&readers, good) == NULL);
}

TEST(the_one_unseen_for_longest_makes_place_unless_it_has_prompts)
{
    td_err err;
    for (uint32_t i = 0; i < TD_PREFILL_MAX_READERS; i++)
        note(i)->seen_ns = 1000 + i;
    td_prefill_reader *first = td_prefill_readers_find(&readers, "0000000000000000");
    first->n_prompts = 1;
    td_prefill_reader *made = note(5000);
    TD_TRUE(made != first);
    TD_TRUE(td_prefill_readers_find(&readers, "0000000000000000") == first);
    TD_TRUE(td_prefill_readers_find(&readers, "0000000000000001") == NULL);
    for (int i = 0; i < TD_PREFILL_MAX_READERS; i++)
        readers.rows[i].n_prompts = 1;
    TD_EQ(TD_EXHAUSTED,
          td_prefill_readers_note(&readers, "ffffffffffffffff", "10.0.0.1:1", "-", &err));
    TD_TRUE(note(5000) == made); /* a known one needs no place */
}
