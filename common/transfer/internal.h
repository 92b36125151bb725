/* internal.h - what the files of common/transfer share. A td_xfer has two halves: the front belongs
 * to the thread that called create() (front.c, stats.c), the engine to the transfer thread
 * (engine.c, link.c, job.c, serve.c). They meet in two rings and in the atomics of td_link_shared
 * and td_job_shared, nowhere else. */
#ifndef TD_TRANSFER_INTERNAL_H
#define TD_TRANSFER_INTERNAL_H
#include "common/base/ring.h"
#include "common/transfer/stage.h"
#include "common/transfer/stats.h"
#include "common/transfer/ucx.h"
#include "common/transfer/wire.h"
#include "common/transfer/xfer.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#define TD_NONE UINT32_MAX /* no slot, no page */

/* ---- commands (front to engine) and events (engine to front): plain values ---- */

typedef enum {
    TD_CMD_OPEN,
    TD_CMD_CLOSE,
    TD_CMD_GET,
    TD_CMD_CANCEL,
    TD_CMD_FAULT,
    TD_CMD_STOP,
} td_cmd_kind;

typedef struct {
    td_cmd_kind kind;
    int same_host;
    td_xfer_link link;
    int64_t began_ns;
    td_xfer_desc desc;
    char peer[TD_XFER_PEER_BYTES];
} td_cmd_open;

typedef struct {
    td_cmd_kind kind;
    td_xfer_link link;
} td_cmd_close;

typedef struct {
    td_cmd_kind kind;
    td_xfer_job job;
    td_xfer_link link;
    uint32_t region, n_pages, first_layer, last_layer;
    uint64_t offset, n_bytes;
    int64_t deadline_ns, began_ns;
    td_xfer_page pages[]; /* [n_pages] */
} td_cmd_get;

typedef struct {
    td_cmd_kind kind;
    td_xfer_job job;
} td_cmd_cancel;

typedef struct {
    td_cmd_kind kind;
    td_xfer_fault fault;
} td_cmd_fault;

typedef struct {
    td_xfer_event_kind kind;
    td_status status;
    td_xfer_link link;
    td_xfer_job job;
    uint32_t n_pages, n_refetched;
    uint64_t n_bytes;
    int64_t elapsed_ns;
    char text[496];     /* status < 0: why; LINK_UP: the transport */
    uint8_t verdicts[]; /* [n_pages] */
} td_event_msg;

/* ---- read by the front, written by the engine ---- */

typedef struct {
    _Atomic uint32_t state; /* td_xfer_link_state */
    _Atomic uint32_t n_in_flight;
    _Atomic uint64_t n_bytes, n_gets, n_failed_gets, n_crc_mismatches, n_refetches, n_reconnects;
    _Atomic uint64_t bytes_per_s;
    _Atomic int64_t answer_ns, get_mean_ns, get_max_ns, moved_ns;
} td_link_shared;

typedef struct {
    _Atomic uint32_t stage; /* td_xfer_job_stage */
    _Atomic uint32_t n_pages_done;
} td_job_shared;

/* Somebody who is connected. The name is written before `slot_use` becomes odd, and stays until it
 * is even again. */
typedef struct {
    _Atomic uint32_t slot_use;
    _Atomic uint64_t name[TD_XFER_INCARNATION_BYTES / 8];
    _Atomic uint64_t n_pulls, n_bytes;
    _Atomic int64_t since_ns;
} td_reader_shared;

typedef struct {
    _Atomic uint32_t n_readers;
    _Atomic uint64_t n_welcomed, n_refused, n_pulls, n_bad_pulls, n_bytes, n_restarts;
} td_served_shared;

/* Of all links together, closed ones too. */
typedef struct {
    _Atomic uint64_t n_bytes, n_crc_mismatches, n_refetches, n_reconnects;
} td_drawn_shared;

/* One thread writes, the other reads: no read-modify-write is needed. */
#define TD_GET(a) atomic_load_explicit(&(a), memory_order_relaxed)
#define TD_SET(a, v) atomic_store_explicit(&(a), (v), memory_order_relaxed)
#define TD_ADD(a, d) TD_SET(a, TD_GET(a) + (d))

/* ---- the engine's tables ---- */

