/* tandemctl generate: text to stdout as it arrives, what it took to stderr at the end. */
#include "tools/tandemctl/ctl.h"
#include "tools/tandemctl/input.h"
#include "tools/tandemctl/json.h"
#include "tools/tandemctl/table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    const char *model, *ids, *request_id;
    ctl_u32 max_tokens, min_tokens, top_k;
    ctl_u64 seed;
    ctl_float temperature, top_p;
    ctl_strings stops;
    ctl_numbers stop_ids;
    bool ignore_eos, no_stats, print_ids;
} generate_options;

#define O(name, type, member, value, help)                                                         \
    {                                                                                              \
        name, CTL_##type, offsetof(generate_options, member), value, help                          \
    }

static const ctl_option options[] = {
    O("model", STRING, model, "NAME", "must be the one that is served"),
    O("max-tokens", U32, max_tokens, "N", "most tokens of the answer [the router's default]"),
    O("min-tokens", U32, min_tokens, "N", "no end and no stop before so many"),
    O("temperature", FLOAT, temperature, "T", "0: greedy; [1]"),
    O("top-p", FLOAT, top_p, "P", "a number in (0, 1]; [1]"),
    O("top-k", U32, top_k, "K", "0: off; [0]"),
    O("seed", U64, seed, "N", "same seed, same text [random]"),
    O("stop", STRINGS, stops, "TEXT", "ends before this text; may be repeated, up to 16"),
    O("stop-token-id", NUMBERS, stop_ids, "ID", "ends at this token; may be repeated"),
    O("ignore-eos", FLAG, ignore_eos, NULL, "the end-of-sequence token does not end it"),
    O("ids", STRING, ids, "FILE|JSON", "the prompt as token ids: a JSON array, or its file"),
    O("request-id", STRING, request_id, "ID", "stands in every log line [made by the router]"),
    O("print-ids", FLAG, print_ids, NULL, "token ids instead of text"),
    O("no-stats", FLAG, no_stats, NULL, "nothing on stderr when it went well"),
};
#undef O

typedef struct {
    ctl *c;
    bool print_ids;
    bool broken; /* stdout takes no more */
    char last;   /* byte written; 0: none */
    char *text;  /* [n_text] all of it, for --json */
    size_t n_text, text_capacity;
    uint32_t *ids; /* [n_ids] likewise */
    size_t n_ids, ids_capacity;
} printer;

/* ---- as it arrives ---- */

static void keep_text(printer *p, td_client_bytes text)
{
    if (text.n_bytes == 0)
        return;
    if (p->n_text + text.n_bytes > p->text_capacity) {
        p->text_capacity = 2 * (p->n_text + text.n_bytes);
        p->text = ctl_alloc(p->text, p->text_capacity);
    }
    memcpy(p->text + p->n_text, text.bytes, text.n_bytes);
    p->n_text += text.n_bytes;
}

static void keep_ids(printer *p, const uint32_t *ids, size_t n)
{
    if (n == 0)
        return;
    if (p->n_ids + n > p->ids_capacity) {
        p->ids_capacity = 2 * (p->n_ids + n);
        p->ids = ctl_alloc(p->ids, p->ids_capacity * sizeof(*p->ids));
    }
    memcpy(p->ids + p->n_ids, ids, n * sizeof(*ids));
    p->n_ids += n;
}

static bool on_piece(void *user, const td_client_piece *piece)
{
    printer *p = user;
    if (p->c->json) {
        keep_text(p, piece->text);
        keep_ids(p, piece->ids, piece->n_ids);
        return true;
    }
    if (p->print_ids) {
        for (size_t i = 0; i < piece->n_ids; i++, p->last = '0')
            printf("%s%u", p->last != 0 ? " " : "", piece->ids[i]);
    } else if (piece->text.n_bytes > 0) {
        fwrite(piece->text.bytes, 1, piece->text.n_bytes, stdout);
        p->last = piece->text.bytes[piece->text.n_bytes - 1];
    }
    p->broken = fflush(stdout) != 0 || ferror(stdout);
    return !p->broken;
}

/* ---- at the end ---- */

static double tokens_per_s(const td_client_result *r)
{
    double seconds = r->wall_s - r->ttft_s;
    return r->n_ids > 1 && seconds > 0 ? (double)(r->n_ids - 1) / seconds : 0.0;
}

/* The line on a terminal ends, and where both go to one place the figures get lines of their own;
 * text that goes to a file stays as it is. */
static void end_line(const printer *p, bool stats)
{
    struct stat out, err;
    if (p->last == 0 || p->last == '\n')
        return;
    bool same = fstat(STDOUT_FILENO, &out) == 0 && fstat(STDERR_FILENO, &err) == 0 &&
                out.st_dev == err.st_dev && out.st_ino == err.st_ino;
    if (isatty(STDOUT_FILENO) || p->print_ids)
        printf("\n");
    else if (same && stats)
        fprintf(stderr, "\n");
    fflush(stdout);
}

static void print_stats(const td_client_result *r)
{
    char a[CTL_UNIT_BYTES], b[CTL_UNIT_BYTES], c[CTL_UNIT_BYTES], d[CTL_UNIT_BYTES];
    fprintf(stderr, "-- first token %s, then %.1f tokens/s, %s in all\n", ctl_seconds(r->ttft_s, a),
            tokens_per_s(r), ctl_seconds(r->wall_s, b));
    fprintf(stderr, "-- %u prompt tokens, %u generated, %u drafted, %u accepted", r->prompt_tokens,
            r->generated_tokens, r->drafted_tokens, r->accepted_tokens);
    if (r->drafted_tokens > 0)
        fprintf(stderr, " (%.0f %%)", 100.0 * r->accepted_tokens / r->drafted_tokens);
    fprintf(stderr, "\n-- queue %s, prefill %s, transfer %s, first token %s\n",
            ctl_seconds(r->queue_s, a), ctl_seconds(r->prefill_s, b), ctl_seconds(r->transfer_s, c),
            ctl_seconds(r->first_token_s, d));
    fprintf(stderr, "-- finish: %s, request %s\n", r->finish_reason, r->request_id);
}

