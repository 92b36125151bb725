#include "tests/model/plain_model.h"

#include "model/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EPS 1e-6

typedef struct {
    const td_made_model *m;
    td_checkpoint *ckpt;
    int n;          /* rows */
    char layer[64]; /* prefix */
} pass;

static double *numbers(size_t n)
{
    double *x = calloc(n + 1, sizeof(*x));
    if (x == NULL)
        abort();
    return x;
}

static double element(const td_tensor *t, size_t i)
{
    const unsigned char *p = t->data;
    if (t->dtype == TD_ST_F8_E4M3) {
        int e = (p[i] >> 3) & 15, man = p[i] & 7;
        double v = e == 0 ? ldexp(man, -9) : ldexp(8 + man, e - 10);
        return p[i] & 0x80 ? -v : v;
    }
    uint32_t u = 0;
    float f;
    if (t->dtype == TD_ST_BF16) {
        u = (uint32_t)p[2 * i] << 16 | (uint32_t)p[2 * i + 1] << 24;
        memcpy(&f, &u, 4);
    } else {
        memcpy(&f, p + 4 * i, 4);
    }
    return f;
}

/* The tensor, times its block scales if it has any. */
static double *weight(const pass *p, const char *prefix, const char *name)
{
    char full[256], scale_name[300];
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", full);
    const td_tensor *t = td_checkpoint_find(p->ckpt, full);
    const td_tensor *s = td_checkpoint_find(p->ckpt, scale_name);
    if (t == NULL) {
        fprintf(stderr, "no tensor %s\n", full);
        abort();
    }
    size_t rows = (size_t)t->shape[0], cols = t->n_dims > 1 ? (size_t)t->shape[1] : 1;
    double *w = numbers(rows * cols);
    for (size_t i = 0; i < rows * cols; i++) {
        w[i] = element(t, i);
        if (s != NULL)
            w[i] *= element(s, i / cols / 128 * (size_t)s->shape[1] + i % cols / 128);
    }
    return w;
}

/* y [n, out] = x [n, in] w^T */
static double *product(const pass *p, const char *prefix, const char *name, const double *x, int in,
                       int out)
{
    double *w = weight(p, prefix, name), *y = numbers((size_t)p->n * (size_t)out);
    for (int t = 0; t < p->n; t++)
        for (int o = 0; o < out; o++)
            for (int i = 0; i < in; i++)
                y[t * out + o] += x[t * in + i] * w[o * in + i];
    free(w);
    return y;
}

static double *rms(const pass *p, const char *prefix, const char *name, const double *x, int dim,
                   int stride)
{
    double *w = weight(p, prefix, name), *y = numbers((size_t)p->n * (size_t)dim);
    for (int t = 0; t < p->n; t++) {
        double sum = 0;
        for (int i = 0; i < dim; i++)
            sum += x[t * stride + i] * x[t * stride + i];
        for (int i = 0; i < dim; i++)
            y[t * dim + i] = w[i] * x[t * stride + i] / sqrt(sum / dim + EPS);
    }
    free(w);
    return y;
}

/* In place, mean and variance over dim. */
static void layer_norm(const pass *p, double *x, int dim)
{
    double *w = weight(p, p->layer, "self_attn.indexer.k_norm.weight");
    double *b = weight(p, p->layer, "self_attn.indexer.k_norm.bias");
    for (int t = 0; t < p->n; t++) {
        double mean = 0, var = 0, *row = x + t * dim;
        for (int i = 0; i < dim; i++)
            mean += row[i] / dim;
        for (int i = 0; i < dim; i++)
            var += (row[i] - mean) * (row[i] - mean) / dim;
        for (int i = 0; i < dim; i++)
            row[i] = (row[i] - mean) / sqrt(var + EPS) * w[i] + b[i];
    }
    free(w);
    free(b);
}

