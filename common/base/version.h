/* version.h - which tandem this is: "0.1.0". */
#ifndef TD_BASE_VERSION_H
#define TD_BASE_VERSION_H

const char *td_version(void);
#endif
