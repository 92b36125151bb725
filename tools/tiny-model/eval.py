#!/usr/bin/env python3
"""Judge a checkpoint from its published files: a plain forward pass that shares nothing with the training code.

    eval.py [--model DIR] [--work DIR] [--windows N] [--context N] [--prompts N] [--weights DIR] [--text]

Modes: `precise` (f32, nothing quantised) and `quantised` (the serving numerics: FP8 products on 1x128 quantised
activations, bf16 between operations, FP8 latents, rotated FP8 index keys, absorbed attention). Prints perplexity on
the held-out tokens, the share of drafts accepted, and with --text some greedy continuations. --weights adds the
perplexity of the unquantised f32 training weights.
"""
import argparse
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

HERE = pathlib.Path(__file__).resolve().parent
PROMPTS = ["It was a bright cold morning in the spring, and", "\"My dear Watson,\" said Holmes,",
           "Prince Andrew looked at the general and", "The history of the United States",
           "Emma could not forgive her;", "In the beginning God", "The patient should be kept in bed, and"]


def load(folder):
    """Every tensor of the checkpoint, FP8 weights dequantised to f32; and the configuration."""
    folder = pathlib.Path(folder)
    cfg = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    raw = {}
    for name in sorted(set(index.values())):
        with safe_open(folder / name, "pt") as f:
            raw.update({k: f.get_tensor(k) for k in f.keys()})
    assert set(raw) == set(index)
    out = {}
    for name, t in raw.items():
        if name.endswith("_scale_inv"):
            continue
        if t.dtype == torch.float8_e4m3fn:
            s = raw[name + "_scale_inv"]
            rows, cols = t.shape
            assert s.shape == (-(-rows // 128), -(-cols // 128)) and s.dtype == torch.float32
            full = torch.kron(s, torch.ones(128, 128))[:rows, :cols]
            out[name] = t.float() * full
        else:
            out[name] = t.float()
    return cfg, out


def aq(x):
    """AQ_128 with power-of-two scales: the dequantised values."""
    g = x.float().unflatten(-1, (-1, 128))
    s = g.abs().amax(-1, keepdim=True).clamp_min(1e-4) * torch.tensor(1 / 448, dtype=torch.float32)
    mantissa, exponent = torch.frexp(s)
    s = torch.ldexp(torch.ones_like(s), torch.where(mantissa > 0.5, exponent, exponent - 1))
    return ((g / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s).flatten(-2)


def hadamard(x):
    n = x.shape[-1]
    h = torch.ones(1, 1, device=x.device)
    while h.shape[0] < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return x @ h * n ** -0.5


class Reference:
    def __init__(self, cfg, weights, quantised, device):
        self.c, self.q, self.device = cfg, quantised, device
        self.w = {k: v.to(device) for k, v in weights.items()}
        d, theta, s = cfg["qk_rope_head_dim"], cfg["rope_theta"], cfg["rope_scaling"]
        assert s["type"] == "yarn"
        i = np.arange(d // 2)
        inv = theta ** (-2.0 * i / d)

        def corr(r):
            return d * math.log(s["original_max_position_embeddings"] / (r * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(corr(s["beta_fast"])), 0), min(math.ceil(corr(s["beta_slow"])), d - 1)
        m = 1 - np.clip((i - low) / (high - low), 0, 1)
        freq = inv / s["factor"] * (1 - m) + inv * m
        angle = torch.arange(cfg["max_position_embeddings"]).float()[:, None] * torch.from_numpy(freq).float()
        self.cos, self.sin = angle.cos().to(device), angle.sin().to(device)
        mscale = 0.1 * s["mscale_all_dim"] * math.log(s["factor"]) + 1
        self.sigma = (cfg["qk_nope_head_dim"] + d) ** -0.5 * mscale ** 2

    def r(self, x):
        """Round to bf16 in the quantised mode."""
        return x.bfloat16().float() if self.q else x

    def lin(self, name, x, fp8=True):
        return (aq(x) if self.q and fp8 else x) @ self.w[name + ".weight"].T

    def rms(self, x, name):
        return self.r(self.w[name + ".weight"] * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)))

    def rope(self, x, interleaved):
        cos, sin = self.cos[:x.shape[1]], self.sin[:x.shape[1]]
        if x.dim() == 4:
            cos, sin = cos[:, None], sin[:, None]
        if interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
            return self.r(torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2))
        a, b = x[..., :x.shape[-1] // 2], x[..., x.shape[-1] // 2:]
        return self.r(torch.cat((a * cos - b * sin, a * sin + b * cos), -1))

    def attention(self, pre, x, older=()):
        """Returns (output, (latents, rotated keys, index keys)). older: caches of earlier draft steps, first step
        first; a row reads its own cache row, the latest steps' rows just before it, the first step's further back."""
        c, (B, T, _) = self.c, x.shape
        H, dn, dv, dr, L = (c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"], c["qk_rope_head_dim"],
                            c["kv_lora_rank"])
        qr = self.rms(self.r(self.lin(pre + "q_a_proj", x)), pre + "q_a_layernorm")
        q = self.r(self.lin(pre + "q_b_proj", qr)).view(B, T, H, dn + dr)
        q_pe = self.rope(q[..., dn:], True)
        kv = self.r(self.lin(pre + "kv_a_proj_with_mqa", x))
        latent = self.rms(kv[..., :L], pre + "kv_a_layernorm")
        latent = aq(latent) if self.q else latent
        k_pe = self.rope(kv[..., L:], True)
        # indexer
        Hi, di = c["index_n_heads"], c["index_head_dim"]
        iq = self.r(self.lin(pre + "indexer.wq_b", qr)).view(B, T, Hi, di)
        ik = self.r(self.lin(pre + "indexer.wk", x))
        ik = self.r(F.layer_norm(ik, (di,), self.w[pre + "indexer.k_norm.weight"],
                                 self.w[pre + "indexer.k_norm.bias"], 1e-6))
        iq = torch.cat((self.rope(iq[..., :dr], False), iq[..., dr:]), -1)
        ik = torch.cat((self.rope(ik[..., :dr], False), ik[..., dr:]), -1)
        if self.q:
            iq, ik = aq(self.r(hadamard(iq))), aq(self.r(hadamard(ik)))
        iw = self.lin(pre + "indexer.weights_proj", x, fp8=False) * Hi ** -0.5 * di ** -0.5
        # what each query reads at distance 0, 1, ...: the newest caches; beyond that the first
        mine = (latent, k_pe, ik)
        near = [mine] + list(older)[:0:-1]
        far = older[0] if older else mine
        back = torch.arange(T, device=x.device)
        back = back[:, None] - back[None]
        up = self.w[pre + "kv_b_proj.weight"].view(H, dn + dv, L)
        q_latent = self.r(torch.einsum("bthd,hdl->bthl", q[..., :dn], up[:, :dn]))

        def both(fn, depth=None):
            """fn over the far cache, with the near caches' values at their distances."""
            out = fn(far)
            for j, cache in enumerate(near if older else []):
                out = torch.where(back == j, fn(cache), out)
            return out

        score = both(lambda k: sum((torch.einsum("btd,bsd->bts", iq[:, :, h], k[2]).relu() * iw[:, :, h, None]
                                    for h in range(Hi))))
        score = score.masked_fill(back < 0, -math.inf)
        topk = c["index_topk"]
        if T > topk:
            order = torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :topk]
            keep = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True) & (back >= 0)
        else:
            keep = (back >= 0).expand(B, T, T)
        heads = []
        for h in range(H):
            a = both(lambda k: torch.einsum("btl,bsl->bts", q_latent[:, :, h], k[0]) +
                     torch.einsum("btd,bsd->bts", q_pe[:, :, h], k[1])) * self.sigma
            p = self.r(a.masked_fill(~keep, -math.inf).softmax(-1))
            u = p.masked_fill(back < len(near), 0.0) @ far[0] if older else p @ latent
            for j, cache in enumerate(near if older else []):
                u = u + (p * (back == j)) @ cache[0]
            heads.append(self.r(self.r(u) @ up[h, dn:].T))
        return self.r(self.lin(pre + "o_proj", torch.cat(heads, -1))), mine

    def swiglu(self, pre, x):
        a = F.silu(self.r(self.lin(pre + "gate_proj", x))) * self.r(self.lin(pre + "up_proj", x))
        return self.lin(pre + "down_proj", self.r(a))

    def mlp(self, layer, x):
        c, pre = self.c, f"model.layers.{layer}.mlp."
        if layer < c["first_k_dense_replace"]:
            return self.r(self.swiglu(pre, x))
        s = self.lin(pre + "gate", x, fp8=False).sigmoid()
        v = s + self.w[pre + "gate.e_score_correction_bias"]
        groups = v.unflatten(-1, (c["n_group"], -1))
        best = groups.topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
        allowed = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=x.device).scatter_(-1, best, True)
        v = groups.masked_fill(~allowed.unsqueeze(-1), -math.inf).flatten(-2)
        chosen = v.topk(c["num_experts_per_tok"], -1).indices
        w = s.gather(-1, chosen)
        w = w / w.sum(-1, keepdim=True) * c["routed_scaling_factor"]
        y = self.swiglu(pre + "shared_experts.", x)
        for e in range(c["n_routed_experts"]):
            weight = (w * (chosen == e)).sum(-1, keepdim=True)
            y = y + weight * self.swiglu(f"{pre}experts.{e}.", x)
        return self.r(y)

    def layer(self, i, res, older=()):
        """res: the unrounded sum that the norm sees; the stream that is carried on is rounded."""
        pre = f"model.layers.{i}."
        h, cache = self.attention(pre + "self_attn.", self.rms(res, pre + "input_layernorm"), older)
        z = self.r(res) + h
        h = self.mlp(i, self.rms(z, pre + "post_attention_layernorm"))
        return self.r(z) + h, cache           # unrounded sum: the next norm's input

    def main(self, ids):
        """Post-norm hidden states [B, T, D]."""
        z = self.w["model.embed_tokens.weight"][ids]
        for i in range(self.c["num_hidden_layers"]):
            z, _ = self.layer(i, z)
        return self.rms(z, "model.norm")

    def logits(self, h):
        return h @ self.w["lm_head.weight"].T

    def drafts(self, ids, h, steps):
        """Chained drafts over known text. ids [B, T+1], h [B, T, D]. Element d of the result [B, T, V]: row i holds the
        logits that draft step d+1 gives for token i+2, when step 1 ran at position i-d."""
        n, out, older, hidden = self.c["num_hidden_layers"], [], [], h
        pre = f"model.layers.{n}."
        e = self.rms(self.w["model.embed_tokens.weight"][ids[:, 1:]], pre + "enorm")
        for d in range(steps):
            x = self.r(torch.cat((e, self.rms(hidden, pre + "hnorm")), -1) @ self.w[pre + "eh_proj.weight"].T)
            z, cache = self.layer(n, x, older)
            older = older + [cache]
            hd = self.rms(z, pre + "shared_head.norm")
            out.append(self.logits(hd))
            hidden = torch.cat((h[:, :1], hd[:, :-1]), 1)
        return out