/* A page of a job. Pages of all jobs come from one pool of fixed size. */
typedef struct {
    uint32_t remote, local, generation, crc32c, number; /* see td_xfer_page */
    uint32_t next;                                      /* in the job's list, or in the free list */
    uint32_t next_again; /* in the job's list of pages to fetch again */
    uint16_t index;      /* in the job */
    uint8_t n_damaged;   /* times it arrived damaged */
    uint8_t verdict;     /* td_xfer_verdict */
} td_page;

typedef struct {
    int live;
    td_xfer_job handle;
    uint32_t link;
    uint32_t region, first_layer, last_layer;
    uint64_t offset, n_bytes;
    int64_t deadline_ns, began_ns;
    uint32_t n_pages, n_done, n_refetched, n_out; /* n_out: gets under way */
    uint32_t n_laying;
    uint64_t n_bytes_done;
    uint32_t first_page, cursor; /* list of all pages; the next one never asked for */
    uint32_t again;              /* list of pages to ask for again */
    int queued;                  /* in its link's queue: there is something to ask for */
    uint32_t queue_next;
    uint32_t live_next, live_prev; /* the engine's list of live jobs */
    /* It has ended, but copies into its pages may be under way: its event comes when they are over
     * (n_settled copies, see td_stage). */
    int ending;
    uint64_t n_settled;
    td_status end_status;
    int64_t ended_ns;
    char end_text[496];
} td_job;

/* A get under way. Its id on the wire is (generation << 32 | slot): what arrives for an older one
 * is dropped. */
typedef struct {
    int live;
    int stalled; /* fault: what arrives for it is swallowed */
    /* UCX fetches its range, or it is being checked where it lies. Its slot is not used again, its
     * page not fetched again, and its job's event not sent before that is over. */
    int is_laying, is_wanted_again;
    int is_forgotten;         /* within td_direct_forget() */
    struct td_engine *engine; /* for UCX's callback */
    uint8_t flip;             /* fault: its checksum is to be wrong */
    uint32_t attempt;         /* of the link, when it was asked */
    uint32_t next_to_check;
    uint32_t generation;
    uint32_t link, job, page;
    uint64_t n_got;
    uint32_t crc32c; /* of what it got */
    int64_t asked_ns, moved_ns;
    uint32_t next_free;
} td_get;

typedef struct {
    td_xfer_link handle;
    td_xfer_link_state state;
    struct td_engine *engine; /* for UCX's error handler */
    ucp_ep_h ep;              /* NULL: none */
    uint32_t attempt;         /* the current one's number */
    const char *broken;       /* not NULL: why; tended to outside of UCX's callbacks */
    int welcomed;             /* an answer stands in *welcome */
    td_wire_welcome welcome;
    td_xfer_desc desc;
    int same_host;
    char peer[TD_XFER_PEER_BYTES];
    td_wire_reader reader; /* what the source calls us */
    int is_shm, is_direct; /* direct: ranges are fetched from memory to memory */
    uint32_t piece_bytes;
    uint32_t queue_head, queue_tail; /* jobs with something to ask for, served in turn */
    uint32_t n_out;                  /* gets under way */
    uint64_t n_unacked_bytes;
    uint32_t n_breaks;            /* lately */
    int64_t broke_ns;             /* the last one */
    int64_t retry_ns, give_up_ns; /* ep == NULL: when to connect again; until when to try */
    int64_t began_ns, attempt_ns, answer_by_ns,
        moved_ns; /* moved: the last piece that came, or the first get asked */
    int64_t rate_since_ns;
    uint64_t rate_bytes;
    uint32_t fill;     /* the slot of the ring that its pieces are laid down in, or TD_STAGE_NONE */
    uint64_t fill_at;  /* where the slot's bytes belong in the range */
    uint32_t n_ending; /* jobs whose event waits for copies */
    int is_going;      /* closed, and its event waits for theirs */
    td_status going_status;
    char going_text[400];
} td_link;

typedef struct {
    uint64_t get_id;
    uint32_t region, slot, generation, piece_bytes;
    uint64_t offset, n_bytes, n_sent;
    uint64_t n_staged; /* of a device's region: on its way into the ring, or there, or sent */
    int is_direct;     /* it goes as one rendezvous */
} td_pull;

