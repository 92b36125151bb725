/* xfer.h - draws KV pages and blobs out of other processes' memory, by gets that the reader posts;
 * the sole user of UCX. One td_xfer is one rank's end: a thread of its own that drives one UCX
 * worker and sleeps when nothing moves. It serves the regions that are marked so (prefill), opens
 * links to other ranks' td_xfers (decode), or both. Nobody writes into another process's memory: a
 * source sends the bytes of a get in pieces, and only the reader's own thread lays them down, where
 * and while it wants them.
 *
 * Threads: every function here is for the one thread that called create() (the daemon's loop).
 * Commands and events cross to the transfer thread as plain values over rings; `wake`
 * (uv_async_send) is called on the transfer thread whenever an event stands ready for
 * td_xfer_next(). Tables are of fixed size; after create() nothing is allocated.
 *
 * Ownership: from td_xfer_get() until its TD_XFER_JOB_DONE event the job's byte range of its local
 * slots belongs to the transfer thread. Whatever the event's status (done, damaged, cancelled,
 * late, peer lost): when it comes, no byte of that job arrives any more, and the slots may be given
 * to somebody else. */
#ifndef TD_TRANSFER_XFER_H
#define TD_TRANSFER_XFER_H
#include "common/base/ring.h"
#include "common/base/status.h"
#include "common/device/device.h"
#include "common/transfer/desc.h"
#include "common/transfer/fault.h"

#include <stddef.h>
#include <stdint.h>

#define TD_XFER_MAX_JOB_PAGES 8192U
#define TD_XFER_PEER_BYTES 64U      /* peer's name with its NUL; longer names are cut */
#define TD_XFER_TRANSPORT_BYTES 32U /* "posix", "tcp", "rc_mlx5" */

typedef struct td_xfer td_xfer;

/* Handles; generation 0 is none. A stale one is refused, never mistaken for its slot's next user.
 */
typedef struct {
    uint32_t slot, generation;
} td_xfer_link;
typedef struct {
    uint32_t slot, generation;
} td_xfer_job;

/* The knob's order: "auto|shm|tcp". */
typedef enum { TD_XFER_AUTO, TD_XFER_SHM, TD_XFER_TCP } td_xfer_transport;

/* How bytes of a device's regions get from and to other processes; the knob's order. AUTO: in place
 * where the device's memory is the host's, DIRECT where UCX reaches it, otherwise RING. RING: by a
 * ring of page-locked host memory, also where it need not be. DIRECT: UCX moves them from memory to
 * memory, or it is an error; what a peer does not send or take so goes by the ring all the same. */
typedef enum { TD_XFER_PATH_AUTO, TD_XFER_RING, TD_XFER_DIRECT } td_xfer_path;

/* Begins to compute, on the stream, the CRC32C of a range of each of n slots of region 0. slots and
 * crc are the device's memory, there until the stream has passed. */
typedef td_status (*td_xfer_crc)(void *arg, td_stream *stream, const int32_t *slots, uint32_t n,
                                 uint64_t offset, uint64_t n_bytes, uint32_t *crc);

/* By convention region 0 is the KV pool and region 1 the blobs; a region has the same index and
 * stride at both ends. */
enum { TD_XFER_PAGES, TD_XFER_BLOBS };
typedef struct {
    void *base; /* [n_slots, stride]; the caller's, alive until destroy() returned */
    uint64_t stride;
    uint32_t n_slots;
    int served; /* 1: others may read it */
} td_xfer_region;