def acceptance(hits):
    """hits[d][b, i]: step d+1's draft for token i+2 was right. Conditional and cumulative shares of depths 1, 2, 3."""
    alive, text, expected = None, [], 1.0
    for d, hit in enumerate(hits):
        # a round that starts at row i drafts with step d+1 at row i+d
        h = hit[:, d:hit.shape[1] - (len(hits) - 1 - d)]
        before = torch.ones_like(h) if alive is None else alive
        alive = before & h
        text.append(f"depth {d + 1}: {alive.sum().item() / before.sum().item():.3f} of those drafted after an accepted "
                    f"one, {alive.float().mean().item():.3f} of all")
        expected += alive.float().mean().item()
    return "; ".join(text) + f"; {expected:.2f} tokens per step"


@torch.no_grad()
def perplexity(ref, windows, drafts):
    loss, count, hits = 0.0, 0, []
    for ids in windows:
        h = ref.main(ids[:, :-1])
        logits = ref.logits(h)
        loss += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
        if drafts:
            best = logits.argmax(-1)
            hits.append([(x[:, :-1].argmax(-1) == best[:, 1:]) for x in ref.drafts(ids, h, 3)])
    result = f"perplexity {math.exp(loss / count):.3f} ({loss / count:.4f} nats per token, {count} tokens)"
    if drafts:
        print("  drafts on held-out text (right = the main model's own best token there)\n    "
              + acceptance([torch.cat([h[d] for h in hits]) for d in range(3)]), flush=True)
    return result


