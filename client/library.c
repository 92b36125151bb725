/* Part of libtandem.so only, which carries its own copy of the log: a library says nothing below an
 * error. A program that links td_client statically decides for itself. */
#include "common/base/log.h"

__attribute__((constructor)) static void quieten(void)
{
    td_log_init("libtandem", TD_LOG_ERROR, 0);
}
