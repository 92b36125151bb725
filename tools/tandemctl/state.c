/* tandemctl status, health, kv links, kv transfers: what the router and its workers say of
 * themselves. */
#include "proto/tandem/v1/admin.pb-c.h"
#include "tools/tandemctl/ctl.h"
#include "tools/tandemctl/json.h"
#include "tools/tandemctl/table.h"

#include <string.h>

#define TIMEOUT_MS 10000 /* a worker that does not answer costs a second */

typedef Tandem__V1__WorkerEntry worker_entry;
typedef Tandem__V1__WorkerStatus worker_status;

/* ---- status ---- */

static bool is_ready(const worker_entry *w)
{
    return w->reachable && w->status != NULL && strcmp(w->status->state, "ready") == 0;
}

static bool has_ready_pair(const Tandem__V1__GetStatusResponse *s)
{
    bool prefill = false, decode = false;
    for (size_t i = 0; i < s->n_workers; i++) {
        prefill |= is_ready(s->workers[i]) && strcmp(s->workers[i]->role, "prefill") == 0;
        decode |= is_ready(s->workers[i]) && strcmp(s->workers[i]->role, "decode") == 0;
    }
    return prefill && decode;
}

/* "1020 free, 4 held": free always, other states where there are any. */
static void pages_cell(ctl_table *t, const worker_status *s)
{
    char text[200] = "";
    size_t len = 0;
    for (size_t i = 0; s != NULL && i < s->n_pages; i++) {
        const Tandem__V1__PageCount *p = s->pages[i];
        if (p->pages == 0 && strcmp(p->state, "free") != 0)
            continue;
        len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%u %.20s", len > 0 ? ", " : "",
                                p->pages, p->state);
        if (len >= sizeof(text))
            break;
    }
    ctl_table_cell(t, "%s", text);
}

static void worker_row(ctl_table *t, const worker_entry *w)
{
    char unit[CTL_UNIT_BYTES];
    const worker_status *s = w->status;
    ctl_table_cell(t, "%s", w->role);
    ctl_table_cell(t, "%s", w->address);
    ctl_table_cell(t, "%s", !w->reachable ? "unreachable" : s != NULL ? s->state : "");
    if (s == NULL) {
        for (int i = 0; i < 5; i++)
            ctl_table_cell(t, "%s", "");
    } else {
        ctl_table_cell(t, "%u of %u", s->requests_active, s->max_requests);
        ctl_table_cell(t, "%u", s->requests_queued);
        ctl_table_cell(t, "%llu", (unsigned long long)s->tokens_active);
        pages_cell(t, s);
        ctl_table_cell(t, "%s", ctl_seconds(s->uptime_s, unit));
    }
    ctl_table_cell(t, "%s", ctl_seconds(w->heartbeat_age_s, unit));
    ctl_table_cell(t, "%s", s != NULL ? s->version : "");
    ctl_table_cell(t, "%s", s != NULL ? s->incarnation : "");
    ctl_table_cell(t, "%s", w->why);
}

static void print_status(const Tandem__V1__GetStatusResponse *s, const char *address)
{
    static const ctl_column columns[] = {
        {"ROLE", false},     {"ADDRESS", false}, {"STATE", false},       {"REQUESTS", true},
        {"QUEUED", true},    {"TOKENS", true},   {"PAGES", false},       {"UP", true},
        {"HEARTBEAT", true}, {"VERSION", false}, {"INCARNATION", false}, {"WHY", false},
    };
    char up[CTL_UNIT_BYTES];
    ctl_table t;
    if (s->router != NULL)
        printf("router %s: %s, up %s, %u requests active, %u of them queued, version %s, "
               "incarnation %s\n\n",
               address, s->router->state, ctl_seconds(s->router->uptime_s, up),
               s->router->requests_active, s->router->requests_queued, s->router->version,
               s->router->incarnation);
    ctl_table_init(&t, columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < s->n_workers; i++)
        worker_row(&t, s->workers[i]);
    ctl_table_print(&t);
    if (!has_ready_pair(s))
        printf("\ndegraded: there is no ready pair of a prefill and a decode daemon\n");
}

