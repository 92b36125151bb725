"""The model as it is trained: DeepSeek-V3.2's mathematics on whole sequences, arranged for speed.

Experts of a layer (routed ones first, the shared one last) stand in one wide SwiGLU whose hidden columns are
multiplied by the token's routing weights, zero for experts it did not choose: dense work, no gathers.
Attention is the expanded form. `qat` switches the FP8 round trips of the quantised mode on.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from quant import fake_act, fake_weight

BF = torch.bfloat16


def rms(x, w, eps=1e-6):
    f = x.float()
    return (w * (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + eps))).to(BF)


def lin(x, w, qat):
    if qat:
        return F.linear(fake_act(x).to(BF), fake_weight(w).to(BF))
    return F.linear(x.to(BF), w.to(BF))


def rope_tables(cfg, length, device):
    """cos, sin [length, 32] f32, YaRN applied at all positions; and the softmax scale."""
    d, theta, s = cfg["qk_rope_head_dim"], cfg["rope_theta"], cfg["rope_scaling"]
    inv = 1.0 / theta ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
    corr = lambda r: d * math.log(s["original_max_position_embeddings"] / (2 * math.pi * r)) / (2 * math.log(theta))
    low, high = max(math.floor(corr(s["beta_fast"])), 0), min(math.ceil(corr(s["beta_slow"])), d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    freq = (inv / s["factor"] * ramp + inv * (1 - ramp)).float()
    angle = torch.arange(length, dtype=torch.float32)[:, None] * freq
    m = 0.1 * s["mscale_all_dim"] * math.log(s["factor"]) + 1
    scale = (cfg["qk_nope_head_dim"] + d) ** -0.5 * m * m
    return angle.cos().to(device), angle.sin().to(device), scale


def rope_pairs(x, cos, sin):
    """Interleaved: pairs (2i, 2i+1). x [B, T, ..., 64]; cos, sin broadcast over heads."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(BF)


