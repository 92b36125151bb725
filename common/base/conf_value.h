/* conf_value.h - private to conf*.c: one knob's value from text or JSON, checked against its bounds
 * and stored. */
#ifndef TD_BASE_CONF_VALUE_H
#define TD_BASE_CONF_VALUE_H
#include "common/base/conf.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

#define TD_CONF_EXACT_MAX 9007199254740992.0 /* 2^53: larger integers travel as strings */

bool td_conf_is_number(td_conf_type type);
/* Digits alone, no unit. */
bool td_conf_parse_whole(const char *text, uint64_t *out);
/* Whether a value must be given: it has no default, and is text or a list with a least length. */
bool td_conf_is_required(const td_conf_field *field);
void *td_conf_member(const td_conf_field *field, void *conf);
/* Replace what the member held. The text of err names no knob: the caller puts it before. */
td_status td_conf_set_text(const td_conf_field *field, const char *text, void *conf, td_err *err);
td_status td_conf_set_json(const td_conf_field *field, const cJSON *item, void *conf, td_err *err);
/* 1-based line of text[offset]. */
int td_text_line(const char *text, size_t offset);
/* Past the JSON string whose opening quote stands at i; n if it has no end. */
size_t td_text_skip_string(const char *text, size_t n, size_t i);
#endif
