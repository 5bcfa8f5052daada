#!/usr/bin/env python3
"""Writes trained weights as a checkpoint in the released form: FP8 blocks, or BF16 with --dtype bf16.

    tools/micro/export.py MICRO.pt TOKENIZER.json OUT
"""

import argparse
import json
import pathlib
import shutil
import sys

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import make_checkpoint  # noqa: E402
from model import Shape  # noqa: E402


class Trained:
    """The tensors of the trained model by their released names; as make_checkpoint.Weights."""

    def __init__(self, state, dtype):
        self.state, self.dtype = {name: tensor.float().numpy() for name, tensor in state.items()}, dtype
        self.entries, self.makers = [], {}
        self.bf16("model.embed_tokens.weight", self.state["embed"])
        layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
        for layer in range(layers):
            self.list_layer(f"model.layers.{layer}.", f"layers.{layer}.")
        self.bf16("model.norm.weight", self.state["norm"])
        self.bf16("lm_head.weight", self.state["head"])

    def list_layer(self, to, at):
        own = lambda name: self.state[at + name]
        self.bf16(to + "input_layernorm.weight", own("input_norm"))
        for part in "qkvo":
            self.matrix(f"{to}self_attn.{part}_proj.weight", own(part))
        self.bf16(to + "self_attn.q_norm.weight", own("q_norm"))
        self.bf16(to + "self_attn.k_norm.weight", own("k_norm"))
        self.bf16(to + "post_attention_layernorm.weight", own("post_norm"))
        moe = to + "block_sparse_moe."
        self.add(moe + "gate.weight", "F32", own("gate"))
        self.add(moe + "e_score_correction_bias", "F32", own("correction"))
        for expert in range(len(own("w1"))):
            for part in ("w1", "w2", "w3"):
                self.matrix(f"{moe}experts.{expert}.{part}.weight", own(part)[expert])

    def add(self, name, dtype, array):
        self.entries.append((name, dtype, array.shape))
        self.makers[name] = lambda: array

    def bf16(self, name, array):
        self.add(name, "BF16", make_checkpoint.to_bf16(array.copy()))

    def matrix(self, name, array):
        if self.dtype == "bf16":
            return self.bf16(name, array)
        codes, scales = make_checkpoint.quantise(array.copy())
        self.add(name, "F8_E4M3", codes)
        self.add(name + "_scale_inv", "F32", scales)


def config_of(shape, dtype):
    options = argparse.Namespace(
        layers=shape.layers, hidden=shape.hidden, intermediate=shape.width, heads=shape.heads,
        kv_heads=shape.kv_heads, head_dim=shape.head_dim, rotary_dim=shape.rotary, rope_theta=int(shape.theta),
        experts=shape.experts, top_k=shape.chosen, max_position=4096, vocab_size=shape.vocab, dtype=dtype)  # fmt: skip
    return make_checkpoint.config_of(options)


def export(state, tokenizer, folder, dtype, shards):
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")]:
        old.unlink()
    if tokenizer.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    shutil.copyfile(HERE / "chat_template.jinja", folder / "chat_template.jinja")
    added = {t["content"]: t["id"] for t in json.loads(tokenizer.read_text())["added_tokens"]}
    make_checkpoint.write_json(folder / "tokenizer_config.json", make_checkpoint.TOKENIZER_CONFIG)
    make_checkpoint.write_json(folder / "generation_config.json", make_checkpoint.generation_config_of(added))
    make_checkpoint.write_json(folder / "config.json", config_of(Shape(), dtype))
    make_checkpoint.write_weights(folder, Trained(state, dtype), shards)


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("weights", help="what train.py wrote")
    options.add_argument("tokenizer", type=pathlib.Path)
    options.add_argument("out", type=pathlib.Path)
    options.add_argument("--dtype", choices=["fp8", "bf16"], default="fp8")
    options.add_argument("--shards", type=int, default=2)
    options = options.parse_args()
    state = torch.load(options.weights, map_location="cpu")["model"]
    export(state, options.tokenizer, options.out, options.dtype, options.shards)
    print(f"{options.out}: {sum(f.stat().st_size for f in options.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
