/* service.h - tandem.v1.Prefill: the handshake with decode daemons, prompts, releases, leases. Loop
 * thread. */
#ifndef TD_PREFILL_SERVICE_H
#define TD_PREFILL_SERVICE_H
#include "prefill/prompt.h"

#define TD_PREFILL_N_METHODS 4

typedef struct {
    td_serve *serve;
    td_prefill_engine *engine;
    td_prompts *prompts; /* NULL until the engine is ready */
    const td_prefill_conf *conf;
    td_prefill_readers readers;
} td_prefill_service;

/* service outlives the server. */
void td_prefill_methods(td_prefill_service *service, td_rpc_method *rows);
#endif
