#!/usr/bin/env python3
"""Train the bundled model: three phases, fixed seed, fixed number of steps. Needs prepare.py's work folder.

    train.py [--work DIR] [--out DIR] [--tiny]

Phase 1: dense attention, contexts of 1,024. Phase 2: attention over what the indexer selects, contexts of 2,048,
the draft layer trained on chains of three. Phase 3: the same with FP8 round trips, contexts of 4,096.
Writes the weights to OUT/weights-{0..3}.pt after phase 2 and at the end. --tiny: a short run on a CPU, for debugging.
"""
import argparse
import math
import pathlib
import time

import numpy as np
import torch

from config import CONFIG
from model import BF, Layer, Model, draft_loss, main_loss, rms, rope_tables
from muon import Muon

HERE = pathlib.Path(__file__).resolve().parent
PHASES = [  # optimiser steps, sequences a step, context, attention over the selection, FP8 round trips, draft steps
    dict(steps=6200, batch=64, context=1024, sparse=False, qat=False, drafts=1),
    dict(steps=1300, batch=32, context=2048, sparse=True, qat=False, drafts=3),
    dict(steps=450, batch=16, context=4096, sparse=True, qat=True, drafts=3),
]
PEAK_LR, FINAL_LR, WARMUP, DROPOUT = 2.5e-3, 2e-5, 300, 0.1
DECAY = 0.8         # strong: the corpus is seen some 50 times
PULL = 0.5          # see draft_loss
ROWS, BIAS_RATE, INDEX_WEIGHT, DRAFT_WEIGHTS = 64, 1e-3, 1.0, (0.3, 0.15, 0.1)


class Windows:
    """Endless shuffled windows [BOS, text...], each starting at the first paragraph after a grid point."""

    def __init__(self, ids, newline_ids, device, seed):
        self.ids = torch.from_numpy(ids.astype(np.int32)).to(device).long()
        starts = torch.isin(self.ids, torch.tensor(newline_ids, device=device)).nonzero().flatten() + 1
        self.starts, self.rng = starts, np.random.default_rng(seed)
        self.grid = None

    def batch(self, n, length):
        if self.grid is None or len(self.grid) < n or self.length != length:
            grid = np.arange(self.rng.integers(length), len(self.ids) - 2 * length, length)
            self.grid, self.length = self.rng.permutation(grid), length
        at = torch.from_numpy(self.grid[:n]).to(self.ids.device)
        self.grid = self.grid[n:]
        at = self.starts[torch.searchsorted(self.starts, at).clamp_max(len(self.starts) - 1)]
        at = at.clamp_max(len(self.ids) - length)
        rows = self.ids[at[:, None] + torch.arange(length, device=at.device)]
        return torch.cat((torch.zeros_like(rows[:, :1]), rows), 1)      # BOS, length tokens