/* Turns x[0..rope-1]; the made files' YaRN: factor 4 over 256 positions, betas 32 and 1. */
static void rope(const td_made_model *m, double *x, int position, int interleaved)
{
    const double pi = 3.14159265358979323846, theta = 10000;
    int half = m->rope / 2;
    double low = floor(m->rope * log(256 / (32 * 2 * pi)) / (2 * log(theta)));
    double high = ceil(m->rope * log(256 / (1 * 2 * pi)) / (2 * log(theta)));
    low = low < 0 ? 0 : low;
    high = high > m->rope - 1 ? m->rope - 1 : high;
    for (int i = 0; i < half; i++) {
        double f = pow(theta, -2.0 * i / m->rope);
        double ramp = low == high ? (i > low) : (i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        if (m->yarn)
            f = f / 4 * ramp + f * (1 - ramp);
        double *a = interleaved ? &x[2 * i] : &x[i], *b = interleaved ? a + 1 : &x[i + half];
        double c = cos(position * f), s = sin(position * f), u = *a;
        *a = u * c - *b * s;
        *b = u * s + *b * c;
    }
}

/* chosen[t * n + s]: row t attends to position s. */
static char *choose(const pass *p, const double *x, const double *qr)
{
    const td_made_model *m = p->m;
    int n = p->n, heads = m->index_heads, dim = m->index_dim;
    char prefix[100], *chosen = calloc((size_t)n * (size_t)n, 1);
    snprintf(prefix, sizeof(prefix), "%sself_attn.indexer.", p->layer);
    double *q = product(p, prefix, "wq_b.weight", qr, m->q_lora, heads * dim);
    double *k = product(p, prefix, "wk.weight", x, m->hidden, dim);
    double *w = product(p, prefix, "weights_proj.weight", x, m->hidden, heads);
    layer_norm(p, k, dim);
    for (int t = 0; t < n; t++) {
        rope(m, k + t * dim, t, m->indexer_interleaved);
        for (int h = 0; h < heads; h++)
            rope(m, q + (t * heads + h) * dim, t, m->indexer_interleaved);
    }
    double *score = numbers((size_t)n);
    for (int t = 0; t < n; t++) {
        for (int s = 0; s <= t; s++) {
            score[s] = 0;
            for (int h = 0; h < heads; h++) {
                double dot = 0;
                for (int i = 0; i < dim; i++)
                    dot += q[(t * heads + h) * dim + i] * k[s * dim + i];
                score[s] += (dot > 0 ? dot : 0) * w[t * heads + h] / sqrt((double)heads * dim);
            }
        }
        for (int j = 0; j < m->index_topk && j <= t; j++) {
            int best = -1;
            for (int s = 0; s <= t; s++)
                if (!chosen[t * n + s] && (best < 0 || score[s] > score[best]))
                    best = s;
            chosen[t * n + best] = 1;
        }
    }
    free(q);
    free(k);
    free(w);
    free(score);
    return chosen;
}

/* One head of row t over the chosen rows: o [v]. */
static void head_of(const pass *p, int t, const double *q, const double *c, const double *k_pe,
                    const double *w, const char *chosen, double *o)
{
    const td_made_model *m = p->m;
    double mscale = m->yarn ? 0.1 * log(4) + 1 : 1, sum = 0, most = -INFINITY;
    double *s = numbers((size_t)p->n);
    for (int j = 0; j <= t; j++) {
        for (int i = 0; i < m->nope && chosen[j]; i++)
            for (int l = 0; l < m->kv_lora; l++)
                s[j] += q[i] * w[i * m->kv_lora + l] * c[j * m->kv_lora + l];
        for (int i = 0; i < m->rope; i++)
            s[j] += q[m->nope + i] * k_pe[j * m->rope + i];
        s[j] *= mscale * mscale / sqrt((double)(m->nope + m->rope));
        most = chosen[j] && s[j] > most ? s[j] : most;
    }
    for (int j = 0; j <= t; j++) {
        s[j] = chosen[j] ? exp(s[j] - most) : 0;
        sum += s[j];
    }
    for (int i = 0; i < m->v; i++)
        for (int j = 0; j <= t; j++)
            for (int l = 0; l < m->kv_lora && s[j] > 0; l++)
                o[i] += s[j] / sum * w[(m->nope + i) * m->kv_lora + l] * c[j * m->kv_lora + l];
    free(s);
}

static double *attention(const pass *p, const double *x)
{
    const td_made_model *m = p->m;
    int n = p->n, q_dim = m->nope + m->rope, heads = m->heads, lat = m->kv_lora + m->rope;
    char prefix[100];
    snprintf(prefix, sizeof(prefix), "%sself_attn.", p->layer);
    double *qa = product(p, prefix, "q_a_proj.weight", x, m->hidden, m->q_lora);
    double *qr = rms(p, prefix, "q_a_layernorm.weight", qa, m->q_lora, m->q_lora);
    double *q = product(p, prefix, "q_b_proj.weight", qr, m->q_lora, heads * q_dim);
    double *kv = product(p, prefix, "kv_a_proj_with_mqa.weight", x, m->hidden, lat);
    double *c = rms(p, prefix, "kv_a_layernorm.weight", kv, m->kv_lora, lat);
    double *w = weight(p, prefix, "kv_b_proj.weight"), *k_pe = numbers((size_t)(n * m->rope));
    double *o = numbers((size_t)(n * heads * m->v));
    char *chosen = choose(p, x, qr);
    for (int t = 0; t < n; t++) {
        memcpy(k_pe + t * m->rope, kv + t * lat + m->kv_lora, (size_t)m->rope * sizeof(double));
        rope(m, k_pe + t * m->rope, t, 1);
        for (int h = 0; h < heads; h++) {
            double *one = q + (t * heads + h) * q_dim;
            rope(m, one + m->nope, t, 1);
            head_of(p, t, one, c, k_pe, w + h * (m->nope + m->v) * m->kv_lora, chosen + t * n,
                    o + (t * heads + h) * m->v);
        }
    }
    double *y = product(p, prefix, "o_proj.weight", o, heads * m->v, m->hidden);
    free(qa);
    free(qr);
    free(q);
    free(kv);
    free(c);
    free(w);
    free(k_pe);
    free(o);
    free(chosen);
    return y;
}

/* y += mlp(x) */
static void mlp(const pass *p, const char *name, const double *x, int width, double *y)
{
    char prefix[128];
    int d = p->m->hidden;
    snprintf(prefix, sizeof(prefix), "%smlp.%s", p->layer, name);
    double *gate = product(p, prefix, "gate_proj.weight", x, d, width);
    double *up = product(p, prefix, "up_proj.weight", x, d, width);
    for (int i = 0; i < p->n * width; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    double *out = product(p, prefix, "down_proj.weight", gate, width, d);
    for (int i = 0; i < p->n * d; i++)
        y[i] += out[i];
    free(gate);
    free(up);
    free(out);
}

static int largest(const double *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

/* share[e]: the weight of expert e, from its sigmoid s and its biased score. */
static void gate_row(const td_made_model *m, const double *s, double *biased, double *share)
{
    int size = m->experts / m->groups;
    double *group = numbers((size_t)m->groups), sum = 0;
    for (int g = 0; g < m->groups; g++) {
        double *in = biased + g * size, first, second = 0;
        int top = largest(in, size);
        first = in[top];
        in[top] = -INFINITY;
        if (size > 1)
            second = in[largest(in, size)];
        in[top] = first;
        group[g] = first + second;
    }
    for (int i = 0; i < m->topk_groups; i++)
        group[largest(group, m->groups)] = -INFINITY; /* taken */
    for (int e = 0; e < m->experts; e++)
        if (group[e / size] > -INFINITY)
            biased[e] = -INFINITY;
    for (int i = 0; i < m->per_token; i++) {
        int e = largest(biased, m->experts);
        biased[e] = -INFINITY;
        sum += share[e] = s[e];
    }
    for (int e = 0; e < m->experts; e++)
        share[e] *= 2.5 / (m->not_normed ? 1 : sum);
    free(group);
}

/* y += share * mlp(x) for the rows that have a share of expert e; share: [n, experts]. */
static void expert(const pass *p, int e, const double *x, const double *share, double *y)
{
    const td_made_model *m = p->m;
    size_t d = (size_t)m->hidden;
    double *in = numbers((size_t)p->n * d), *out = numbers((size_t)p->n * d);
    char name[40];
    pass rows = *p;
    rows.n = 0;
    for (int t = 0; t < p->n; t++)
        if (share[t * m->experts + e] != 0)
            memcpy(in + (size_t)rows.n++ * d, x + (size_t)t * d, d * sizeof(*x));
    snprintf(name, sizeof(name), "experts.%d.", e);
    mlp(&rows, name, in, m->moe_intermediate, out);
    const double *row = out;
    for (int t = 0; t < p->n; t++) {
        double part = share[t * m->experts + e];
        for (size_t i = 0; i < d && part != 0; i++)
            y[(size_t)t * d + i] += part * row[i];
        row += part != 0 ? d : 0;
    }
    free(in);
    free(out);
}

static void moe(const pass *p, const double *x, double *y)
{
    const td_made_model *m = p->m;
    double *s = product(p, p->layer, "mlp.gate.weight", x, m->hidden, m->experts);
    double *bias = weight(p, p->layer, "mlp.gate.e_score_correction_bias");
    double *share = numbers((size_t)(p->n * m->experts)), *biased = numbers((size_t)m->experts);
    for (int t = 0; t < p->n; t++) {
        for (int e = 0; e < m->experts; e++) {
            double *one = &s[t * m->experts + e];
            *one = 1 / (1 + exp(-*one));
            biased[e] = *one + bias[e];
        }
        gate_row(m, s + t * m->experts, biased, share + t * m->experts);
    }
    for (int e = 0; e < m->experts; e++)
        expert(p, e, x, share, y);
    if (m->shared > 0)
        mlp(p, "shared_experts.", x, m->shared * m->moe_intermediate, y);
    free(s);
    free(bias);
    free(share);
    free(biased);
}

static void layer(pass *p, int index, int is_moe, double *res)
{
    const td_made_model *m = p->m;
    int d = m->hidden;
    snprintf(p->layer, sizeof(p->layer), "model.layers.%d.", index);
    double *x = rms(p, p->layer, "input_layernorm.weight", res, d, d), *h = attention(p, x);
    for (int i = 0; i < p->n * d; i++)
        res[i] += h[i];
    free(x);
    x = rms(p, p->layer, "post_attention_layernorm.weight", res, d, d);
    if (is_moe)
        moe(p, x, res);
    else
        mlp(p, "", x, m->intermediate, res);
    free(x);
    free(h);
}

static void head(const pass *p, const double *x, float *logits)
{
    const td_made_model *m = p->m;
    double *y = product(p, m->tied == 1 ? "model.embed_tokens" : "lm_head", ".weight", x, m->hidden,
                        m->vocab);
    for (int i = 0; i < p->n * m->vocab; i++)
        logits[i] = (float)y[i];
    free(y);
}

/* Row i sees token i + 1 and the final state of row i. */
static void draft(pass *p, const int32_t *tokens, const double *embed, const double *x,
                  float *logits)
{
    int d = p->m->hidden, n = p->n;
    char prefix[64];
    double *e = numbers((size_t)(n * d)), *cat = numbers((size_t)(n * 2 * d));
    snprintf(prefix, sizeof(prefix), "model.layers.%d.", p->m->layers);
    for (int t = 0; t < n; t++)
        memcpy(e + t * d, embed + tokens[t + 1] * d, (size_t)d * sizeof(*e));
    double *a = rms(p, prefix, "enorm.weight", e, d, d);
    double *b = rms(p, prefix, "hnorm.weight", x, d, d);
    for (int t = 0; t < n; t++) {
        memcpy(cat + t * 2 * d, a + t * d, (size_t)d * sizeof(*a));
        memcpy(cat + t * 2 * d + d, b + t * d, (size_t)d * sizeof(*b));
    }
    double *res = product(p, prefix, "eh_proj.weight", cat, 2 * d, d);
    layer(p, p->m->layers, 1, res);
    double *y = rms(p, prefix, "shared_head.norm.weight", res, d, d);
    head(p, y, logits);
    free(e);
    free(cat);
    free(a);
    free(b);
    free(res);
    free(y);
}

void td_plain_model(const char *dir, const td_made_model *m, const int32_t *tokens, int n,
                    float *logits, float *mtp_logits)
{
    pass p = {.m = m, .n = n};
    int d = m->hidden;
    if (td_checkpoint_open(dir, &p.ckpt, NULL) != TD_OK)
        abort();
    double *embed = weight(&p, "", "model.embed_tokens.weight");
    double *res = numbers((size_t)(n * d));
    for (int t = 0; t < n; t++)
        memcpy(res + t * d, embed + tokens[t] * d, (size_t)d * sizeof(*res));
    for (int i = 0; i < m->layers; i++)
        layer(&p, i, i >= m->dense_layers, res);
    double *x = rms(&p, "", "model.norm.weight", res, d, d);
    head(&p, x, logits);
    p.n = n - 1;
    if (m->draft)
        draft(&p, tokens, embed, x, mtp_logits);
    free(embed);
    free(res);
    free(x);
    td_checkpoint_close(p.ckpt);
}
