#!/usr/bin/env python3
"""Write trained weights as a DeepSeek-V3.2 checkpoint in the published layout.

    export.py [--weights DIR] [--work DIR] [--out DIR]      (default out: models/tiny-v32)
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

from config import CONFIG
from prepare import BOS, EOS
from quant import expand_scale, weight_scale

HERE = pathlib.Path(__file__).resolve().parent

LAYER = {  # ours -> published; True: FP8
    "q_a": ("self_attn.q_a_proj.weight", True), "q_b": ("self_attn.q_b_proj.weight", True),
    "kv_a": ("self_attn.kv_a_proj_with_mqa.weight", True), "kv_b": ("self_attn.kv_b_proj.weight", True),
    "o": ("self_attn.o_proj.weight", True),
    "idx_q": ("self_attn.indexer.wq_b.weight", True), "idx_k": ("self_attn.indexer.wk.weight", True),
    "idx_w": ("self_attn.indexer.weights_proj.weight", False),
    "idx_norm_w": ("self_attn.indexer.k_norm.weight", False), "idx_norm_b": ("self_attn.indexer.k_norm.bias", False),
    "q_a_norm": ("self_attn.q_a_layernorm.weight", False), "kv_a_norm": ("self_attn.kv_a_layernorm.weight", False),
    "input_layernorm": ("input_layernorm.weight", False),
    "post_attention_layernorm": ("post_attention_layernorm.weight", False),
    "router": ("mlp.gate.weight", False), "bias": ("mlp.gate.e_score_correction_bias", False),
}
BF16 = ("embed_tokens", "lm_head", "mlp.gate.weight", "weights_proj", "eh_proj")


def read_weights(folder):
    state = {}
    for path in sorted(pathlib.Path(folder).glob("weights-*.pt")):
        state.update(torch.load(path, map_location="cpu", weights_only=True))
    return state


def published(state, cfg=CONFIG):
    """(name, f32 tensor, is FP8) for every weight, in the order of the layers."""
    n, width = cfg["num_hidden_layers"], cfg["moe_intermediate_size"]
    mtp = f"model.layers.{n}."
    yield "model.embed_tokens.weight", state["embed"], False
    for i in range(n + cfg["num_nextn_predict_layers"]):
        own, pre = f"layers.{i}.", f"model.layers.{i}."
        if i == n:
            yield mtp + "enorm.weight", state["enorm"], False
            yield mtp + "hnorm.weight", state["hnorm"], False
            yield mtp + "eh_proj.weight", state["eh_proj"], False
            yield mtp + "shared_head.norm.weight", state["shared_head_norm"], False
        for short, (name, fp8) in LAYER.items():
            if own + short in state:
                yield pre + name, state[own + short], fp8
        parts = [""] if i < cfg["first_k_dense_replace"] else (
            [f"experts.{e}." for e in range(cfg["n_routed_experts"])] + ["shared_experts."])
        for e, part in enumerate(parts):
            size = cfg["intermediate_size"] if part == "" else width
            cut = slice(e * size, (e + 1) * size)
            yield f"{pre}mlp.{part}gate_proj.weight", state[own + "gate"][cut], True
            yield f"{pre}mlp.{part}up_proj.weight", state[own + "up"][cut], True
            yield f"{pre}mlp.{part}down_proj.weight", state[own + "down"][:, cut], True
    yield "model.norm.weight", state["norm"], False
    yield "lm_head.weight", state["head"], False


def stored(name, w, fp8):
    """The tensors of the file for one weight."""
    w = w.float().contiguous()
    if fp8:
        s = weight_scale(w)
        q = (w / expand_scale(s, w.shape)).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {name: q.contiguous(), name + "_scale_inv": s.contiguous()}
    return {name: w.to(torch.bfloat16) if any(b in name for b in BF16) else w}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", type=pathlib.Path, default=HERE / "work")
    ap.add_argument("--weights", type=pathlib.Path, default=HERE / "work")
    ap.add_argument("--out", type=pathlib.Path, default=HERE.parent.parent / "models" / "tiny-v32")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    n_shards, shards = 2, [{}, {}]
    tensors = [stored(*t) for t in published(read_weights(args.weights))]
    total = sum(t.nbytes for d in tensors for t in d.values())
    so_far = 0
    for d in tensors:
        shards[min(n_shards - 1, so_far * n_shards // total)].update(d)
        so_far += sum(t.nbytes for t in d.values())
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        save_file(shard, args.out / name, metadata={"format": "pt"})
        (args.out / name).chmod(0o644)
        weight_map.update({k: name for k in shard})

    def write(name, obj):
        (args.out / name).write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n", "utf-8")

    write("model.safetensors.index.json", {"metadata": {"total_size": total},
                                           "weight_map": dict(sorted(weight_map.items()))})
    write("config.json", CONFIG)
    write("generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1,
                                     "do_sample": True, "temperature": 0.6, "top_p": 0.95,
                                     "transformers_version": CONFIG["transformers_version"]})

    def token(text):
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}

    write("tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": token(BOS), "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS), "legacy": True, "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": token(EOS), "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast"})
    (args.out / "tokenizer.json").write_bytes((args.work / "tokenizer.json").read_bytes())
    size = sum(f.stat().st_size for f in args.out.iterdir() if f.is_file())
    print(f"{len(weight_map)} tensors, {total} bytes of tensors, {size} bytes in {args.out}")
    if size > 16_000_000:
        raise SystemExit("larger than 16 MB")


if __name__ == "__main__":
    main()
