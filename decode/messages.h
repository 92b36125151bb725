/* messages.h - what the loop and the engine thread of a decode daemon tell each other: plain values
 * without pointers, over rings. `owner` is the request's number in this process: a message about a
 * request that is gone is recognised. */
#ifndef TD_DECODE_MESSAGES_H
#define TD_DECODE_MESSAGES_H
#include "model/decode_step.h"

#include <stdint.h>

/* ---- loop to engine ---- */
typedef enum {
    TD_TO_ENGINE_JOIN,
    TD_TO_ENGINE_LEAVE,
    TD_TO_ENGINE_STOP,
    TD_TO_ENGINE_STEP, /* from rank 0 to the other ranks only (followers.h) */
} td_to_engine_kind;

typedef struct { /* JOIN: then uint32_t pages[n_pages] */
    uint32_t kind, slot;
    uint64_t owner;
    int32_t prompt_len, first_token, max_new_tokens;
    uint32_t max_drafts, n_pages;
    td_sampling sampling; /* forbid[]: ids that end the request */
} td_engine_command;

/* ---- engine to loop ---- */
typedef enum {
    TD_FROM_ENGINE_READY, /* boot is over, or failed: status and text */
    TD_FROM_ENGINE_STEP,  /* then td_engine_result[n] */
    TD_FROM_ENGINE_LEFT,  /* answer to LEAVE: the engine touches this request's pages no more */
    TD_FROM_ENGINE_FATAL, /* status and text */
} td_from_engine_kind;

typedef enum { TD_GOES_ON, TD_ENDED_STOP, TD_ENDED_LENGTH } td_ending;

typedef struct {
    uint64_t owner;
    uint32_t slot, n_tokens, n_drafted, n_accepted;
    uint32_t ending; /* td_ending; ended: the slot is free, the pages are touched no more */
    int32_t tokens[TD_DECODE_MAX_DRAFTS + 1]; /* [n_tokens] without the stop token */
} td_engine_result;

typedef struct {
    uint32_t kind;
    int32_t status; /* td_status */
    uint32_t slot, n;
    uint64_t owner;
    char text[256];
} td_engine_event;
#endif
