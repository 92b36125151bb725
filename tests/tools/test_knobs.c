/* A knob that several programs have means the same in each: tandem-logits' knobs are the daemons'.
 */
#include "tests/td_test.h"

#include <stdbool.h>

TD_TEST_MAIN

typedef struct {
    char name[40], kind[80], bounds[120];
} knob;

typedef struct {
    knob rows[64];
    int n;
} knobs;

/* "  --kv auto|fp8   what it is; from 1 to 2 [1]": what --help says of each knob but its words and
 * its default. */
static knobs knobs_of(const char *program)
{
    knobs k = {.n = 0};
    char command[600], line[1000];
    snprintf(command, sizeof(command), "%s --help", program);
    FILE *help = popen(command, "r");
    TD_TRUE(help != NULL);
    while (fgets(line, sizeof(line), help) != NULL) {
        knob *row = &k.rows[k.n];
        memset(row, 0, sizeof(*row));
        if (sscanf(line, "  --%39s", row->name) != 1 || strstr(line, "--help") != NULL ||
            strcmp(row->name, "config") == 0 || strcmp(row->name, "print-config") == 0)
            continue;
        const char *kind = line + 4 + strlen(row->name) + 1;
        snprintf(row->kind, sizeof(row->kind), "%.*s", (int)strcspn(kind, " "), kind);
        const char *bounds = strstr(line, "; from ");
        if (bounds != NULL)
            snprintf(row->bounds, sizeof(row->bounds), "%.*s", (int)strcspn(bounds, "[("), bounds);
        TD_TRUE(++k.n < 64);
    }
    TD_EQ(0, pclose(help));
    TD_TRUE(k.n > 5);
    return k;
}

static const knob *find(const knobs *k, const char *name)
{
    for (int i = 0; i < k->n; i++)
        if (strcmp(k->rows[i].name, name) == 0)
            return &k->rows[i];
    return NULL;
}

TEST(tandem_logits_has_the_daemons_knobs_with_their_bounds)
{
    /* Its own: what a single run of a prompt needs; ranks are those of prefill, decode's are tp. */
    static const char *const own[] = {"ids", "out", "generate", "dump-layers", "tp"};
    knobs logits = knobs_of(TANDEM_LOGITS), prefill = knobs_of(TANDEM_PREFILL),
          decode = knobs_of(TANDEM_DECODE);
    int n_shared = 0;
    for (int i = 0; i < logits.n; i++) {
        const knob *ours = &logits.rows[i];
        const knob *theirs[] = {find(&prefill, ours->name), find(&decode, ours->name)};
        bool is_own = false;
        for (size_t j = 0; j < sizeof(own) / sizeof(own[0]); j++)
            is_own |= strcmp(ours->name, own[j]) == 0;
        if (is_own != (theirs[0] == NULL && theirs[1] == NULL))
            fail_msg("%s: %s", ours->name, is_own ? "a daemon's, too" : "no daemon has it");
        for (int j = 0; j < 2; j++) {
            if (theirs[j] == NULL)
                continue;
            TD_STR(theirs[j]->kind, ours->kind);
            TD_STR(theirs[j]->bounds, ours->bounds);
            n_shared++;
        }
    }
    TD_TRUE(n_shared >= 12);
}
