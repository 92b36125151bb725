/* reflection.h - grpc.reflection.v1 and v1alpha over the embedded descriptor set: list services, a
 * file by name, a file by symbol. proto3 files have no extensions: those of a message that is known
 * are an empty list, a file with one is NOT_FOUND. Loop thread. */
#ifndef TD_SERVE_REFLECTION_H
#define TD_SERVE_REFLECTION_H
#include "common/rpc/server.h"

#define TD_REFLECTION_N_METHODS 2

typedef struct td_reflection td_reflection;

/* services: the full names that list_services answers, constants. */
td_status td_reflection_create(const char *const *services, uint32_t n_services,
                               td_reflection **out, td_err *err);
void td_reflection_destroy(td_reflection *reflection); /* after the server is gone; NULL is fine */
void td_reflection_methods(td_reflection *reflection, td_rpc_method *rows);
#endif
