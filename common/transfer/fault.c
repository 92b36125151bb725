#include "common/transfer/fault.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *word;
    td_xfer_fault_kind kind;
    uint32_t max_times;
} kinds[] = {
    {"damage", TD_XFER_FAULT_DAMAGE, 2},
    {"stall", TD_XFER_FAULT_STALL, 1000000},
    {"break", TD_XFER_FAULT_BREAK, 1},
};

/* ":123" at *text; moves it behind. 0: it is not there, or out of bounds. */
static uint32_t take_number(const char **text, uint32_t max)
{
    if ((*text)[0] != ':' || (*text)[1] < '0' || (*text)[1] > '9')
        return 0;
    char *end;
    unsigned long long value = strtoull(*text + 1, &end, 10);
    *text = end;
    return value <= max ? (uint32_t)value : 0;
}

td_status td_xfer_fault_parse(const char *text, td_xfer_fault *out, td_err *err)
{
    td_xfer_fault fault = {TD_XFER_FAULT_NONE, 1, 1};
    if (text[0] == '\0' || strcmp(text, "none") == 0) {
        *out = fault;
        return TD_OK;
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        size_t n = strlen(kinds[i].word);
        if (strncmp(text, kinds[i].word, n) != 0)
            continue;
        const char *rest = text + n;
        fault.kind = kinds[i].kind;
        fault.nth = take_number(&rest, UINT32_MAX);
        if (rest[0] == ':')
            fault.times = take_number(&rest, kinds[i].max_times);
        if (fault.nth == 0 || fault.times == 0 || rest[0] != '\0')
            break;
        *out = fault;
        return TD_OK;
    }
    return td_fail(err, TD_INVALID,
                   "fault \"%s\": want none, damage:N[:2], stall:N[:TIMES] or break:N", text);
}