def rope_halves(x, cos, sin):
    """Half-split: pairs (i, i+32)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(BF)


def top_mask(v, k):
    """True at the k largest of the last axis (lower index wins ties); small axes only."""
    bigger = v.unsqueeze(-2) > v.unsqueeze(-1)
    n = v.shape[-1]
    before = torch.ones(n, n, dtype=torch.bool, device=v.device).tril(-1)
    ties = (v.unsqueeze(-2) == v.unsqueeze(-1)) & before
    return (bigger | ties).sum(-1) < k


class Layer(nn.Module):
    def __init__(self, cfg, moe, out_scale):
        super().__init__()
        self.cfg, self.moe = cfg, moe
        D, H, R, L = cfg["hidden_size"], cfg["num_attention_heads"], cfg["q_lora_rank"], cfg["kv_lora_rank"]
        dn, dr, dv = cfg["qk_nope_head_dim"], cfg["qk_rope_head_dim"], cfg["v_head_dim"]
        Hi, di, E = cfg["index_n_heads"], cfg["index_head_dim"], cfg["n_routed_experts"]
        width = cfg["moe_intermediate_size"] * (E + cfg["n_shared_experts"]) if moe else cfg["intermediate_size"]

        def mat(out, inp, gain=1.0):
            return nn.Parameter(torch.randn(out, inp) * gain * inp ** -0.5)

        self.input_layernorm, self.post_attention_layernorm = (nn.Parameter(torch.ones(D)) for _ in range(2))
        self.q_a, self.q_a_norm, self.q_b = mat(R, D), nn.Parameter(torch.ones(R)), mat(H * (dn + dr), R)
        self.kv_a, self.kv_a_norm = mat(L + dr, D), nn.Parameter(torch.ones(L))
        self.kv_b, self.o = mat(H * (dn + dv), L), mat(D, H * dv, out_scale)
        self.idx_q, self.idx_k, self.idx_w = mat(Hi * di, R), mat(di, D), mat(Hi, D)
        self.idx_norm_w, self.idx_norm_b = nn.Parameter(torch.ones(di)), nn.Parameter(torch.zeros(di))
        self.gate, self.up, self.down = mat(width, D), mat(width, D), mat(D, width, out_scale)
        if moe:
            self.router = mat(E, D)
            self.register_buffer("bias", torch.zeros(E))

    # -- attention -------------------------------------------------------------------------------------------
    def qkv(self, x, cos, sin, qat):
        c = self.cfg
        B, T, _ = x.shape
        H, dn, dv = c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"]
        qr = rms(lin(x, self.q_a, qat), self.q_a_norm)
        q = lin(qr, self.q_b, qat).view(B, T, H, -1)
        q = torch.cat((q[..., :dn], rope_pairs(q[..., dn:], cos[:T, None], sin[:T, None])), -1)
        kv = lin(x, self.kv_a, qat)
        latent = rms(kv[..., :c["kv_lora_rank"]], self.kv_a_norm)
        k_pe = rope_pairs(kv[..., c["kv_lora_rank"]:], cos[:T], sin[:T])
        kv = lin(latent, self.kv_b, qat).view(B, T, H, dn + dv)
        k = torch.cat((kv[..., :dn], k_pe.unsqueeze(2).expand(-1, -1, H, -1)), -1)
        return qr, q.transpose(1, 2), k.transpose(1, 2), kv[..., dn:].transpose(1, 2)

    def index(self, x, qr, cos, sin, qat):
        """Indexer's queries [B, T, Hi, 128], keys [B, T, 128], head weights [B, T, Hi]; inputs are detached."""
        c, (B, T, _) = self.cfg, x.shape
        Hi, di, dr = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
        x, qr = x.detach(), qr.detach()
        q = lin(qr, self.idx_q, qat).view(B, T, Hi, di)
        q = torch.cat((rope_halves(q[..., :dr], cos[:T, None], sin[:T, None]), q[..., dr:]), -1)
        k = F.layer_norm(lin(x, self.idx_k, qat).float(), (di,), self.idx_norm_w, self.idx_norm_b, 1e-6).to(BF)
        k = torch.cat((rope_halves(k[..., :dr], cos[:T], sin[:T]), k[..., dr:]), -1)
        w = F.linear(x.float(), self.idx_w.float()) * (Hi ** -0.5 * di ** -0.5)
        return q, k, w

    @staticmethod
    def index_scores(q, k, w):
        s = torch.einsum("bthd,bsd->bhts", q, k).float().relu()
        return (s * w.transpose(1, 2).unsqueeze(-1)).sum(1)

    def selected(self, scores):
        """bool [B, T, S]: the index_topk best of the positions each query may see (scores: -inf elsewhere)."""
        k = min(self.cfg["index_topk"], scores.shape[-1])
        floor = torch.topk(scores, k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        return (scores >= floor) & (scores > -math.inf)

    def index_loss(self, q, k, iq, ik, iw, rows, scale):
        """KL(attention summed over heads || softmax of the indexer) on some rows, over all keys they may see."""
        T = k.shape[2]
        causal = torch.arange(T, device=k.device)[None] <= rows[:, None]
        with torch.no_grad():
            a = (q[:, :, rows] @ k.transpose(-1, -2)).float() * scale
            p = a.masked_fill(~causal, -math.inf).softmax(-1).mean(1)
        s = self.index_scores(iq[:, rows], ik, iw[:, rows]).masked_fill(~causal, -1e30)
        logq = s.log_softmax(-1)
        return (torch.where(p > 0, p * (p.clamp_min(1e-20).log() - logq), 0.0)).sum(-1).mean()

    # -- MLP -------------------------------------------------------------------------------------------------
    def mlp(self, x, qat):
        """Output and, for MoE, the share of tokens each expert got."""
        act = F.silu(lin(x, self.gate, qat).float()) * lin(x, self.up, qat).float()
        act = fake_act(act.to(BF)) if qat else act
        load = act.new_zeros(1)
        if self.moe:
            c = self.cfg
            s = F.linear(x.float(), self.router.float()).sigmoid()
            v = (s + self.bias).detach()
            g = v.unflatten(-1, (c["n_group"], -1))
            g_ok = top_mask((g * top_mask(g, 2)).sum(-1), c["topk_group"])
            v = g.masked_fill(~g_ok.unsqueeze(-1), -math.inf).flatten(-2)
            chosen = top_mask(v, c["num_experts_per_tok"])
            w = s * chosen
            w = w / w.sum(-1, keepdim=True) * c["routed_scaling_factor"]
            w = torch.cat((w, torch.ones_like(w[..., :c["n_shared_experts"]])), -1)
            act = (act.unflatten(-1, (w.shape[-1], -1)) * w.unsqueeze(-1)).flatten(-2)
            load = chosen.float().mean((0, 1))
        down = fake_weight(self.down) if qat else self.down
        return F.linear(act.to(BF), down.to(BF)), load

    # -- whole layer -----------------------------------------------------------------------------------------
    def finish(self, res, attn, qat, drop):
        B, H, T, dv = attn.shape
        h = lin(attn.transpose(1, 2).reshape(B, T, H * dv), self.o, qat)
        res = res + F.dropout(h, drop, drop > 0)
        h, load = self.mlp(rms(res, self.post_attention_layernorm), qat)
        return res + F.dropout(h, drop, drop > 0), load

    def forward(self, res, cos, sin, scale, rows, sparse, qat, drop):
        """Residual stream in, (residual stream, indexer loss, expert load, (k, v, index keys)) out."""
        x = rms(res, self.input_layernorm)
        qr, q, k, v = self.qkv(x, cos, sin, qat)
        iq, ik, iw = self.index(x, qr, cos, sin, qat)
        loss = self.index_loss(q.detach(), k.detach(), iq, ik, iw, rows, scale)
        if sparse:
            T = x.shape[1]
            with torch.no_grad():
                future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
                mask = self.selected(self.index_scores(iq, ik, iw).masked_fill(future, -math.inf))
                mask = torch.where(mask, 0.0, -math.inf).to(BF).unsqueeze(1)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(-1, q.shape[1], -1, -1), scale=scale)
        else:
            wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))      # flash attention wants one head width
            a = F.scaled_dot_product_attention(q, k, wide, is_causal=True, scale=scale)[..., :v.shape[-1]]
        out, load = self.finish(res, a, qat, drop)
        return out, loss, load, (k, v, ik)

    def chained(self, res, caches, cos, sin, scale, qat, drop):
        """One more draft step for every position. caches[0] is the first pass's (k, v, index keys), caches[j]
        that of step j+1. A row sees its own key, those of the earlier steps at the positions just before it, and
        the first pass's keys further back, as in chained drafting with a KV cache."""
        x = rms(res, self.input_layernorm)
        qr, q, k, v = self.qkv(x, cos, sin, qat)
        iq, ik, iw = self.index(x, qr, cos, sin, qat)
        chain = (caches[1:] + [(k, v, ik)])[::-1]              # own keys first, then one step back, ...
        T = x.shape[1]
        back = torch.arange(T, device=x.device)
        back = back[:, None] - back[None]                      # distance from query to key

        def shift(t, j, dim):
            return t if j == 0 else torch.cat((torch.zeros_like(t.narrow(dim, 0, j)), t.narrow(dim, 0, T - j)), dim)

        with torch.no_grad():
            s = self.index_scores(iq, caches[0][2], iw)
            for j, (_, _, kj) in enumerate(chain):
                own = ((iq * shift(kj, j, 1).unsqueeze(2)).sum(-1).float().relu() * iw).sum(-1)
                s = torch.where(back == j, own.unsqueeze(-1), s)
            mask = self.selected(s.masked_fill(back < 0, -math.inf))
        a = (q @ caches[0][0].transpose(-1, -2)).float()
        for j, (kj, _, _) in enumerate(chain):
            a = torch.where(back == j, (q * shift(kj, j, 2)).sum(-1, keepdim=True).float(), a)
        p = (a * scale).masked_fill(~mask.unsqueeze(1), -math.inf).softmax(-1)
        out = p.masked_fill(back < len(chain), 0.0).to(BF) @ caches[0][1]
        for j, (_, vj, _) in enumerate(chain):
            out = out + (p * (back == j)).sum(-1, keepdim=True).to(BF) * shift(vj, j, 2)
        out, load = self.finish(res, out, qat, drop)
        return out, load, (k, v, ik)


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        D, V, n = cfg["hidden_size"], cfg["vocab_size"], cfg["num_hidden_layers"]
        self.embed = nn.Parameter(torch.randn(V, D) * 0.1)
        self.head = nn.Parameter(torch.randn(V, D) * 0.02)
        self.norm = nn.Parameter(torch.ones(D))
        self.layers = nn.ModuleList(Layer(cfg, i >= cfg["first_k_dense_replace"], (2 * n) ** -0.5)
                                    for i in range(n + cfg["num_nextn_predict_layers"]))    # the last one is MTP
        self.enorm, self.hnorm, self.shared_head_norm = (nn.Parameter(torch.ones(D)) for _ in range(3))
        self.eh_proj = nn.Parameter(torch.randn(D, 2 * D) * (2 * D) ** -0.5)

    def draft_input(self, tokens, hidden):
        e = rms(F.embedding(tokens, self.embed).to(BF), self.enorm)
        return F.linear(torch.cat((e, rms(hidden, self.hnorm)), -1), self.eh_proj.to(BF))


def main_loss(h, head, targets):
    """Mean cross-entropy and the logits (bf16)."""
    logits = F.linear(h, head.to(BF))
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), logits


def draft_loss(h, head, teacher, pull):
    """Row i of h predicts what `teacher` row i does: half its whole distribution, half its best token. A `pull` above
    zero also draws the main model towards its draft layer a little, which makes its text easier to draft."""
    logits = F.linear(h, head.to(BF)).float()
    t = teacher.detach().float()
    best = t.argmax(-1)
    logq = logits.log_softmax(-1)
    loss = -0.5 * (t.softmax(-1) * logq).sum(-1).mean() - 0.5 * logq.gather(-1, best.unsqueeze(-1)).mean()
    if pull:
        loss = loss - pull * (logq.detach().exp() * teacher.float().log_softmax(-1)).sum(-1).mean()
    return loss, (logits.argmax(-1) == best).float().mean()
