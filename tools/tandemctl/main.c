/* tandemctl - the operator's command line: one table of commands, every one of them asks the router
 * and nobody else. */
#include "common/base/log.h"
#include "common/base/version.h"
#include "tools/tandemctl/ctl.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_ROUTER "127.0.0.1:7400"

static const ctl_command *const commands[] = {
    &ctl_generate, &ctl_status,     &ctl_kv_links, &ctl_kv_transfers,
    &ctl_tokenize, &ctl_detokenize, &ctl_model,    &ctl_health,
};
enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static const ctl_option global_options[] = {
    {"router", CTL_STRING, offsetof(ctl, router), "HOST:PORT",
     "the router [TANDEM_ROUTER, else " DEFAULT_ROUTER "]"},
    {"json", CTL_FLAG, offsetof(ctl, json), NULL,
     "for machines: one JSON object; integers above 2^53 are strings"},
    {"timeout", CTL_MS, offsetof(ctl, timeout_ms), "TIME",
     "longest wait for the answer (500ms, 30s, 2m) [10s; generate: the router's]"},
    {"help", CTL_FLAG, offsetof(ctl, help), NULL, "this text; after a command: that command's"},
    {"version", CTL_FLAG, offsetof(ctl, version), NULL, "tandemctl's version"},
};
enum { N_GLOBAL = sizeof(global_options) / sizeof(global_options[0]) };

/* ---- help ---- */

static void print_exit_codes(FILE *out)
{
    fprintf(out, "\nExit status:\n");
#define CTL_EXIT_LINE(name, code, text) fprintf(out, "  %3d  %s\n", (code), (text));
    CTL_EXIT_MAP(CTL_EXIT_LINE)
#undef CTL_EXIT_LINE
    fprintf(out, "  %3d  interrupted by SIGINT (the request was cancelled); SIGTERM: %d\n",
            CTL_SIGNAL + SIGINT, CTL_SIGNAL + SIGTERM);
}

static void print_help(FILE *out)
{
    ctl_option_set global = {global_options, N_GLOBAL, NULL};
    fprintf(out, "Usage: tandemctl [options] COMMAND [options] [arguments]\n\nCommands:\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-14s %s\n", commands[i]->name, commands[i]->about);
    fprintf(out, "\nOptions, before or after the command:\n");
    ctl_options_help(&global, out);
    print_exit_codes(out);
}

static void print_command_help(const ctl_command *command)
{
    ctl_option_set own = {command->options, command->n_options, NULL};
    ctl_option_set global = {global_options, N_GLOBAL, NULL};
    printf("Usage: tandemctl %s [options] %s\n%s\n\n", command->name, command->arguments,
           command->about);
    if (own.n > 0) {
        printf("Options:\n");
        ctl_options_help(&own, stdout);
        printf("\n");
    }
    printf("Options of all commands:\n");
    ctl_options_help(&global, stdout);
    print_exit_codes(stdout);
}

/* ---- which command ---- */

/* Takes the command's word or words out of argv, wherever they stand between the options. NULL: no
 * such command; *word is what stands there, or NULL. */
static const ctl_command *take_command(int *argc, char **argv, const char **word)
{
    ctl_option_set global = {global_options, N_GLOBAL, NULL};
    int at = 1;
    while (at < *argc && argv[at][0] == '-')
        at += ctl_option_takes_next(&global, 1, argv[at]) ? 2 : 1;
    *word = at < *argc ? argv[at] : NULL;
    for (size_t i = 0; at < *argc && i < N_COMMANDS; i++) {
        const char *name = commands[i]->name;
        const char *space = strchr(name, ' ');
        size_t first = space != NULL ? (size_t)(space - name) : strlen(name);
        int n_words = space != NULL ? 2 : 1;
        if (strlen(argv[at]) != first || memcmp(argv[at], name, first) != 0)
            continue;
        if (space != NULL && (at + 1 >= *argc || strcmp(argv[at + 1], space + 1) != 0))
            continue;
        memmove(argv + at, argv + at + n_words, (size_t)(*argc - at - n_words + 1) * sizeof(*argv));
        *argc -= n_words;
        return commands[i];
    }
    return NULL;
}

static int no_command(ctl *c, const char *word, int argc, char **argv)
{
    ctl_option_set global = {global_options, N_GLOBAL, c};
    char why[200];
    if (!ctl_options_parse(&global, 1, argc, argv, 1, &c->args, why, sizeof(why)))
        return ctl_usage("%s", why);
    if (c->version) {
        printf("tandemctl %s\n", td_version());
        return ctl_flush();
    }
    if (c->help) {
        print_help(stdout);
        return ctl_flush();
    }
    if (word == NULL) {
        print_help(stderr);
        return CTL_USAGE;
    }
    if (strcmp(word, "kv") == 0)
        return ctl_usage("kv: what? There are `kv links` and `kv transfers`");
    return ctl_usage("unknown command %.100s (try --help)", word);
}

static int run_command(ctl *c, const ctl_command *command, int argc, char **argv)
{
    void *values = ctl_alloc(NULL, command->options_bytes + 1);
    memset(values, 0, command->options_bytes + 1);
    ctl_option_set sets[] = {{command->options, command->n_options, values},
                             {global_options, N_GLOBAL, c}};
    char why[200];
    int code;
    c->options = values;
    if (!ctl_options_parse(sets, 2, argc, argv, 1, &c->args, why, sizeof(why)))
        code = ctl_usage("%s: %s", command->name, why);
    else if (c->help) {
        print_command_help(command);
        code = ctl_flush();
    } else if (c->args.n > command->max_args) {
        code = ctl_usage("%s: %u arguments, at most %u: %s", command->name, c->args.n,
                         command->max_args, command->arguments);
    } else {
        if (c->timeout_ms == 0)
            c->timeout_ms = command->timeout_ms;
        code = command->run(c);
    }
    ctl_disconnect(c);
    free(values);
    return code;
}

int main(int argc, char **argv)
{
    ctl c = {.router = getenv("TANDEM_ROUTER")};
    const char *word;
    if (c.router == NULL || c.router[0] == '\0')
        c.router = DEFAULT_ROUTER;
    td_log_init("tandemctl", TD_LOG_ERROR, 0);
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a failed write, not a death */
    const ctl_command *command = take_command(&argc, argv, &word);
    return command != NULL ? run_command(&c, command, argc, argv)
                           : no_command(&c, word, argc, argv);
}
