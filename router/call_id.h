/* call_id.h - the id of a call to the router: the client's x-request-id or one that is made. The
 * answer carries it back, a refusal's, too. Loop thread. */
#ifndef TD_ROUTER_CALL_ID_H
#define TD_ROUTER_CALL_ID_H
#include "common/rpc/server.h"
#include "common/serve/ident.h"

/* Fills id in any case. TD_INVALID: the client's is not td_request_id_valid(), another was made. */
td_status td_call_id_take(td_rpc_call *call, char id[static TD_REQUEST_ID_MAX + 1], td_err *err);
/* The same for a call that has no use for the id. False: it was refused and is over. */
bool td_call_id_echo(td_rpc_call *call);
#endif
