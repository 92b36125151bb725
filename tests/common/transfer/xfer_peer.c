/* xfer_peer.c - the other process of the transfer tests (peer.h): a source that serves until its
 * stdin ends, or a reader that draws until it is killed. */
#include "common/base/clock.h"
#include "tests/common/transfer/lagging_device.h"
#include "tests/common/transfer/peer.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static td_xfer_region regions[2];
static td_device *device; /* of region 0, when the environment has XFER_TEST_RING */

static void die(const char *what)
{
    fprintf(stderr, "xfer_peer: %s\n", what);
    exit(3);
}

static td_xfer_transport transport_of(const char *name)
{
    for (int t = TD_XFER_AUTO; t <= TD_XFER_TCP; t++)
        if (strcmp(name, td_xfer_transport_name((td_xfer_transport)t)) == 0)
            return (td_xfer_transport)t;
    die("unknown transport");
    return TD_XFER_AUTO;
}

static td_xfer *open_xfer(const char *transport, const char *incarnation, const char *listen,
                          int served)
{
    static const struct {
        uint32_t n_slots, stride;
    } shape[2] = {{PEER_SLOTS, PEER_STRIDE}, {PEER_BLOBS, PEER_BLOB_BYTES}};
    for (uint32_t r = 0; r < 2; r++) {
        unsigned char *base = calloc(shape[r].n_slots, shape[r].stride);
        if (base == NULL)
            die("no memory");
        for (uint32_t slot = 0; served && slot < shape[r].n_slots; slot++)
            peer_fill(base + (size_t)slot * shape[r].stride, r, slot, shape[r].stride);
        regions[r] = (td_xfer_region){base, shape[r].stride, shape[r].n_slots, served};
    }
    td_xfer_config config;
    td_xfer_config_init(&config);
    config.transport = transport_of(transport);
    config.incarnation = incarnation;
    config.listen = listen;
    config.regions = regions;
    config.n_regions = 2;
    device = lagging_device_from_environment(&config);
    if (device != NULL) {
        config.max_readers = 12;
        config.max_links = 1;
        config.ring_bytes = served ? 12ULL << 20 : 512ULL << 10; /* no byte more than needed */
    }
    td_xfer *xfer;
    td_err err;
    if (td_xfer_create(&config, &xfer, &err) != TD_OK)
        die(err.text);
    for (uint32_t r = 0; r < 2; r++)
        for (uint32_t slot = 0; slot < shape[r].n_slots; slot++)
            td_xfer_publish(xfer, r, slot, PEER_GENERATION, shape[r].stride);
    return xfer;
}

static void close_xfer(td_xfer *xfer)
{
    td_xfer_destroy(xfer);
    lagging_device_close(device);
    free(regions[0].base);
    free(regions[1].base);
}

static void put(const void *bytes, size_t n_bytes)
{
    if (write(1, bytes, n_bytes) != (ssize_t)n_bytes)
        die("cannot write");
}

static void get(void *bytes, size_t n_bytes)
{
    if (read(0, bytes, n_bytes) != (ssize_t)n_bytes)
        die("cannot read");
}

static int serve(const char *transport, const char *incarnation, const char *listen)
{
    td_xfer *xfer = open_xfer(transport, incarnation, listen, 1);
    size_t n_bytes;
    const unsigned char *desc = td_xfer_descriptor(xfer, &n_bytes);
    put(&n_bytes, sizeof(n_bytes));
    put(desc, n_bytes);
    char command;
    while (read(0, &command, 1) == 1) {
        td_xfer_served_info info = td_xfer_served(xfer);
        put(&info, sizeof(info));
    }
    close_xfer(xfer);
    return 0;
}

static void check(const td_xfer_page *pages, uint32_t n)
{
    for (uint32_t p = 0; p < n; p++)
        for (uint64_t i = 0; i < PEER_STRIDE / 8; i += 64) {
            uint64_t want = peer_word(0, pages[p].remote, i), have;
            memcpy(&have,
                   (unsigned char *)regions[0].base + (size_t)pages[p].local * PEER_STRIDE + 8 * i,
                   8);
            if (want != have)
                die("wrong contents");
        }
}

static void draw(const char *transport, const char *incarnation)
{
    td_xfer *xfer = open_xfer(transport, "reader", NULL, 0);
    unsigned char desc[TD_XFER_MAX_DESC_BYTES], *expected = malloc(PEER_STRIDE);
    size_t n_bytes;
    td_xfer_page pages[PEER_SLOTS];
    td_xfer_link link;
    td_xfer_job job;
    td_err err;
    get(&n_bytes, sizeof(n_bytes));
    get(desc, n_bytes);
    td_xfer_link_args args = {
        .desc = desc, .n_desc_bytes = n_bytes, .incarnation = incarnation, .peer = "source"};
    if (expected == NULL || td_xfer_link_open(xfer, &args, &link, &err) != TD_OK)
        die(err.text);
    td_xfer_region one = {expected, PEER_STRIDE, 1, 0};
    for (uint32_t i = 0; i < PEER_SLOTS; i++) {
        pages[i].remote = (i * 29 + 7) % PEER_SLOTS;
        pages[i].local = (i * 41) % PEER_SLOTS;
        pages[i].generation = PEER_GENERATION;
        peer_fill(expected, 0, pages[i].remote, PEER_STRIDE);
        pages[i].crc32c = td_xfer_range_crc(&one, 0, 0, PEER_STRIDE);
    }
    td_xfer_get_args what = {.n_pages = PEER_SLOTS, .n_bytes = PEER_STRIDE, .pages = pages};
    for (;;) {
        td_xfer_event event;
        what.deadline_ns = td_now_ns() + 60 * TD_NS_PER_S;
        if (td_xfer_get(xfer, link, &what, &job, &err) != TD_OK)
            die(err.text);
        do {
            td_sleep_ms(1);
            while (td_xfer_next(xfer, &event) != TD_OK)
                td_sleep_ms(1);
            if (event.kind == TD_XFER_LINK_UP)
                put("g", 1);
            if (event.status != TD_OK)
                die(event.err.text);
        } while (event.kind != TD_XFER_JOB_DONE);
        check(pages, PEER_SLOTS);
    }
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies leaves nobody behind */
    if (argc == 5 && strcmp(argv[1], "source") == 0)
        return serve(argv[2], argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "reader") == 0)
        draw(argv[2], argv[3]);
    die("usage: xfer_peer source TRANSPORT INCARNATION LISTEN | reader TRANSPORT INCARNATION");
    return 3;
}