typedef struct {
    td_xfer_transport
        transport; /* AUTO and SHM: shared memory or an error; AUTO between hosts: RDMA */
    int allow_tcp; /* AUTO: tcp is no error, neither within a host nor between hosts */
    /* "ADDRESS:PORT" or "[V6]:PORT" for readers, numeric; port 0: any; NULL: "127.0.0.1:0". Whoever
     * reaches it can read the served regions: it must be reachable from peers only. */
    const char *listen;
    const char *advertise; /* the descriptor's address; needed when listen is a wildcard and
                              something is served */
    const char
        *net_devices;       /* UCX's names, "eth0,eth1"; NULL: "lo" if listen is loopback, or any */
    const char *port_range; /* "7000-7100" for tcp's data ports; NULL: any */
    const char *incarnation; /* of this process, as in control messages; 1..63 bytes */
    uint32_t rank;
    const td_xfer_region *regions; /* [n_regions] */
    uint32_t n_regions;
    /* Regions whose bases are memory of this device, one bit each. NULL and 0: all are the host's,
     * read and written in place. The device outlives the td_xfer; its own stream is not used. */
    td_device *device;
    uint32_t device_regions;
    td_xfer_path path;
    td_xfer_crc crc; /* for DIRECT, with verify: checks pages where they are; transfer thread */
    void *crc_arg;
    /* 256 MiB; at least 1 MiB for each of max_readers where a region of the device is served, and
     * 256 KiB for each of max_links and one more where one is drawn into. */
    uint64_t ring_bytes;
    uint32_t max_links;     /* 64 that this end opens */
    uint32_t max_readers;   /* 64 that others open to this end */
    uint32_t max_jobs;      /* 1024 live at once */
    uint32_t max_pages;     /* 65536 pages in live jobs */
    uint32_t gets_per_link; /* 32 in flight */
    int verify;             /* 1: CRC32C of every page range */
    int64_t connect_ms;     /* 2000: no answer by then = the peer is lost */
    int64_t stall_ms;       /* 5000: gets out but none came back = try a fresh endpoint */
    td_ring_wake wake;      /* NULL: the caller polls td_xfer_next() */
    void *wake_arg;
    void (*on_thread)(void *arg); /* NULL, or runs first on the transfer thread (device context) */
    void *thread_arg;
} td_xfer_config;

/* The values named above; transport auto, verify on, every string NULL. */
void td_xfer_config_init(td_xfer_config *config);
/* Starts the thread, opens the worker; waits for both. TD_CONFIG: this machine lacks what the
 * configuration asks for, in words. The strings and regions array are not kept. */
td_status td_xfer_create(const td_xfer_config *config, td_xfer **out, td_err *err);
/* Force-closes every endpoint, ends the thread. Events not yet taken are lost. NULL is fine. */
void td_xfer_destroy(td_xfer *xfer);
/* What a reader needs to open a link to here; constant until destroy(). */
const unsigned char *td_xfer_descriptor(const td_xfer *xfer, size_t *n_bytes);
/* How bytes get from and to region 0: "in-place", by the "ring", or "direct". */
const char *td_xfer_kv_path(const td_xfer *xfer);

/* Source. Nothing of a slot can be read until it is published, nor after it is reclaimed: a get
 * names the generation that was announced to it, and is refused under any other. Calls for a region
 * that is not served do nothing. publish(): the slot's first n_bytes are final under this
 * generation (not 0), more of them with every call; readers' gets see what this thread, and those
 * it has synchronised with, wrote. Call it before announcing. reclaim(): the slot's next use
 * begins; a range under way ends with its next piece, what was sent before was read before what is
 * written next. */
void td_xfer_publish(td_xfer *xfer, uint32_t region, uint32_t slot, uint32_t generation,
                     uint64_t n_bytes);
void td_xfer_reclaim(td_xfer *xfer, uint32_t region, const uint32_t *slots, uint32_t n);

typedef struct {
    const unsigned char *desc; /* the peer's descriptor; not kept */
    size_t n_desc_bytes;
    const char *incarnation; /* what its control connection says; the descriptor must agree */
    const char *peer;        /* for errors and tables: "prefill-1" */
    uint64_t tag;            /* the caller's, handed back in events */
} td_xfer_link_args;

/* Checks the descriptor and begins to connect; jobs may be given at once. Exactly one
 * TD_XFER_LINK_DOWN follows sometime, before it perhaps a TD_XFER_LINK_UP. TD_PROTOCOL: bad
 * descriptor; TD_MISMATCH: incarnation, regions or strides differ; TD_FULL: no free link. A peer
 * that restarted needs a new link. */
