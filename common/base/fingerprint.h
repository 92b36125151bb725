/* fingerprint.h - what two processes compare before they trust each other's bytes: named fields
 * with short text values, compared one by one so that a refusal says what differs. */
#ifndef TD_BASE_FINGERPRINT_H
#define TD_BASE_FINGERPRINT_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

#define TD_FINGERPRINT_MAX 32

typedef struct {
    char name[32];
    char value[64];
} td_fingerprint_field;

/* Whoever fills one from a message sees to it that n is in bounds and that the texts end in NUL. */
typedef struct {
    uint32_t n;
    td_fingerprint_field fields[TD_FINGERPRINT_MAX]; /* [n] */
} td_fingerprint;

/* Appends a field, or replaces the one of that name. td_assert: room is left and the texts fit. */
void td_fingerprint_set(td_fingerprint *fp, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const char *td_fingerprint_get(const td_fingerprint *fp, const char *name); /* NULL: not there */

/* How many fields differ or stand on one side only. text[size] gets "name: ours X, theirs Y; .." as
 * far as it fits; ours and theirs may be in any order. */
uint32_t td_fingerprint_diff(const td_fingerprint *ours, const td_fingerprint *theirs, char *text,
                             size_t size);
#endif