static void add_number(cJSON *json, const char *name, double value)
{
    cJSON_AddItemToObject(json, name, cJSON_CreateNumber(value));
}

static void add_string(cJSON *json, const char *name, const char *value)
{
    cJSON_AddItemToObject(json, name, ctl_json_text(value, strlen(value)));
}

static void print_json(const printer *p, const td_client_result *r, const td_client_error *err)
{
    cJSON *json = cJSON_CreateObject(), *usage = cJSON_CreateObject(),
          *timing = cJSON_CreateObject();
    add_string(json, "request_id", r->request_id);
    cJSON_AddItemToObject(json, "text", ctl_json_text(p->text, p->n_text));
    cJSON_AddItemToObject(json, "token_ids", ctl_json_ids(p->ids, p->n_ids));
    add_string(json, "finish_reason", r->finish_reason);
    add_number(usage, "prompt_tokens", r->prompt_tokens);
    add_number(usage, "generated_tokens", r->generated_tokens);
    add_number(usage, "drafted_tokens", r->drafted_tokens);
    add_number(usage, "accepted_tokens", r->accepted_tokens);
    cJSON_AddItemToObject(json, "usage", usage);
    add_number(timing, "queue_s", r->queue_s);
    add_number(timing, "prefill_s", r->prefill_s);
    add_number(timing, "transfer_s", r->transfer_s);
    add_number(timing, "first_token_s", r->first_token_s);
    add_number(timing, "total_s", r->total_s);
    cJSON_AddItemToObject(json, "timing", timing);
    add_number(json, "ttft_s", r->ttft_s);
    add_number(json, "wall_s", r->wall_s);
    add_number(json, "tokens_per_s", tokens_per_s(r));
    cJSON_AddItemToObject(json, "error", ctl_json_error(err));
    ctl_json_print(json);
}

static int report(printer *p, const td_client_result *r, const td_client_error *err, bool stats)
{
    int code = ctl_exit_code(err);
    if (p->broken)
        return ctl_flush();
    if (p->c->json) {
        print_json(p, r, err);
    } else {
        end_line(p, stats || code != CTL_OK);
        if (code != CTL_OK)
            return ctl_fail(p->c, err);
        if (stats)
            print_stats(r);
    }
    int flushed = ctl_flush();
    return code != CTL_OK ? code : flushed;
}

/* ---- the request ---- */

/* The prompt comes from the argument or from --ids, never both. An exit code. */
static int take_prompt(ctl *c, const generate_options *o, td_client_request *request)
{
    if ((c->args.n == 1) == (o->ids != NULL))
        return ctl_usage(o->ids != NULL ? "generate: a prompt and --ids, too"
                                        : "generate: a prompt is needed (- reads it from stdin)");
    if (o->ids != NULL) {
        uint32_t *ids;
        if (!ctl_read_ids(o->ids, &ids, &request->n_ids))
            return CTL_USAGE;
        request->ids = ids;
        return CTL_OK;
    }
    char *text;
    if (!ctl_read_text(c->args.items[0], &text, &request->text.n_bytes))
        return CTL_USAGE;
    request->text.bytes = text;
    return CTL_OK;
}

static int run(ctl *c)
{
    const generate_options *o = c->options;
    td_client_bytes stops[CTL_MAX_STRINGS];
    printer p = {.c = c, .print_ids = o->print_ids};
    td_client_request request = {
        .model = o->model,
        .has_temperature = o->temperature.given,
        .temperature = o->temperature.value,
        .has_top_p = o->top_p.given,
        .top_p = o->top_p.value,
        .has_top_k = o->top_k.given,
        .top_k = o->top_k.value,
        .has_seed = o->seed.given,
        .seed = o->seed.value,
        .has_max_tokens = o->max_tokens.given,
        .max_tokens = o->max_tokens.value,
        .min_tokens = o->min_tokens.value,
        .stops = stops,
        .n_stops = o->stops.n,
        .stop_ids = o->stop_ids.items,
        .n_stop_ids = o->stop_ids.n,
        .ignore_eos = o->ignore_eos,
        .request_id = o->request_id,
        .on_piece = on_piece,
        .user = &p,
    };
    for (uint32_t i = 0; i < o->stops.n; i++)
        stops[i] = (td_client_bytes){o->stops.items[i], strlen(o->stops.items[i])};
    td_client_result result;
    td_client_error err;
    int code = take_prompt(c, o, &request);
    if (code == CTL_OK)
        code = ctl_connect(c);
    if (code == CTL_OK) {
        td_client_generate(c->client, &request, &result, &err);
        code = report(&p, &result, &err, !o->no_stats);
    }
    free((char *)request.text.bytes);
    free((uint32_t *)request.ids);
    free(p.text);
    free(p.ids);
    return code;
}

const ctl_command ctl_generate = {
    .name = "generate",
    .arguments = "[PROMPT | -]",
    .about = "streams the continuation of a prompt",
    .options = options,
    .n_options = sizeof(options) / sizeof(options[0]),
    .options_bytes = sizeof(generate_options),
    .max_args = 1,
    .run = run,
};