td_status td_xfer_link_open(td_xfer *xfer, const td_xfer_link_args *args, td_xfer_link *out,
                            td_err *err);
/* Force-closes: its live jobs end with TD_PEER_LOST, then the link is down. Call it when heartbeats
 * fail, too. Stale handles are ignored. */
void td_xfer_link_close(td_xfer *xfer, td_xfer_link link);

typedef struct {
    uint32_t remote, local; /* slots */
    uint32_t generation;    /* of the remote slot, as announced */
    uint32_t crc32c;        /* of the range at the source */
    uint32_t number;        /* which of the request's pages it is; for errors only */
} td_xfer_page;

typedef struct {
    uint64_t tag; /* the caller's, back in the event and in tables: the request's number */
    uint32_t region;
    uint32_t n_pages;
    uint64_t offset, n_bytes;         /* range within each slot; not empty */
    uint32_t first_layer, last_layer; /* [first, last), for errors only */
    int64_t deadline_ns;              /* absolute, td_now_ns(); required */
    const td_xfer_page *pages;        /* [n_pages]; copied */
} td_xfer_get_args;

/* TD_OK: one TD_XFER_JOB_DONE follows. Refused: TD_FULL (as many live jobs or pages as there may
 * be: retry after an event), TD_PEER_LOST (stale link), TD_PROTOCOL (a remote slot or range that
 * the peer does not have), TD_INVALID. */
td_status td_xfer_get(td_xfer *xfer, td_xfer_link link, const td_xfer_get_args *args,
                      td_xfer_job *out, td_err *err);
/* The job ends soon, with TD_CANCELLED unless it had ended already. Stale handles are ignored. */
void td_xfer_cancel(td_xfer *xfer, td_xfer_job job);

typedef enum {
    TD_XFER_PAGE_MISSING, /* not fetched, or the job ended first */
    TD_XFER_PAGE_OK,
    TD_XFER_PAGE_REFETCHED, /* damaged on its way once; good now */
    TD_XFER_PAGE_DAMAGED,   /* twice */
} td_xfer_verdict;

typedef enum { TD_XFER_LINK_UP, TD_XFER_LINK_DOWN, TD_XFER_JOB_DONE } td_xfer_event_kind;

typedef struct {
    td_xfer_event_kind kind;
    td_status status; /* LINK_DOWN: TD_CANCELLED after link_close(), else why; JOB_DONE: TD_OK,
                         TD_DATA_LOSS (names page, layers and peer), TD_CANCELLED, TD_DEADLINE,
                         TD_PEER_LOST, TD_MISMATCH (the source has given a page up), TD_PROTOCOL */
    td_xfer_link link;
    td_xfer_job job; /* JOB_DONE */
    uint64_t tag;    /* the link's or the job's */
    uint32_t n_pages, n_refetched;
    uint64_t n_bytes;   /* verified; for TD_OK it is n_pages * range bytes */
    int64_t elapsed_ns; /* since td_xfer_get() or td_xfer_link_open() */
    const uint8_t
        *verdicts; /* JOB_DONE: [n_pages] td_xfer_verdict; valid until the next td_xfer_next() */
    char transport[TD_XFER_TRANSPORT_BYTES]; /* LINK_UP */
    td_err err;                              /* status < 0 */
} td_xfer_event;

/* Takes the next event; TD_EMPTY when there is none. A LINK_DOWN or JOB_DONE ends its handle. */
td_status td_xfer_next(td_xfer *xfer, td_xfer_event *out);

/* CRC32C of one slot's range, as the source announces it. */
uint32_t td_xfer_range_crc(const td_xfer_region *region, uint32_t slot, uint64_t offset,
                           uint64_t n_bytes);
/* Debug: replaces the fault in force. */
void td_xfer_set_fault(td_xfer *xfer, const td_xfer_fault *fault);
#endif
