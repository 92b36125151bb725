/* ident.h - names that tandem makes for processes and requests, and which addresses it may listen
 * on. */
#ifndef TD_SERVE_IDENT_H
#define TD_SERVE_IDENT_H
#include "common/base/status.h"
#include "common/rpc/addr.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_INCARNATION_BYTES 17 /* 16 hex digits and NUL */
#define TD_REQUEST_ID_MAX 64    /* characters */

/* 64 random bits: a process that restarted behind the same address has another one. */
void td_incarnation_make(char out[static TD_INCARNATION_BYTES]);
bool td_incarnation_valid(const char *text); /* has the form of one */

/* A request id goes into every RPC and log line: 1 to TD_REQUEST_ID_MAX of letters, digits and
 * -_.:~/+@= */
bool td_request_id_valid(const char *text, size_t n);
void td_request_id_make(char out[static TD_REQUEST_ID_MAX + 1]); /* 32 hex digits */

/* Reads the address of a knob. TD_CONFIG: not an address, or neither loopback nor allowed to carry
 * prompts, texts and KV pages in plaintext. knob stands in the message. */
td_status td_listen_addr(const char *knob, const char *text, bool allow_plaintext, td_addr *out,
                         td_err *err);
/* Where ranks 0..n_ranks-1 serve their KV pages, from the knobs kv-listen (may be "") and listen;
 * *out is rank 0's, in digits: a host name is resolved, which may wait for a name server. TD_CONFIG
 * as above; also a wildcard, for readers are told where to connect. n_ranks 0: nothing is served,
 * and a wildcard will do. */
td_status td_kv_listen_addr(const char *kv_listen, const char *listen, bool allow_plaintext,
                            uint32_t n_ranks, td_addr *out, td_err *err);
/* Rank r's, as text. */
const char *td_kv_rank_addr(const td_addr *first, uint32_t rank, char out[static 272]);
#endif
