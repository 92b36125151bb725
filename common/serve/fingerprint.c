#include "common/serve/fingerprint.h"

#include <string.h>

void td_fingerprint_to_message(const td_fingerprint *fp, td_fingerprint_message *out)
{
    out->n = fp->n;
    for (uint32_t i = 0; i < fp->n; i++) {
        out->fields[i] = (Tandem__V1__FingerprintField)TANDEM__V1__FINGERPRINT_FIELD__INIT;
        out->fields[i].name = (char *)fp->fields[i].name;
        out->fields[i].value = (char *)fp->fields[i].value;
        out->pointers[i] = &out->fields[i];
    }
}

td_status td_fingerprint_from_message(Tandem__V1__FingerprintField *const *fields, size_t n,
                                      td_fingerprint *out, td_err *err)
{
    if (n > TD_FINGERPRINT_MAX)
        return td_fail(err, TD_PROTOCOL, "fingerprint of %zu fields, at most %d", n,
                       TD_FINGERPRINT_MAX);
    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < n; i++) {
        if (strlen(fields[i]->name) >= sizeof(out->fields[0].name) ||
            strlen(fields[i]->value) >= sizeof(out->fields[0].value))
            return td_fail(err, TD_PROTOCOL, "fingerprint: field %zu is too long", i);
        td_fingerprint_set(out, fields[i]->name, "%s", fields[i]->value);
    }
    return TD_OK;
}
