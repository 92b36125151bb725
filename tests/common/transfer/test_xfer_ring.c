/* Pages in a device's memory: what is particular to the ring. The other claims about drawing hold
 * there, too: they run a second time, see CMakeLists.txt. */
#include "tests/common/transfer/lagging_device.h"
#include "tests/common/transfer/rig.h"
#include "tests/td_test.h"

#include <stdlib.h>

TD_TEST_MAIN

static void by_ring(rig *r, td_device *device)
{
    rig_init(r, "shm");
    r->config.device = device;
    r->config.device_regions = 1;
    r->config.path = TD_XFER_RING;
    r->config.max_links = 2;
}

TEST(a_ring_too_small_for_its_links_or_readers_is_refused)
{
    td_device *device = lagging_device_open(1, 0);
    rig r;
    td_err err;
    by_ring(&r, device);
    r.config.ring_bytes = 3 * (256U << 10) - 1;
    TD_EQ(TD_CONFIG, td_xfer_create(&r.config, &r.xfer, &err));
    TD_TRUE(strstr(err.text, "2 links and 0 readers need 786432 or more") != NULL);
    r.regions[0].served = 1;
    r.config.max_readers = 5;
    r.config.ring_bytes = (5U << 20) - 1;
    TD_EQ(TD_CONFIG, td_xfer_create(&r.config, &r.xfer, &err));
    TD_TRUE(strstr(err.text, "0 links and 5 readers need 5242880 or more") != NULL);
    r.config.ring_bytes++;
    TD_EQ(TD_OK, td_xfer_create(&r.config, &r.xfer, &err));
    TD_STR("ring", td_xfer_kv_path(r.xfer));
    rig_close(&r);
    lagging_device_close(device);
}

TEST(regions_of_no_device_are_refused)
{
    td_device *device = lagging_device_open(1, 0);
    rig r;
    td_err err;
    by_ring(&r, NULL);
    TD_EQ(TD_CONFIG, td_xfer_create(&r.config, &r.xfer, &err));
    r.config.device = device;
    r.config.device_regions = 4; /* there are two */
    TD_EQ(TD_CONFIG, td_xfer_create(&r.config, &r.xfer, &err));
    rig_close(&r);
    lagging_device_close(device);
}

TEST(memory_that_is_the_hosts_is_used_in_place)
{
    td_device *device = lagging_device_open(1, 0);
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, "shm", "inc-1", NULL);
    by_ring(&r, device);
    r.config.path = TD_XFER_PATH_AUTO;
    rig_open(&r);
    TD_STR("in-place", td_xfer_kv_path(r.xfer));
    td_xfer_link link = rig_up(&r, &source, "posix");
    rig_wish(&r, &j, 32, 0, 0, PEER_STRIDE, 20000);
    rig_get(&r, link, &j);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_OK, 20000);
    rig_check(&r, &j);
    TD_EQ(0, lagging_device_copies(device));
    rig_close(&r);
    lagging_device_close(device);
    peer_finish(&source);
}

/* The job's bytes came and were right; that they are not in the page is no success. */
TEST(a_copy_that_fails_ends_the_job_with_the_devices_error)
{
    td_device *device = lagging_device_open(2, 5);
    peer source;
    rig r;
    rig_job j;
    peer_start_source(&source, "shm", "inc-1", NULL);
    by_ring(&r, device);
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    rig_wish(&r, &j, 32, 0, 0, PEER_STRIDE, 20000);
    rig_get(&r, link, &j);
    rig_expect(&r, TD_XFER_JOB_DONE, TD_CUDA, 20000);
    rig_close(&r);
    lagging_device_close(device);
    peer_finish(&source);
}

/* Nothing is drawn into what others read. */
TEST(a_served_region_of_a_device_takes_no_pages)
{
    td_device *device = lagging_device_open(2, 0);
    peer source;
    rig r;
    rig_job j;
    td_err err;
    peer_start_source(&source, "shm", "inc-1", NULL);
    by_ring(&r, device);
    r.regions[0].served = 1;
    r.config.max_readers = 1;
    r.config.max_links = 4; /* 1 MiB is wanted, and there is a little more */
    rig_open(&r);
    td_xfer_link link = rig_up(&r, &source, "posix");
    rig_wish(&r, &j, 1, 0, 0, PEER_STRIDE, 20000);
    TD_EQ(TD_UNSUPPORTED, td_xfer_get(r.xfer, link, &j.args, &j.job, &err));
    rig_close(&r);
    lagging_device_close(device);
    peer_finish(&source);
}
