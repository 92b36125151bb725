/* input.h - what a command is given: a text from an argument or stdin, token ids as JSON. */
#ifndef TD_TOOLS_TANDEMCTL_INPUT_H
#define TD_TOOLS_TANDEMCTL_INPUT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The argument itself, or all of stdin for "-". Bytes as they are, NUL included; malloc'ed. false:
 * could not be read (told on stderr). */
bool ctl_read_text(const char *argument, char **text, size_t *n_bytes);
/* A JSON array of token ids: the argument itself when it begins with '[', stdin for "-", else the
 * file of that name. malloc'ed. false: told on stderr. */
bool ctl_read_ids(const char *argument, uint32_t **ids, size_t *n_ids);
#endif
