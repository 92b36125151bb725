/* clang-tidy-models.h - what the analyzer cannot know about functions whose bodies it does not see.
 * Only lint includes this (before everything else); it changes no meaning. */
#include "common/base/status.h"

#include <cjson/cJSON.h>

/* A failure is never TD_OK, and a failed assertion does not return (status.h says so). */
#define td_fail(err, st, ...)                                                                      \
    ({                                                                                             \
        (void)(td_fail)((err), (st), __VA_ARGS__);                                                 \
        if ((st) >= TD_OK)                                                                         \
            __builtin_unreachable();                                                               \
        (st);                                                                                      \
    })
#define td_fail_prefix(err, ...)                                                                   \
    ({                                                                                             \
        td_status td_st_ = (td_fail_prefix)((err), __VA_ARGS__);                                   \
        if (td_st_ >= TD_OK)                                                                       \
            __builtin_unreachable();                                                               \
        td_st_;                                                                                    \
    })

/* cJSON's questions are false for NULL. */
#define cJSON_IsString(item) ((item) != NULL && (cJSON_IsString)(item))
#define cJSON_IsNumber(item) ((item) != NULL && (cJSON_IsNumber)(item))
#define cJSON_IsArray(item) ((item) != NULL && (cJSON_IsArray)(item))
#define cJSON_IsObject(item) ((item) != NULL && (cJSON_IsObject)(item))
#define cJSON_IsBool(item) ((item) != NULL && (cJSON_IsBool)(item))
#define cJSON_IsTrue(item) ((item) != NULL && (cJSON_IsTrue)(item))

/* Some of the names that gcc 12 knows, clang 14 refuses. */
int td_cpu_may_have(const char *name);
#define __builtin_cpu_supports(name) td_cpu_may_have(name)