static int status(ctl *c)
{
    Tandem__V1__GetStatusResponse *s;
    td_client_error err;
    int code = ctl_connect(c);
    if (code != CTL_OK)
        return code;
    if (td_client_status(c->client, &s, &err) != TD_CLIENT_OK)
        return ctl_fail(c, &err);
    if (c->json)
        ctl_json_print(ctl_json_message(&s->base));
    else
        print_status(s, c->router);
    bool good = has_ready_pair(s);
    td_client_free_answer(s);
    code = ctl_flush();
    return code != CTL_OK ? code : good ? CTL_OK : CTL_DEGRADED;
}

/* ---- health ---- */

static int health(ctl *c)
{
    static const char *const names[] = {"UNKNOWN", "SERVING", "NOT_SERVING"};
    td_client_serving serving;
    td_client_error err;
    int code = ctl_connect(c);
    if (code != CTL_OK)
        return code;
    const char *service = c->args.n > 0 ? c->args.items[0] : "";
    if (td_client_health(c->client, service, &serving, &err) != TD_CLIENT_OK)
        return ctl_fail(c, &err);
    if (c->json) {
        cJSON *json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "service", ctl_json_text(service, strlen(service)));
        cJSON_AddItemToObject(json, "status", cJSON_CreateString(names[serving]));
        ctl_json_print(json);
    } else {
        printf("%s\n", names[serving]);
    }
    code = ctl_flush();
    return code != CTL_OK ? code : serving == TD_CLIENT_SERVING ? CTL_OK : CTL_DEGRADED;
}

/* ---- kv ---- */

/* Rows that are left out and workers that did not answer, after the rows of those that did. */
static int end_of_list(const ctl *c, size_t n_rows, uint32_t n_omitted, const char *what,
                       char **unreachable, size_t n)
{
    if (!c->json && n_rows == 0 && n_omitted == 0)
        printf("no %s\n", what);
    if (!c->json && n_omitted > 0)
        printf("%u more %s are not shown: an answer holds no more\n", n_omitted, what);
    int code = ctl_flush();
    for (size_t i = 0; !c->json && i < n; i++)
        fprintf(stderr, "tandemctl: not reached: %s\n", unreachable[i]);
    return code != CTL_OK ? code : n > 0 ? CTL_DEGRADED : CTL_OK;
}

static void link_row(ctl_table *t, const Tandem__V1__LinkEntry *e)
{
    char unit[CTL_UNIT_BYTES];
    const Tandem__V1__Link *l = e->link;
    if (l == NULL)
        return;
    ctl_table_cell(t, "%s", e->worker);
    ctl_table_cell(t, "%s", l->role);
    ctl_table_cell(t, "%s", l->peer);
    ctl_table_cell(t, "%u", l->peer_rank);
    ctl_table_cell(t, "%s", l->transport);
    ctl_table_cell(t, "%s", l->state);
    ctl_table_cell(t, "%s", ctl_seconds(l->age_s, unit));
    ctl_table_cell(t, "%s", ctl_bytes((double)l->bytes, unit));
    ctl_table_cell(t, "%s/s", ctl_bytes(l->rate_bytes_per_s, unit));
    ctl_table_cell(t, "%llu", (unsigned long long)l->gets);
    ctl_table_cell(t, "%u", l->gets_in_flight);
    ctl_table_cell(t, "%llu", (unsigned long long)l->failures);
    ctl_table_cell(t, "%llu", (unsigned long long)l->crc_mismatches);
    ctl_table_cell(t, "%llu", (unsigned long long)l->refetched_pages);
    ctl_table_cell(t, "%s", l->last_error);
}