/* Somebody who reads from here. */
typedef struct {
    struct td_engine *engine;
    int live;
    uint32_t generation;
    ucp_ep_h ep; /* NULL once it is being closed */
    int broken, welcomed;
    td_wire_link link;       /* what the reader calls the connection */
    uint32_t n_out;          /* messages under way: the slot is free when there are none */
    uint64_t n_window_bytes; /* sent, not acknowledged */
    int64_t hello_by_ns;
    /* The ring's slots with what it gets next, in order, and how many they are. */
    uint32_t staged, last_staged, n_staged;
    uint32_t first_pull, n_pulls; /* ring */
    td_pull pulls[TD_WIRE_MAX_PULLS];
} td_reader;

/* Ranges of one job that were fetched into a device's pages and are being checked there. */
#define TD_CHECKS 8U
#define TD_CHECK_RANGES 64U
typedef struct {
    td_event *done;
    int32_t *slots, *device_slots; /* [TD_CHECK_RANGES] each; page-locked, and the device's */
    uint32_t *crc, *device_crc;
    uint32_t n; /* 0: free */
    uint32_t gets[TD_CHECK_RANGES];
} td_check;

typedef struct td_engine {
    td_ucx ucx;
    td_xfer_config config; /* strings are valid until the thread has started */
    td_xfer_region regions[TD_XFER_MAX_REGIONS];
    char incarnation[TD_XFER_INCARNATION_BYTES];
    struct sockaddr_storage listen;
    socklen_t listen_bytes;

    td_ring *commands, *events;
    int wake_fd;
    _Atomic int asleep;
    /* [n_slots] of each served region: generation << 32 | bytes that may be read; 0: none. The
     * owner's thread writes, see td_xfer_publish(). */
    _Atomic uint64_t *published[TD_XFER_MAX_REGIONS];
    _Atomic uint64_t n_rounds; /* of the thread's loop; see td_xfer_reclaim() */
    int stopping, want_restart;
    int64_t now_ns, next_timer_ns;
    int64_t busy_ns;               /* when something last moved */
    uint32_t n_arm_refused;        /* in a row, with nothing moving */
    uint64_t n_messages;           /* that arrived */
    uint64_t n_messages_refused;   /* the same, when UCX last refused to be armed */
    int64_t refused_ns, stuck_ns;  /* that time; for how long by now */
    uint64_t n_messages_restarted; /* when the worker was last restarted */
    int64_t restarted_ns, restart_apart_ns;

    td_link *links;      /* [max_links] */
    td_job *jobs;        /* [max_jobs] */
    td_page *pages;      /* [max_pages] */
    td_get *gets;        /* [max_links * gets_per_link] */
    td_reader *readers;  /* [max_readers] */
    td_event_msg *event; /* room for the largest event */
    uint32_t free_page, free_get, live_jobs;
    uint32_t n_gets;
    uint32_t n_attempts;
    td_stage stage;
    uint32_t n_ending; /* jobs, of all links */
    int is_direct;     /* UCX reaches the memory of the device's regions */
    td_stream *check_stream;
    void *check_memory, *check_device_memory;
    td_check checks[TD_CHECKS];
    uint32_t first_to_check, last_to_check; /* gets that were fetched, in order */
    uint32_t n_laying, n_checking;          /* gets; checks that are not free */

    td_xfer_fault fault;
    uint32_t fault_seen;
    uint32_t fault_page; /* page to damage again, or TD_NONE */

    td_link_shared *link_shared;     /* [max_links] */
    td_job_shared *job_shared;       /* [max_jobs] */
    td_reader_shared *reader_shared; /* [max_readers] */
    td_served_shared served;
    td_drawn_shared drawn;
} td_engine;

static inline int td_is_staged(const td_engine *engine, uint32_t region)
{
    return (engine->config.device_regions >> region & 1) != 0;
}

/* engine.c: the thread */
typedef struct {
    td_engine *engine;
    sem_t started;
    td_status status;
    td_err err;
} td_engine_start;
void *td_engine_main(void *start); /* td_engine_start * */
void td_engine_wake(void *engine); /* any thread */
void td_engine_push(td_engine *engine, const td_event_msg *event, size_t n_bytes);
void td_engine_timer(td_engine *engine, int64_t at_ns); /* run the timers by then */
/* Of the worker, when the loop comes round. 0: the last one is too recent. */
int td_engine_want_restart(td_engine *engine);

