/* fingerprint.h - a td_fingerprint as it travels in the handshake of prefill and decode. */
#ifndef TD_SERVE_FINGERPRINT_H
#define TD_SERVE_FINGERPRINT_H
#include "common/base/fingerprint.h"
#include "proto/tandem/v1/prefill.pb-c.h"

typedef struct { /* points into the fingerprint and into itself: neither moves */
    size_t n;
    Tandem__V1__FingerprintField fields[TD_FINGERPRINT_MAX];
    Tandem__V1__FingerprintField *pointers[TD_FINGERPRINT_MAX];
} td_fingerprint_message;

void td_fingerprint_to_message(const td_fingerprint *fp, td_fingerprint_message *out);
/* TD_PROTOCOL: too many fields, or one too long. */
td_status td_fingerprint_from_message(Tandem__V1__FingerprintField *const *fields, size_t n,
                                      td_fingerprint *out, td_err *err);
#endif
