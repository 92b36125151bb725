#include "tests/td_test.h"

#include "common/base/metrics.h"
#include "tests/common/base/td_hard.h"

#include <math.h>
#include <pthread.h>

TEST(the_text_is_what_prometheus_reads)
{
    td_metrics *registry;
    size_t n;
    TD_EQ(TD_OK, td_metrics_create(16, &registry, NULL));
    td_metric *busy =
        td_metrics_get(registry, TD_GAUGE, "tandem_kv_pages", "state=\"busy\"", "Pages.");
    td_metric *total =
        td_metrics_get(registry, TD_COUNTER, "tandem_requests_total", "", "Requests.");
    td_metric *idle =
        td_metrics_get(registry, TD_GAUGE, "tandem_kv_pages", "state=\"free\"", "Pages.");
    td_metric *rate = td_metrics_get(registry, TD_GAUGE, "tandem_rate", "", "Rate.");
    td_metric_set(busy, 3);
    td_metric_add(busy, -1);
    td_metric_set(idle, 40);
    td_metric_add(total, 7);
    td_metric_set_double(rate, 0.75);
    char *text = td_metrics_text(registry, &n);
    TD_STR("# HELP tandem_kv_pages Pages.\n# TYPE tandem_kv_pages gauge\n"
           "tandem_kv_pages{state=\"busy\"} 2\ntandem_kv_pages{state=\"free\"} 40\n"
           "# HELP tandem_requests_total Requests.\n# TYPE tandem_requests_total counter\n"
           "tandem_requests_total 7\n"
           "# HELP tandem_rate Rate.\n# TYPE tandem_rate gauge\ntandem_rate 0.75\n",
           text);
    TD_EQ(n, strlen(text));
    free(text);
    td_metrics_destroy(registry);
    td_metrics_destroy(NULL);
}

TEST(a_histogram_counts_cumulatively)
{
    td_metrics *registry;
    size_t n;
    TD_EQ(TD_OK, td_metrics_create(16, &registry, NULL));
    td_metric *wait =
        td_metrics_get(registry, TD_HISTOGRAM, "tandem_wait_seconds", "role=\"x\"", "Wait.");
    td_metric_observe(wait, 0.0005);
    td_metric_observe(wait, 0.001);
    td_metric_observe(wait, 0.3);
    td_metric_observe(wait, 1000);
    td_metric_observe(wait, NAN); /* dropped, like the next two */
    td_metric_observe(wait, -1);
    td_metric_observe(wait, INFINITY);
    TD_EQ(4, td_metric_value(wait));
    char *text = td_metrics_text(registry, &n);
    TD_TRUE(strstr(text, "tandem_wait_seconds_bucket{role=\"x\",le=\"0.001\"} 2\n") != NULL);
    TD_TRUE(strstr(text, "tandem_wait_seconds_bucket{role=\"x\",le=\"0.2\"} 2\n") != NULL);
    TD_TRUE(strstr(text, "tandem_wait_seconds_bucket{role=\"x\",le=\"0.5\"} 3\n") != NULL);
    TD_TRUE(strstr(text, "tandem_wait_seconds_bucket{role=\"x\",le=\"100\"} 3\n") != NULL);
    TD_TRUE(strstr(text, "tandem_wait_seconds_bucket{role=\"x\",le=\"+Inf\"} 4\n") != NULL);
    TD_TRUE(strstr(text, "tandem_wait_seconds_count{role=\"x\"} 4\n") != NULL);
    TD_TRUE(strstr(text, "tandem_wait_seconds_sum{role=\"x\"} 1000.3015\n") != NULL);
    free(text);
    td_metrics_destroy(registry);
}

TEST(the_same_name_and_labels_are_the_same_metric_and_a_full_registry_gives_none)
{
    td_metrics *registry;
    TD_EQ(TD_OK, td_metrics_create(2, &registry, NULL));
    td_metric *a = td_metrics_get(registry, TD_GAUGE, "a", "", "A.");
    TD_TRUE(a != NULL);
    TD_TRUE(td_metrics_get(registry, TD_GAUGE, "a", "x=\"1\"", "A.") != a);
    TD_TRUE(td_metrics_get(registry, TD_GAUGE, "a", "", "A.") == a);
    TD_TRUE(td_metrics_get(registry, TD_GAUGE, "b", "", "B.") == NULL);
    td_metric_add(NULL, 1);
    td_metric_set(NULL, 1);
    td_metric_set_double(NULL, 1);
    td_metric_observe(NULL, 1);
    TD_EQ(0, td_metric_value(NULL));
    td_metrics_destroy(registry);
}

static td_status use(void)
{
    td_metrics *registry;
    size_t n;
    td_status st = td_metrics_create(4, &registry, NULL);
    if (st != TD_OK)
        return st;
    char *text = NULL;
    if (td_metrics_get(registry, TD_GAUGE, "a", "", "A.") == NULL ||
        (text = td_metrics_text(registry, &n)) == NULL)
        st = TD_NOMEM;
    free(text);
    td_metrics_destroy(registry);
    return st;
}

TEST(each_allocation_may_fail)
{
    TD_EACH_ALLOC_FAILS(TD_NOMEM, use(), );
}

static void *work(void *arg)
{
    td_metric **metrics = arg;
    for (int i = 0; i < 20000; i++) {
        td_metric_add(metrics[0], 1);
        td_metric_observe(metrics[1], 0.01);
        td_metric_set_double(metrics[2], i);
    }
    return NULL;
}

TEST(threads_add_without_losing_any_while_the_text_is_made)
{
    td_metrics *registry;
    pthread_t threads[3];
    TD_EQ(TD_OK, td_metrics_create(4, &registry, NULL));
    td_metric *metrics[3] = {td_metrics_get(registry, TD_COUNTER, "a", "", "A."),
                             td_metrics_get(registry, TD_HISTOGRAM, "b", "", "B."),
                             td_metrics_get(registry, TD_GAUGE, "c", "", "C.")};
    for (int i = 0; i < 3; i++)
        TD_EQ(0, pthread_create(&threads[i], NULL, work, metrics));
    for (int i = 0; i < 20; i++) {
        size_t n;
        free(td_metrics_text(registry, &n));
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    TD_EQ(60000, td_metric_value(metrics[0]));
    TD_EQ(60000, td_metric_value(metrics[1]));
    TD_EQ(19999, td_metric_value(metrics[2]));
    td_metrics_destroy(registry);
}

TD_TEST_MAIN