static int kv_links(ctl *c)
{
    static const ctl_column columns[] = {
        {"WORKER", false}, {"ROLE", false},  {"PEER", false},       {"RANK", true},
        {"VIA", false},    {"STATE", false}, {"AGE", true},         {"BYTES", true},
        {"RATE", true},    {"GETS", true},   {"FLYING", true},      {"FAILED", true},
        {"BAD CRC", true}, {"AGAIN", true},  {"LAST ERROR", false},
    };
    Tandem__V1__ListLinksResponse *list;
    td_client_error err;
    ctl_table t;
    int code = ctl_connect(c);
    if (code != CTL_OK)
        return code;
    if (td_client_list_links(c->client, &list, &err) != TD_CLIENT_OK)
        return ctl_fail(c, &err);
    if (c->json) {
        ctl_json_print(ctl_json_message(&list->base));
    } else {
        ctl_table_init(&t, columns, sizeof(columns) / sizeof(columns[0]));
        for (size_t i = 0; i < list->n_links; i++)
            link_row(&t, list->links[i]);
        ctl_table_print(&t);
    }
    code = end_of_list(c, list->n_links, list->omitted, "links", list->unreachable,
                       list->n_unreachable);
    td_client_free_answer(list);
    return code;
}

typedef struct {
    bool live;
} transfers_options;

static const ctl_option transfers_table[] = {
    {"live", CTL_FLAG, offsetof(transfers_options, live), NULL, "only those that have not ended"},
};

static void transfer_row(ctl_table *t, const Tandem__V1__TransferEntry *e)
{
    char done[CTL_UNIT_BYTES], total[CTL_UNIT_BYTES];
    const Tandem__V1__Transfer *x = e->transfer;
    if (x == NULL)
        return;
    ctl_table_cell(t, "%s", e->worker);
    ctl_table_cell(t, "%s", x->role);
    ctl_table_cell(t, "%s", x->request_id);
    ctl_table_cell(t, "%s", x->peer);
    ctl_table_cell(t, "%s", x->stage);
    ctl_table_cell(t, "%s", ctl_seconds(x->age_s, done));
    ctl_table_cell(t, "%u of %u", x->pages, x->pages_total);
    ctl_table_cell(t, "%s of %s", ctl_bytes((double)x->bytes, done),
                   ctl_bytes((double)x->bytes_total, total));
    ctl_table_cell(t, "%s", x->error);
}

static int kv_transfers(ctl *c)
{
    static const ctl_column columns[] = {
        {"WORKER", false}, {"ROLE", false}, {"REQUEST", false}, {"PEER", false},  {"STAGE", false},
        {"AGE", true},     {"PAGES", true}, {"BYTES", true},    {"ERROR", false},
    };
    const transfers_options *o = c->options;
    Tandem__V1__ListTransfersResponse *list;
    td_client_error err;
    ctl_table t;
    int code = ctl_connect(c);
    if (code != CTL_OK)
        return code;
    if (td_client_list_transfers(c->client, o->live, &list, &err) != TD_CLIENT_OK)
        return ctl_fail(c, &err);
    if (c->json) {
        ctl_json_print(ctl_json_message(&list->base));
    } else {
        ctl_table_init(&t, columns, sizeof(columns) / sizeof(columns[0]));
        for (size_t i = 0; i < list->n_transfers; i++)
            transfer_row(&t, list->transfers[i]);
        ctl_table_print(&t);
    }
    code = end_of_list(c, list->n_transfers, list->omitted, "transfers", list->unreachable,
                       list->n_unreachable);
    td_client_free_answer(list);
    return code;
}

const ctl_command ctl_status = {
    .name = "status",
    .arguments = "",
    .about = "the router and its workers: state, load, pages, heartbeat",
    .timeout_ms = TIMEOUT_MS,
    .run = status,
};
const ctl_command ctl_health = {
    .name = "health",
    .arguments = "[SERVICE]",
    .about = "grpc.health.v1: SERVING when there is a ready pair",
    .max_args = 1,
    .timeout_ms = TIMEOUT_MS,
    .run = health,
};
const ctl_command ctl_kv_links = {
    .name = "kv links",
    .arguments = "",
    .about = "peer pairs: transport, bytes, rate, failures",
    .timeout_ms = TIMEOUT_MS,
    .run = kv_links,
};
const ctl_command ctl_kv_transfers = {
    .name = "kv transfers",
    .arguments = "",
    .about = "live and recent transfers, by stage and age",
    .options = transfers_table,
    .n_options = 1,
    .options_bytes = sizeof(transfers_options),
    .timeout_ms = TIMEOUT_MS,
    .run = kv_transfers,
};
