#include "common/kv/pool_metrics.h"

#include <stdio.h>

td_status td_kv_pool_metrics_init(td_kv_pool_metrics *m, td_metrics *registry, td_err *err)
{
    for (int s = 0; s < TD_PAGE_N_STATES; s++) {
        char label[40];
        snprintf(label, sizeof(label), "state=\"%s\"", td_page_state_name((td_page_state)s));
        m->pages[s] =
            td_metrics_get(registry, TD_GAUGE, "tandem_kv_pages", label, "KV pages by state");
        if (m->pages[s] == NULL)
            return td_fail(err, TD_NOMEM, "no room for the KV pool's gauges");
    }
    return TD_OK;
}

void td_kv_pool_metrics_update(const td_kv_pool_metrics *m, const td_kv_pool *pool)
{
    for (int s = 0; s < TD_PAGE_N_STATES; s++)
        td_metric_set(m->pages[s], td_kv_pool_count(pool, (td_page_state)s));
}
