/* The router's parts with too little memory at boot. */
#include "router/front.h"
#include "tests/common/base/td_hard.h"
#include "tests/td_test.h"

TD_TEST_MAIN

static td_loop *loop;
static td_metrics *metrics;
static bool closed;

static void on_closed(void *user)
{
    (void)user;
    closed = true;
}

static void close_registry(td_registry *registry)
{
    closed = false;
    td_registry_close(registry, on_closed, NULL);
    while (!closed)
        td_loop_run(loop);
}

static td_status open_registry(void)
{
    td_registry *registry;
    td_err err;
    td_registry_conf conf = {.loop = loop, .heartbeat_ms = 1000, .heartbeat_timeout_ms = 1000};
    td_status st = td_registry_create(&conf, &registry, &err);
    if (st != TD_OK)
        return st;
    st = td_registry_add(registry, TD_ROLE_DECODE, "127.0.0.1:1", &err);
    close_registry(registry);
    return st;
}

static td_status open_dispatch_and_front(void)
{
    td_dispatch *dispatch = NULL;
    td_front *front = NULL;
    td_err err;
    td_dispatch_conf conf = {.loop = loop, .metrics = metrics, .max_requests = 4};
    td_status st = td_dispatch_create(&conf, &dispatch, &err);
    if (st == TD_OK) {
        td_front_conf front_conf = {.loop = loop, .dispatch = dispatch, .metrics = metrics};
        st = td_front_create(&front_conf, &front, &err);
    }
    td_front_destroy(front);
    td_dispatch_destroy(dispatch);
    return st;
}

TEST(parts_survive_any_failed_allocation)
{
    td_err err;
    TD_EQ(TD_OK, td_loop_create(&loop, &err));
    TD_EQ(TD_OK, td_metrics_create(64, &metrics, &err));
    TD_EQ(TD_OK, open_dispatch_and_front()); /* the gauges stay: they are optional */
    TD_EACH_ALLOC_FAILS(TD_NOMEM, open_dispatch_and_front(), (void)0);
    TD_EACH_ALLOC_FAILS(TD_NOMEM, open_registry(), (void)0);
    td_loop_destroy(loop);
    td_metrics_destroy(metrics);
}
