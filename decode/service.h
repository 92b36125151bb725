/* service.h - tandem.v1.Decode: requests from the router are judged here. Loop thread. */
#ifndef TD_DECODE_SERVICE_H
#define TD_DECODE_SERVICE_H
#include "decode/request.h"

#define TD_DECODE_N_METHODS 1

typedef struct {
    td_serve *serve;
    td_decode_engine *engine;
    td_requests *requests; /* NULL until the engine is ready */
} td_decode_service;

/* service outlives the server. */
void td_decode_methods(td_decode_service *service, td_rpc_method *rows);
#endif
