/* draw.h - one request's prompt: the Prefill stream, and the drawing of the pages it announces
 * while later layers compute. A page is taken over only when its bytes arrived for the right
 * request, the byte formula holds and every checksum matched. Loop thread. */
#ifndef TD_DECODE_DRAW_H
#define TD_DECODE_DRAW_H
#include "decode/request.h"

/* Asks the request's peer (it is up) to prefill; td_request_drawn() or td_request_fail() follows.
 */
void td_draw_start(td_requests *requests, td_request *r);
/* The request ends: no new get, the running ones end soon, the prefill may give its pages up. */
void td_draw_stop(td_requests *requests, td_request *r);
/* A JOB_DONE of the transfer layer; the request may be freed. */
void td_draw_on_job(td_requests *requests, const td_xfer_event *event);
/* There may be room in the transfer layer for gets that found it full. */
void td_draw_retry(td_requests *requests);
void td_draw_discard(td_request *r); /* frees what waits; the table is going away */
/* All bytes that a request draws: pages times the bytes of the planes sent, and the blob. */
uint64_t td_draw_bytes(const td_requests *requests, const td_request *r);
#endif
