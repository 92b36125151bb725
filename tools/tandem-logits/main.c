#include "common/base/conf.h"
#include "model/safetensors.h"
#include "tools/tandem-logits/prompt.h"
#include "tools/tandem-logits/run.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT };
enum { KV_AUTO, KV_FP8, KV_BF16, KV_F32 };

typedef struct {
    char *model, *ids, *out;
    bool graphs, precise, draft_prenorm, dump_layers;
    int split, moe, kv, backend, comm;
    uint32_t ranks, tp, ranks_per_gpu, chunk, generate, drafts, threads, gpu;
} options;

#define F(name, member, type, def, min, max, help)                                                 \
    TD_CONF_FIELD(options, name, member, type, def, min, max, help)
static const td_conf_field fields[] = {
    F("model", model, STR, NULL, NULL, NULL, "checkpoint folder (config.json, *.safetensors)"),
    F("ids", ids, STR, NULL, NULL, NULL, "the prompt: a file with a JSON array of token ids"),
    F("out", out, STR, NULL, NULL, NULL, "the safetensors file to write"),
    F("backend", backend, ENUM, "cpu", "cpu|cuda", NULL,
      "what computes; cuda: GPUs of compute capability 9.0"),
    F("gpu", gpu, U32, "0", "0", "63",
      "with backend cuda: which of the visible GPUs; with several ranks the first one's"),
    F("ranks-per-gpu", ranks_per_gpu, U32, "1", "1", "64",
      "with backend cuda: ranks that share a GPU; rank r is on GPU gpu + r / ranks-per-gpu"),
    F("comm", comm, ENUM, "peer", "peer|nccl", NULL,
      "with backend cuda: how ranks reach each other; peer: GPUs read each other's memory"),
    F("graphs", graphs, BOOL, "true", NULL, NULL,
      "with backend cuda: decode steps are recorded and launched as one piece, where ranks can"),
    F("precise", precise, BOOL, "false", NULL, NULL,
      "compute in f32 without quantising (slow; for comparisons)"),
    F("ranks", ranks, U32, "1", "1", "64", "context-parallel ranks of the prompt's forward pass"),
    F("tp", tp, U32, "1", "1", "64",
      "tensor-parallel ranks of the continuation: each has a share of the heads and of every MLP"),
    F("split", split, ENUM, "round-robin", "round-robin|in-seq", NULL,
      "how the prompt's tokens are split over the ranks"),
    F("moe", moe, ENUM, "fused", "fused|ep", NULL,
      "fused: every rank has a slice of every expert; ep: whole experts, rows travel"),
    F("kv", kv, ENUM, "auto", "auto|fp8|bf16|f32", NULL,
      "KV cache format; auto: fp8, or f32 with precise"),
    F("draft-prenorm", draft_prenorm, BOOL, "false", NULL, NULL,
      "feed the draft layer the states before the final norm, not after it"),
    F("chunk", chunk, U32, "512", "64", "1048576",
      "most prompt tokens in a step, a multiple of 64; longer prompts go in chunks"),
    F("generate", generate, U32, "0", "0", "1048576",
      "tokens to continue the prompt with, greedily, not stopping at end-of-sequence ids"),
    F("drafts", drafts, U32, "0", "0", "8", "tokens that the draft layer proposes per step"),
    F("dump-layers", dump_layers, BOOL, "false", NULL, NULL,
      "also write every layer's output and selected positions"),
    F("threads", threads, U32, "0", "0", "1024",
      "CPU threads over all ranks, with backend cuda those that read the weights; 0: by the CPUs"),
};

static const td_conf_spec spec = {
    .program = "tandem-logits",
    .about = "runs a checkpoint over token ids and writes logits",
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
};

static td_tensor tensor(const char *name, td_st_dtype dtype, const void *data, size_t rows,
                        size_t cols)
{
    td_tensor t = {.name = name,
                   .dtype = dtype,
                   .n_dims = cols > 0 ? 2 : 1,
                   .shape = {(int64_t)rows, (int64_t)cols},
                   .data = data,
                   .n_bytes = rows * (cols > 0 ? cols : 1) * td_st_dtype_bytes(dtype)};
    return t;
}

