#include "tests/model/golden_set.h"

#include "tests/model/compare.h"

#define QUANTISED_MEDIAN 1e-3
#define QUANTISED_KL 0.3
#define QUANTISED_TOP1 0.70

td_golden_set td_golden_open(const char *name)
{
    td_golden_set s = {0};
    char path[1200];
    snprintf(path, sizeof(path), "tests/golden/%s", name);
    snprintf(s.dir, sizeof(s.dir), "%s", td_source_path(path));
    snprintf(path, sizeof(path), "%s/golden.safetensors", s.dir);
    TD_EQ(TD_OK, td_safetensors_open(path, &s.golden, NULL));
    snprintf(path, sizeof(path), "%s/quantised.safetensors", s.dir);
    TD_EQ(TD_OK, td_safetensors_open(path, &s.quantised, NULL));
    const td_tensor *ids = td_need(s.golden, "input_ids"), *logits = td_need(s.golden, "logits");
    s.ids = (const int32_t *)(const void *)ids->data;
    s.n_ids = (uint32_t)ids->shape[0];
    s.vocab = (size_t)logits->shape[1];
    s.hidden = (size_t)td_need(s.golden, "hidden_final_norm")->shape[0];
    return s;
}

void td_golden_close(td_golden_set *s)
{
    td_safetensors_close(s->golden);
    td_safetensors_close(s->quantised);
}

const float *td_golden_floats(const td_safetensors *file, const char *name)
{
    return (const float *)(const void *)td_need(file, name)->data;
}

td_logits_result td_golden_run(const td_golden_set *s, td_logits_options o)
{
    td_logits_result r;
    td_err err = {0};
    o.model = s->dir;
    if (o.n_ranks == 0)
        o.n_ranks = 1;
    td_status st = td_logits_run(&o, s->ids, s->n_ids, &r, &err);
    if (st != TD_OK)
        fprintf(stderr, "%s\n", err.text);
    TD_EQ(TD_OK, st);
    return r;
}

td_logits_options td_golden_precise(void)
{
    return (td_logits_options){.precise = 1, .kv = TD_KV_F32, .generate = TD_GOLDEN_N_GREEDY};
}

void td_golden_check_precise(const td_golden_set *s, const td_logits_result *r, const char *what)
{
    size_t n = s->n_ids;
    double main = td_max_difference(td_golden_floats(s->golden, "logits"), r->logits, n * s->vocab);
    double mtp = td_max_difference(td_golden_floats(s->golden, "mtp_logits"), r->mtp_logits,
                                   (n - 1) * s->vocab);
    printf("%s: logits %.2e, mtp_logits %.2e\n", what, main, mtp);
    TD_TRUE(main <= TD_GOLDEN_PRECISE_BOUND);
    TD_TRUE(mtp <= TD_GOLDEN_PRECISE_BOUND);
    TD_EQ(TD_GOLDEN_N_GREEDY, r->n_generated);
    TD_MEM(td_need(s->golden, "greedy_ids")->data, r->generated,
           TD_GOLDEN_N_GREEDY * sizeof(int32_t));
}

static int contains(const int32_t *set_of, size_t n, int32_t x)
{
    for (size_t i = 0; i < n; i++)
        if (set_of[i] == x)
            return 1;
    return 0;
}

/* What the golden file says of the last row, layer by layer. */
void td_golden_check_last_row(const td_golden_set *s, const td_logits_result *r)
{
    size_t last = s->n_ids - 1, k = (size_t)r->config.index_topk;
    for (int32_t i = 0; i < r->config.n_layers; i++) {
        char name[64];
        snprintf(name, sizeof(name), "layer%d_out_last", i);
        TD_TRUE(td_max_difference(td_golden_floats(s->golden, name),
                                  r->layer_out[i] + last * s->hidden, s->hidden) <= 1e-3);
        snprintf(name, sizeof(name), "layer%d_selected_last", i);
        const int32_t *want = (const int32_t *)(const void *)td_need(s->golden, name)->data;
        const int32_t *got = r->selected[i] + last * k;
        for (size_t j = 0; j < k; j++) {
            TD_TRUE(contains(want, k, got[j]));
            TD_TRUE(j == 0 || got[j] > got[j - 1]);
        }
    }
    TD_TRUE(td_max_difference(td_golden_floats(s->golden, "hidden_final_norm"),
                              r->hidden + last * s->hidden, s->hidden) <= 1e-3);
    TD_TRUE(td_max_difference(td_golden_floats(s->golden, "mtp_hidden"),
                              r->mtp_hidden + (last - 1) * s->hidden, s->hidden) <= 1e-3);
}

void td_golden_check_quantised(const td_golden_set *s, const td_logits_result *r, size_t min_rows)
{
    size_t n = s->n_ids;
    const float *layer0 = td_golden_floats(s->quantised, "layer0_out");
    const float *want = td_golden_floats(s->quantised, "logits");
    const float *want_mtp = td_golden_floats(s->quantised, "mtp_logits");
    double median = td_median_error(layer0, r->layer_out[0], n * s->hidden);
    td_closeness main = td_compare_logits(want, r->logits, n, s->vocab);
    td_closeness mtp = td_compare_logits(want_mtp, r->mtp_logits, n - 1, s->vocab);
    size_t rows = td_equal_rows(want, r->logits, n, s->vocab, 1e-3);
    size_t mtp_rows = td_equal_rows(want_mtp, r->mtp_logits, n - 1, s->vocab, 1e-3);
    printf("layer 0 median %.1e; logits KL %.3f, top-1 %.3f, first %zu rows equal; mtp_logits KL "
           "%.3f, top-1 %.3f, first %zu rows equal\n",
           median, main.kl, main.top1, rows, mtp.kl, mtp.top1, mtp_rows);
    TD_TRUE(median < QUANTISED_MEDIAN);
    TD_TRUE(main.kl < QUANTISED_KL && main.top1 > QUANTISED_TOP1);
    TD_TRUE(mtp.kl < QUANTISED_KL && mtp.top1 > QUANTISED_TOP1);
    /* Until a rounding first falls the other way, everything is equal: no formula differs. */
    TD_TRUE(rows >= min_rows && mtp_rows >= min_rows);
}