@torch.no_grad()
def generate(ref, ids, n):
    for _ in range(n):
        ids = torch.cat((ids, ref.logits(ref.main(ids)[:, -1:]).argmax(-1)), 1)
    return ids


@torch.no_grad()
def greedy_acceptance(ref, prompts, n):
    ids = generate(ref, prompts, n)
    h = ref.main(ids[:, :-1])
    first = prompts.shape[1] - 2             # this row's draft is the first generated token but one
    hits = [(x[:, :-1].argmax(-1) == ids[:, 2:])[:, first:] for x in ref.drafts(ids, h, 3)]
    return acceptance(hits)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", type=pathlib.Path, default=HERE.parent.parent / "models" / "tiny-v32")
    ap.add_argument("--work", type=pathlib.Path, default=HERE / "work")
    ap.add_argument("--windows", type=int, default=0, help="held-out windows per context length; 0: all")
    ap.add_argument("--context", type=int, nargs="+", default=[2048])
    ap.add_argument("--prompts", type=int, default=0, help="prompts for acceptance in greedy generation")
    ap.add_argument("--weights", type=pathlib.Path, help="folder of the training weights")
    ap.add_argument("--text", action="store_true")
    args = ap.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg, weights = load(args.model)
    flat = torch.from_numpy(np.load(args.work / "val.npy").astype(np.int64)).to(device) if args.windows >= 0 else None

    def cut(T):
        rows = flat[:len(flat) // T * T].view(-1, T)
        rows = torch.cat((torch.zeros_like(rows[:, :1]), rows), 1)     # BOS first
        rows = rows[:args.windows] if args.windows else rows
        return rows.split(8 if device == "cuda" else 1)

    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    if args.weights:
        from export import published, read_weights
        ref = Reference(cfg, {k: v.float() for k, v, _ in published(read_weights(args.weights), cfg)}, False, device)
        for T in args.context:
            print(f"training weights, f32, context {T}: {perplexity(ref, cut(T), False)}", flush=True)
    for name, quantised in (("precise", False), ("quantised", True)):
        ref = Reference(cfg, weights, quantised, device)
        for T in args.context if flat is not None else []:
            print(f"{name}, context {T}: {perplexity(ref, cut(T), True)}", flush=True)
        if args.prompts:
            prompts = torch.cat(cut(256))[:: max(1, len(flat) // 256 // args.prompts)][:args.prompts, :64]
            print(f"{name}: drafts while generating 192 greedy tokens after {len(prompts)} held-out prompts of 64 "
                  f"tokens\n    {greedy_acceptance(ref, prompts, 192)}", flush=True)
        if args.text:
            for prompt in PROMPTS:
                ids = torch.tensor([[0] + tok.encode(prompt, add_special_tokens=False).ids], device=device)
                print(f"{name}: {prompt!r} ->{tok.decode(generate(ref, ids, 60)[0, ids.shape[1]:].tolist())!r}",
                      flush=True)


if __name__ == "__main__":
    main()