/* link.c */
td_status td_link_init_all(td_engine *engine, td_err *err); /* message handlers */
void td_link_open(td_engine *engine, const td_cmd_open *cmd);
void td_link_close(td_engine *engine, td_link *link);
unsigned td_link_tend(
    td_engine *engine); /* after progress: broken endpoints, answers, new gets; returns how much */
void td_link_timers(td_engine *engine);
void td_link_say_down(td_engine *engine, td_link *link); /* its last job has settled */
/* Around a restart of the worker: endpoints go, gets are asked again over new ones. */
void td_link_suspend_all(td_engine *engine);
void td_link_resume_all(td_engine *engine);
/* NULL: the transport is one that the configuration allows between these two; else why not. */
const char *td_link_judge_transport(const td_xfer_config *config, int same_host,
                                    const char *transport);
/* "prefill-1 rank 0" */
const char *td_link_name(const td_link *link, char out[TD_XFER_PEER_BYTES + 24]);

/* job.c */
td_status td_job_init_all(td_engine *engine, td_err *err);
void td_job_start(td_engine *engine, const td_cmd_get *cmd);
void td_job_end(td_engine *engine, td_job *job, td_status status, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void td_job_end_all(td_engine *engine, const td_link *link, td_status status, const char *why);
unsigned td_job_pump(td_engine *engine, td_link *link);    /* asks for pages while it may */
void td_job_requeue_all(td_engine *engine, td_link *link); /* its gets are void; ask again */
void td_job_timers(td_engine *engine);
unsigned td_job_settle(td_engine *engine); /* events of jobs whose last copies are over */

/* What is done to a get, by its id on the wire: job.c, arrive.c. */
uint64_t td_get_id(const td_engine *engine, const td_get *get);
/* After this, whatever arrives for it is dropped. */
void td_get_free(td_engine *engine, td_get *get);
void td_job_fetch_again(td_engine *engine, td_job *job, uint32_t page);
/* Of the slot that a link's pieces are laid down in: into the page, or nowhere (NULL). */
void td_link_empty_fill(td_engine *engine, td_link *link, void *to);
td_status td_arrive_init(td_engine *engine, td_err *err); /* message handlers */
td_get *td_get_find(td_engine *engine, uint64_t id, uint32_t link);
unsigned char *td_get_page(const td_engine *engine, const td_get *get); /* where its range lies */
void td_get_finish(td_engine *engine, td_get *get); /* n_got and crc32c are its range's */
void td_get_laid(td_engine *engine, td_get *get);   /* fetching and checking are over */
void td_get_again(td_engine *engine, td_get *get);  /* given up, and its page asked for again */
/* The fault that a test asked for, as a range begins to arrive; bytes NULL: they cannot be changed
 * here. 1: what came is swallowed. */
int td_get_fault(td_engine *engine, td_link *link, td_get *get, unsigned char *bytes);
void td_link_acknowledge(td_engine *engine, td_link *link, size_t n_bytes);

/* direct.c */
td_status td_direct_open(td_engine *engine, td_err *err);
void td_direct_close(td_engine *engine); /* zeroed or half-open is fine */
/* A rendezvous for this get has arrived; what the handler returns. */
ucs_status_t td_direct_fetch(td_engine *engine, td_link *link, td_get *get, void *data,
                             size_t n_bytes);
unsigned td_direct_tend(td_engine *engine); /* begins checks, and ends those that are over */
void td_direct_forget(td_engine *engine);   /* the worker is gone, and what it fetched */

/* serve.c */
td_status td_serve_init_all(td_engine *engine, td_err *err);
void td_serve_on_connect(ucp_conn_request_h request, void *engine);
unsigned td_serve_tend(td_engine *engine);
void td_serve_timers(td_engine *engine);
int td_serve_is_busy(const td_engine *engine);
int td_serve_close_all(td_engine *engine);   /* 1: nothing is left */
void td_serve_forget_all(td_engine *engine); /* the worker is gone */
#endif
