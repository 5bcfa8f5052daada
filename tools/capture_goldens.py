#!/usr/bin/env python3
"""Writes tests/golden/model/*.json: what transformers computes for small random checkpoints.

    python3 tools/capture_goldens.py [NAME ...]      (needs torch, transformers, safetensors, numpy)

Each golden names the options of tools/make_checkpoint.py and the hashes of the files they give, so
that the checkpoints are made again where they are needed. The model is transformers'
MiniMaxM2ForCausalLM in float32 on the CPU with the dequantised weights. tests/golden/model/README.md
describes the files.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, MiniMaxM2Config, MiniMaxM2ForCausalLM

import make_checkpoint

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "model"
GREEDY_TOKENS = 24
PROMPT_LENGTHS = (9, 40, 150)
# Every greedy choice must be clearer than rounding can blur: the best token leads by this many times
# the difference between computing in float32 and in float64.
LEAST_LEAD = 3
# With rounded inputs a number near the middle of two bf16 values may fall either way, and everything
# behind it then differs by as much as rounding does: short prompts, of which some are clear.
ROUNDED_PROMPT_LENGTHS = (3, 9, 20)

# Heads, groups, widths and blocks that differ in every way a shape can: FP8 blocks that end inside
# a matrix (192, 320), one kv head for all, full rotation, no quantisation, one file without index.
CASES = {
    "plain_fp8": dict(
        seed=1, layers=2, hidden=128, intermediate=192, heads=4, kv_heads=2, head_dim=32,
        rotary_dim=16, experts=8, top_k=2, shards=2),
    "ragged_fp8": dict(
        seed=7, layers=3, hidden=192, intermediate=320, heads=6, kv_heads=3, head_dim=64,
        rotary_dim=32, experts=6, top_k=3, shards=3, mtp=1),
    "one_kv_head_fp8": dict(
        seed=1, layers=2, hidden=256, intermediate=64, heads=8, kv_heads=1, head_dim=128,
        rotary_dim=64, experts=16, top_k=4, shards=2),
    "bf16": dict(
        seed=3, layers=4, hidden=64, intermediate=96, heads=4, kv_heads=4, head_dim=32,
        rotary_dim=32, experts=4, top_k=2, shards=0, dtype="bf16"),
}  # fmt: skip


# ---- The reference model ----


def read_weights(folder):
    """All tensors in float32; FP8 matrices multiplied by their blocks' scales."""
    stored = {}
    for path in sorted(folder.glob("model*.safetensors")):
        stored.update(load_file(path))
    weights = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        weights[name] = tensor.float()
        scale = stored.get(name + "_scale_inv")
        if scale is not None:
            rows, columns = tensor.shape
            full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            weights[name] *= full[:rows, :columns]
    return weights


def reference_state(weights, config):
    """Released names -> transformers' names; the experts' matrices stacked as it holds them."""
    state = {}
    for name, tensor in weights.items():
        if ".experts." not in name:
            state[name.replace("block_sparse_moe", "mlp")] = tensor
    for layer in range(config["num_hidden_layers"]):
        experts = range(config["num_local_experts"])
        at = f"model.layers.{layer}.block_sparse_moe.experts."
        gate_up = [
            torch.cat([weights[f"{at}{e}.w1.weight"], weights[f"{at}{e}.w3.weight"]])
            for e in experts
        ]
        down = [weights[f"{at}{e}.w2.weight"] for e in experts]
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack(down)
    return state


def build_reference(folder, dtype):
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    weights = read_weights(folder)
    # Layers beyond the model's (MTP) are not part of it.
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not (name.startswith("model.layers.") and int(name.split(".")[2]) >= layers)
    }
    config.pop("quantization_config", None)
    settings = MiniMaxM2Config(**config, attn_implementation="eager")
    settings._experts_implementation = "eager"
    model = MiniMaxM2ForCausalLM(settings)
    model.load_state_dict(reference_state(kept, config), strict=True)
    assert 2 * model.model.rotary_emb.inv_freq.numel() == config["rotary_dim"]
    return model.to(dtype).eval()


@contextlib.contextmanager
def kv_rounded_to(dtype):
    """K (after norm and rotation) and V pass through `dtype` on their way into the cache."""
    original = DynamicCache.update

    def update(self, keys, values, *arguments, **named):
        if dtype is not None:
            keys, values = keys.to(dtype).to(keys.dtype), values.to(dtype).to(values.dtype)
        return original(self, keys, values, *arguments, **named)

    DynamicCache.update = update
    try:
        yield
    finally:
        DynamicCache.update = original


@contextlib.contextmanager
def inputs_rounded_to(dtype, routers):
    """The inputs of matrix products, but not the routers', pass through `dtype`."""
    original = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        if dtype is not None and not any(weight is router for router in routers):
            x = x.to(dtype).to(x.dtype)
        return original(x, weight, bias)

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = original


