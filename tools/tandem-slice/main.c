/* tandem-slice - writes a checkpoint with V3.2's shapes and random weights (model/slice.h). */
#include "common/base/clock.h"
#include "common/base/conf.h"
#include "common/device/device.h"
#include "model/slice.h"

#include <stdbool.h>
#include <stdio.h>

enum { EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT };

typedef struct {
    td_slice_spec slice;
    char *out;
    uint64_t shard_bytes;
    uint32_t threads;
    bool config_only;
} options;

#define KEY(key, member, def, min, max, help)                                                      \
    TD_CONF_FIELD(options, key, slice.member, U32, def, min, max, help),
static const td_conf_field fields[] = {
    TD_CONF_FIELD(options, "out", out, STR, NULL, NULL, NULL,
                  "the folder to write; made when missing"),
    TD_SLICE_KEYS(KEY) TD_CONF_FIELD(options, "shard-bytes", shard_bytes, BYTES, "4GiB", "1MiB",
                                     "1TiB", "size of a file, unless one tensor is larger"),
    TD_CONF_FIELD(options, "threads", threads, U32, "0", "0", "64",
                  "files written at a time; 0: one per CPU"),
    TD_CONF_FIELD(options, "config-only", config_only, BOOL, "false", NULL, NULL,
                  "config.json alone, for a router before workers with the same slice"),
};
#undef KEY

static const td_conf_spec spec = {
    .program = "tandem-slice",
    .about = "writes a checkpoint with DeepSeek-V3.2's shapes, few layers and random weights",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};

int main(int argc, char **argv)
{
    td_err err = {0};
    options o = {0};
    td_status st = td_conf_load(&spec, argc, argv, &o, &err);
    int64_t start = td_now_ns();
    if (st == TD_EMPTY)
        return EXIT_DONE;
    if (st == TD_OK)
        st = o.config_only ? td_slice_write_config(&o.slice, o.out, &err)
                           : td_slice_write(&o.slice, o.out, o.shard_bytes,
                                            o.threads > 0 ? o.threads : td_device_cpus(), &err);
    if (st == TD_OK)
        fprintf(stderr, "tandem-slice: %s written in %.1f s\n", o.out,
                (double)(td_now_ns() - start) * 1e-9);
    else
        fprintf(stderr, "tandem-slice: %s\n", err.text);
    td_conf_free(&spec, &o);
    return st == TD_OK ? EXIT_DONE
           : st == TD_CONFIG || st == TD_UNSUPPORTED || st == TD_PRECONDITION || st == TD_INVALID
               ? EXIT_BAD_INPUT
               : EXIT_FAILED;
}