static td_status write_result(const char *path, const td_logits_result *r, td_err *err)
{
    size_t n_layers = (size_t)r->config.n_layers, n = 0, s = r->n_ids;
    size_t v = (size_t)r->config.vocab_size, d = (size_t)r->config.hidden_size;
    td_tensor *tensors = calloc(3 + 2 * n_layers, sizeof(*tensors));
    char(*names)[64] = calloc(2 * n_layers, sizeof(*names));
    if (tensors == NULL || names == NULL) {
        free(tensors);
        free(names);
        return td_fail(err, TD_NOMEM, "no memory");
    }
    tensors[n++] = tensor("logits", TD_ST_F32, r->logits, s, v);
    if (r->mtp_logits != NULL)
        tensors[n++] = tensor("mtp_logits", TD_ST_F32, r->mtp_logits, s - 1, v);
    if (r->n_generated > 0)
        tensors[n++] = tensor("generated_ids", TD_ST_I32, r->generated, r->n_generated, 0);
    for (size_t i = 0; i < n_layers && r->layer_out != NULL; i++) {
        snprintf(names[2 * i], sizeof(*names), "layer%zu_out", i);
        snprintf(names[2 * i + 1], sizeof(*names), "layer%zu_selected", i);
        tensors[n++] = tensor(names[2 * i], TD_ST_F32, r->layer_out[i], s, d);
        tensors[n++] =
            tensor(names[2 * i + 1], TD_ST_I32, r->selected[i], s, (size_t)r->config.index_topk);
    }
    td_status st = td_safetensors_write(path, tensors, n, err);
    free(tensors);
    free(names);
    return st;
}

static void report(const td_logits_result *r)
{
    fprintf(stderr, "load %.2f s; prompt of %u tokens %.3f s (%.1f tokens/s)", r->load_s, r->n_ids,
            r->prefill_s, r->n_ids / r->prefill_s);
    if (r->n_generated > 1)
        fprintf(stderr,
                "; %u more tokens in %llu steps %.3f s (%.1f tokens/s), %llu of %llu drafts "
                "accepted",
                r->n_generated - 1, (unsigned long long)r->n_steps, r->decode_s,
                (r->n_generated - 1) / r->decode_s, (unsigned long long)r->n_accepted,
                (unsigned long long)r->n_drafted);
    if (r->graphs.n_graphs > 0)
        fprintf(stderr, "; %u steps recorded in %.2f s, %u operations, %.1f MiB",
                r->graphs.n_graphs, (double)r->graphs.took_ns * 1e-9, r->graphs.n_nodes,
                (double)r->graphs.n_bytes / 1048576.0);
    fprintf(stderr, "\n");
}

static int is_bad_input(td_status st)
{
    return st == TD_INVALID || st == TD_CONFIG || st == TD_UNSUPPORTED || st == TD_NOT_FOUND;
}

static td_status run(const options *o, td_logits_result *result, td_err *err)
{
    static const td_kv_dtype kv[] = {
        [KV_FP8] = TD_KV_FP8, [KV_BF16] = TD_KV_BF16, [KV_F32] = TD_KV_F32};
    int32_t *ids = NULL;
    uint32_t n_ids = 0;
    td_logits_options run_options = {.model = o->model,
                                     .precise = o->precise,
                                     .kv = o->kv != KV_AUTO ? kv[o->kv]
                                           : o->precise     ? TD_KV_F32
                                                            : TD_KV_FP8,
                                     .n_ranks = o->ranks,
                                     .tensor = o->tp,
                                     .split = o->split == 0 ? TD_CP_ROUND_ROBIN : TD_CP_IN_SEQ,
                                     .moe = o->moe == 0 ? TD_MOE_FUSED : TD_MOE_EP,
                                     .chunk = o->chunk,
                                     .generate = o->generate,
                                     .drafts = o->drafts,
                                     .n_threads = o->threads,
                                     .backend = o->backend == 0 ? TD_BACKEND_CPU : TD_BACKEND_CUDA,
                                     .gpu = o->gpu,
                                     .ranks_per_gpu = o->ranks_per_gpu,
                                     .comm = o->comm == 0 ? TD_COMM_PEER : TD_COMM_NCCL,
                                     .no_graphs = !o->graphs,
                                     .dump_layers = o->dump_layers,
                                     .draft_prenorm = o->draft_prenorm};
    td_status st = td_prompt_read(o->ids, &ids, &n_ids, err);
    if (st == TD_OK)
        st = td_logits_run(&run_options, ids, n_ids, result, err);
    if (st == TD_OK)
        st = write_result(o->out, result, err);
    free(ids);
    return st;
}

int main(int argc, char **argv)
{
    td_err err = {0};
    options o = {0};
    td_logits_result result = {0};
    td_status st = td_conf_load(&spec, argc, argv, &o, &err);
    if (st == TD_EMPTY)
        return EXIT_DONE;
    if (st == TD_OK)
        st = run(&o, &result, &err);
    if (st == TD_OK)
        report(&result);
    else
        fprintf(stderr, "tandem-logits: %s\n", err.text);
    td_logits_free(&result);
    td_conf_free(&spec, &o);
    return st == TD_OK ? EXIT_DONE : is_bad_input(st) ? EXIT_BAD_INPUT : EXIT_FAILED;
}
