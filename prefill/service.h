/* service.h - tandem.v1.Prefill: the handshake with decode daemons, prompts, releases, leases. Loop
 * thread. */
#ifndef TD_PREFILL_SERVICE_H
#define TD_PREFILL_SERVICE_H
#include "prefill/prompt.h"

#define TD_PREFILL_N_METHODS 4
#define TD_PREFILL_MAX_PEERS 64

typedef struct {
    char incarnation[TD_INCARNATION_BYTES]; /* "": free */
    char address[272];
    int64_t seen_ns;
    uint64_t n_prompts, n_pages; /* served to it, ever */
} td_decode_peer;

typedef struct {
    td_serve *serve;
    td_prefill_engine *engine;
    td_prompts *prompts; /* NULL until the engine is ready */
    const td_prefill_conf *conf;
    td_decode_peer peers[TD_PREFILL_MAX_PEERS];
} td_prefill_service;

/* service outlives the server. */
void td_prefill_methods(td_prefill_service *service, td_rpc_method *rows);
#endif