class Trainer:
    def __init__(self, model, device, compiled):
        self.m, self.device, n = model, device, CONFIG["num_hidden_layers"]
        self.cos, self.sin, self.scale = rope_tables(CONFIG, CONFIG["max_position_embeddings"], device)
        torch._dynamo.config.cache_size_limit = 64
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.layer, self.chain = wrap(Layer.forward), wrap(Layer.chained)
        self.main_loss, self.draft_loss = wrap(main_loss), wrap(draft_loss)

    def forward(self, tokens, p, rows, train=True):
        """All losses of one batch [B, T+1]; returns (loss to descend, dict of figures, expert loads)."""
        m, n = self.m, CONFIG["num_hidden_layers"]
        layer, chain, main, draft = ((self.layer, self.chain, self.main_loss, self.draft_loss) if train else
                                     (Layer.forward, Layer.chained, main_loss, draft_loss))
        drop = DROPOUT if train else 0.0
        args = (self.cos, self.sin, self.scale)
        res = torch.nn.functional.embedding(tokens[:, :-1], m.embed).to(BF)
        index, loads, losses = 0.0, [], {}
        for i in range(n):
            res, kl, load, _ = layer(m.layers[i], res, *args, rows, p["sparse"], p["qat"], drop)
            index = index + kl
            loads.append(load)
        h = rms(res, m.norm)
        losses["main"], teacher = main(h, m.head, tokens[:, 1:])
        total, hidden = losses["main"], h
        caches, mtp = [], m.layers[n]
        for d in range(p["drafts"]):
            x = m.draft_input(tokens[:, 1:], hidden)
            if d == 0:
                res, kl, load, cache = layer(mtp, x, *args, rows, p["sparse"], p["qat"], drop)
                index = index + kl
                loads.append(load)
            else:
                res, _, cache = chain(mtp, x, caches, *args, p["qat"], drop)
            caches.append(cache)
            hd = rms(res, m.shared_head_norm)
            loss, losses[f"accept{d + 1}"] = draft(hd[:, d:-1], m.head, teacher[:, d + 1:], PULL if d == 0 else 0.0)
            losses[f"draft{d + 1}"] = loss
            total = total + DRAFT_WEIGHTS[d] * loss
            hidden = torch.cat((h[:, :1].detach(), hd[:, :-1]), 1)
        losses["index"] = index / (n + 1)
        return total + INDEX_WEIGHT * index / (n + 1), losses, loads

    @torch.no_grad()
    def validate(self, windows, p):
        rows = torch.arange(p["context"] // 2, p["context"], max(1, p["context"] // 64), device=self.device)
        sums, n = {}, 0
        for tokens in windows:
            _, losses, _ = self.forward(tokens, dict(p, drafts=3), rows, train=False)
            for k, v in losses.items():
                sums[k] = sums.get(k, 0.0) + float(v)
            n += 1
        return {k: v / n for k, v in sums.items()}


def save(model, out, name):
    """Weights in four files of about 13 MB."""
    items = sorted((k, v.detach().cpu()) for k, v in model.state_dict().items())
    parts, size, quarter = [{}], 0, sum(v.numel() for _, v in items) / 4
    for k, v in items:
        if size >= quarter * len(parts):
            parts.append({})
        parts[-1][k] = v
        size += v.numel()
    for i, part in enumerate(parts):
        torch.save(part, out / f"{name}-{i}.pt")


def figures(d):
    return " ".join(f"{k} {float(torch.as_tensor(v).detach()):.4f}" for k, v in d.items())


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", type=pathlib.Path, default=HERE / "work")
    ap.add_argument("--out", type=pathlib.Path, default=HERE / "work")
    ap.add_argument("--tiny", action="store_true")
    ap.add_argument("--steps", type=int, nargs=3, help="steps of the three phases")
    args = ap.parse_args()
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    phases = [dict(p) for p in PHASES]
    if args.tiny:
        torch.set_num_threads(1)
        for p, ctx in zip(phases, (64, 320, 384)):
            p.update(steps=3, batch=2, context=ctx)
    for p, s in zip(phases, args.steps or ()):
        p["steps"] = s
    torch.set_float32_matmul_precision("high")

    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    newline = [i for t, i in tok.get_vocab().items() if t.endswith("ĊĊ")]
    windows = Windows(np.load(args.work / "train.npy"), newline, device, 1)
    held = np.load(args.work / "val.npy")

    model = Model(CONFIG).to(device)
    trainer = Trainer(model, device, not args.tiny)
    matrices = [p for n, p in model.named_parameters()
                if p.dim() == 2 and min(p.shape) >= 64 and n not in ("embed", "head")]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in own]
    opts = [torch.optim.AdamW(rest, lr=PEAK_LR, weight_decay=0.0, betas=(0.9, 0.95), fused=device == "cuda"),
            Muon(matrices, PEAK_LR, DECAY)]
    total = sum(p["steps"] for p in phases)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {total} steps, "
          f"{sum(p['steps'] * p['batch'] * p['context'] for p in phases) / 1e6:.0f} M tokens, "
          f"{len(windows.ids) / 1e6:.2f} M in the corpus", flush=True)
    step, t0, seen = 0, time.time(), 0
    n, rng = CONFIG["num_hidden_layers"], torch.Generator(device).manual_seed(2)
    for number, p in enumerate(phases):
        flat = torch.from_numpy(held.astype(np.int64)).to(device)
        T = p["context"]
        val = flat[:len(flat) // T * T].view(-1, T)
        val = [torch.cat((torch.zeros_like(v[:, :1]), v), 1) for v in val[:max(1, 98304 // T)].split(max(1, 8192 // T))]
        if args.tiny:
            val = val[:1]
        for i in range(p["steps"]):
            frac = max(0.0, (step - WARMUP) / max(1, total - WARMUP))
            lr = FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * frac))
            lr *= min(1.0, (step + 1) / WARMUP)
            for opt in opts:
                opt.param_groups[0]["lr"] = lr
            tokens = windows.batch(p["batch"], T)
            rows = torch.randint(T, (ROWS,), device=device, generator=rng).sort().values
            loss, losses, loads = trainer.forward(tokens, p, rows)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            for opt in opts:
                opt.step()
            model.zero_grad(set_to_none=True)
            if not p["qat"]:
                with torch.no_grad():
                    for layer, load in zip(model.layers, loads):
                        if layer.moe:
                            layer.bias += BIAS_RATE * torch.sign(load.mean() - load)
            step += 1
            seen += p["batch"] * T
            if step % 100 == 0 or i in (0, 5, p["steps"] - 1) or args.tiny:
                print(f"phase {number + 1} step {step} lr {lr:.2e} {time.time() - t0:.0f} s {seen / 1e6:.0f} M "
                      f"gnorm {float(norm):.2f} | {figures(losses)} | load "
                      + " ".join(f"{float(l.max()):.2f}" for l in loads[1:]), flush=True)
            if step % 1000 == 0 or i == p["steps"] - 1:
                print(f"validation step {step} | {figures(trainer.validate(val, p))}", flush=True)
        if number and p["steps"]:
            save(model, args.out, "weights")
            print(f"saved after phase {number + 1}, {time.time() - t0:.0f} s", flush=True)


if __name__ == "__main__":
    main()