@torch.no_grad()
def run(model, prompt, kv_dtype, input_dtype, id_limit):
    """Logits of every position of the prompt, and the greedy continuation with its logits.

    The tokens chosen are below id_limit: rows beyond it are padding, which a server never samples.
    """
    routers = [layer.mlp.gate.weight for layer in model.model.layers]
    with kv_rounded_to(kv_dtype), inputs_rounded_to(input_dtype, routers):
        cache = DynamicCache(config=model.config)
        ids = torch.tensor([prompt])
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
        rows = [logits[-1]]
        greedy = [int(rows[-1][:id_limit].argmax())]
        while len(greedy) < GREEDY_TOKENS:
            ids = torch.tensor([[greedy[-1]]])
            rows.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1])
            greedy.append(int(rows[-1][:id_limit].argmax()))
    return logits, greedy, torch.stack(rows)


# ---- One golden ----


def smallest_margin(rows):
    """How far the best token leads the second best, at the step where it leads least."""
    best = rows.topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).min())


def numbers(row):
    return [float(f"{value:.7g}") for value in row.tolist()]


def capture_run(models, prompt, kv, inputs, id_limit, whole_answer=False):
    """A run, or None if rounding may blur one of its choices.

    Its logits are the prompt's last row (each of a short prompt) and the last of all, or, with
    whole_answer, each that gave a token of the answer.
    """
    dtypes = {"f32": None, "bf16": torch.bfloat16}
    arguments = (prompt, dtypes[kv], dtypes[inputs], id_limit)
    logits, greedy, rows = run(models[torch.float32], *arguments)
    exact, exact_greedy, exact_rows = run(models[torch.float64], *arguments)
    margin = smallest_margin(rows[:, :id_limit])
    difference = float(max((logits - exact).abs().max(), (rows - exact_rows).abs().max()))
    if greedy != exact_greedy or margin < LEAST_LEAD * difference:
        return None
    positions = range(len(prompt)) if len(prompt) < 16 else [len(prompt) - 1]
    # The first greedy token was judged by the prompt's last row; the last row stored is the one
    # that gave the last token.
    answer = range(1 if whole_answer else GREEDY_TOKENS - 1, GREEDY_TOKENS)
    return {
        "kv": kv,
        "inputs": inputs,
        "prompt": prompt,
        "positions": [*positions, *(len(prompt) - 1 + i for i in answer)],
        "logits": [numbers(logits[p]) for p in positions] + [numbers(rows[i]) for i in answer],
        "greedy": greedy,
        "smallest_margin": margin,
        "float64_difference": difference,
    }


def capture(name, changes, folder):
    options = make_checkpoint.parser().parse_args([str(folder)])
    vars(options).update(changes)
    make_checkpoint.make_checkpoint(folder, options)
    models = {dtype: build_reference(folder, dtype) for dtype in (torch.float32, torch.float64)}
    generator = np.random.Generator(np.random.PCG64(options.seed))
    prompts = [generator.integers(0, 512, length).tolist() for length in PROMPT_LENGTHS]
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    id_limit = max(token["id"] for token in tokens) + 1
    runs = []
    for prompt in prompts:
        for kv in ("f32", "bf16"):
            runs.append(capture_run(models, prompt, kv, "f32", id_limit))
            if runs[-1] is None:
                sys.exit(f"{name}: unclear choices, choose another seed for this case")
    # Prompts are drawn until every choice is clear.
    for length in ROUNDED_PROMPT_LENGTHS:
        found = None
        while found is None:
            prompt = generator.integers(0, 512, length).tolist()
            found = capture_run(models, prompt, "bf16", "bf16", id_limit)
        runs.append(found)
    hashes = make_checkpoint.hash_weights(folder)
    return {"checkpoint": changes, "sha256": hashes, "id_limit": id_limit, "runs": runs}


def write_golden(path, golden):
    """JSON with one line for each run."""
    runs = ",\n".join(json.dumps(run) for run in golden["runs"])
    head = json.dumps({key: golden[key] for key in golden if key != "runs"}, indent=1)
    path.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n]}}\n')


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    names = arguments.parse_args().names or list(CASES)
    torch.manual_seed(0)
    for name in names:
        if name not in CASES:
            sys.exit(f"no case {name}; there are {', '.join(CASES)}")
        with tempfile.TemporaryDirectory() as folder:
            golden = capture(name, CASES[name], pathlib.Path(folder))
        write_golden(FOLDER / f"{name}.json", golden)
        for r in golden["runs"]:
            print(f"{name}: prompt of {len(r['prompt'])}, kv {r['kv']}, "
                  f"inputs {r['inputs']}: smallest margin "
                  f"{r['smallest_margin']:.4f}, float64 differs by {r['float64_difference']:.2g}, "
                  f"{len(set(r['greedy']))} different tokens")  # fmt: skip


if __name__ == "__main__":
    main()
