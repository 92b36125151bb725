#include "common/base/version.h"

#ifndef TD_VERSION
#define TD_VERSION "unknown"
#endif

const char *td_version(void)
{
    return TD_VERSION;
}
