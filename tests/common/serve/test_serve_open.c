#include "tests/td_test.h"

#include "common/serve/ident.h"
#include "common/serve/serve.h"
#include "tests/common/base/td_hard.h"

static void never_drains(void *user)
{
    (void)user;
}

static void counts_exits(void *user, bool drained)
{
    (void)drained;
    ++*(int *)user;
}

static void counts_closes(void *user)
{
    ++*(int *)user;
}

/* A loop, a registry and what td_serve_open() needs of them. */
static td_loop *loop;
static td_metrics *metrics;
static int n_exits, n_closes;

static td_serve_conf prepare(void)
{
    TD_EQ(TD_OK, td_loop_create(&loop, NULL));
    TD_EQ(TD_OK, td_metrics_create(32, &metrics, NULL));
    td_serve_conf conf = {.loop = loop,
                          .metrics = metrics,
                          .drain_ms = 1000,
                          .on_drain = never_drains,
                          .on_exit = counts_exits,
                          .user = &n_exits};
    TD_EQ(TD_OK, td_listen_addr("admin", "127.0.0.1:0", false, &conf.admin, NULL));
    return conf;
}

static void clean_up(void)
{
    td_loop_destroy(loop);
    td_metrics_destroy(metrics);
}

TEST(only_what_another_configuration_mends_ends_with_2)
{
    TD_EQ(2, td_serve_exit_status(TD_CONFIG));
    TD_EQ(2, td_serve_exit_status(TD_INVALID));
    TD_EQ(1, td_serve_exit_status(TD_IO)); /* an address that is taken may be free soon */
    TD_EQ(1, td_serve_exit_status(TD_NOMEM));
    TD_EQ(2, td_serve_fatal_status(false, TD_CONFIG));
    TD_EQ(1, td_serve_fatal_status(true, TD_CONFIG));
    TD_EQ(1, td_serve_fatal_status(false, TD_UNSUPPORTED)); /* a GPU may come yet */
}

TEST(a_taken_admin_port_is_refused_with_the_address)
{
    td_serve_conf conf = prepare();
    td_serve *first, *second;
    td_err err;
    TD_EQ(TD_OK, td_serve_open(&conf, &first, NULL));
    conf.admin.port = td_serve_admin_port(first);
    TD_TRUE(td_serve_open(&conf, &second, &err) < 0);
    TD_TRUE(strstr(err.text, "127.0.0.1") != NULL);
    td_serve_close(first, counts_closes, &n_closes);
    td_loop_run(loop);
    TD_EQ(1, n_closes);
    clean_up();
}

TEST(closing_before_the_exit_is_announced_announces_none)
{
    td_serve_conf conf = prepare();
    td_serve *serve;
    TD_EQ(TD_OK, td_serve_open(&conf, &serve, NULL));
    td_serve_drain(serve);
    td_serve_drained(serve);
    td_serve_close(serve, counts_closes, &n_closes);
    td_serve_close(NULL, counts_closes, &n_closes);
    td_loop_run(loop);
    TD_EQ(0, n_exits);
    TD_EQ(1, n_closes);
    clean_up();
}

TEST(there_is_room_for_so_many_engines_and_no_more)
{
    td_serve_conf conf = prepare();
    td_serve *serve;
    TD_EQ(TD_OK, td_serve_open(&conf, &serve, NULL));
    for (int i = 0; i < TD_SERVE_MAX_ENGINES; i++)
        TD_TRUE(td_serve_add_engine(serve, "engine") != NULL);
    TD_TRUE(td_serve_add_engine(serve, "engine") == NULL);
    td_progress_tick(NULL);
    td_serve_close(serve, NULL, NULL);
    td_loop_run(loop);
    clean_up();
}

/* A metric that finds no memory is left out: that opens all the same. */
TEST(each_allocation_may_fail)
{
    td_serve_conf conf = prepare();
    td_serve *serve = NULL;
    long k = 1;
    for (;; k++) {
        td_fault_arm(k);
        td_status st = td_serve_open(&conf, &serve, NULL);
        bool struck = td_fault_disarm();
        TD_TRUE(st == TD_OK || (struck && st == TD_NOMEM));
        if (st == TD_OK) {
            td_serve_close(serve, NULL, NULL);
            td_loop_run(loop);
        }
        if (!struck)
            break;
    }
    TD_TRUE(k > 3);
    clean_up();
}

TD_TEST_MAIN
