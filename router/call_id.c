#include "router/call_id.h"

#include "router/check.h"

td_status td_call_id_take(td_rpc_call *call, char id[static TD_REQUEST_ID_MAX + 1], td_err *err)
{
    td_status st = td_check_request_id(td_rpc_call_header(call, "x-request-id"), id, err);
    if (st != TD_OK)
        td_request_id_make(id);
    td_rpc_call_set_header(call, "x-request-id", id);
    return st;
}

bool td_call_id_echo(td_rpc_call *call)
{
    char id[TD_REQUEST_ID_MAX + 1];
    td_err err;
    if (td_call_id_take(call, id, &err) == TD_OK)
        return true;
    td_rpc_call_fail(call, &err);
    return false;
}
