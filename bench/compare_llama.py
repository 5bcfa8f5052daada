#!/usr/bin/env python3
"""Measures m2's steps on the CPU beside llama.cpp's family and transformers, in one run.

  bench/compare_llama.py --peer 'llama.cpp=/path/to/llama-bench' \\
                         --peer 'ik_llama.cpp=/path/to/llama-bench -rtr 1' [--transformers PYTHON]

All have MiniMax-M2's widths with few layers and experts and a small vocabulary, and random weights:
the peers a GGUF file (architecture minimax-m2, Q8_0: 8.5 bits a weight) that this script writes with
the `gguf` package, m2 FP8 (8 bits) made by bench/model/forward_bench, transformers BF16 (it has no
FP8 products on CPUs). The peers' programs are whatever the given commands run; options in the
command are passed on. They are asked for -p 512 -n 64, so that they decode from an empty context on,
m2 and transformers from 512 tokens on. The programs take turns, and medians over the rounds are
printed. Nothing else should run meanwhile.
"""

import argparse
import json
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import time

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, ROTARY, TOP, VOCABULARY = 3072, 1536, 48, 8, 128, 64, 8, 2048
PROMPT, GENERATED = 512, 64


def add_vocabulary(writer):
    """Tokens that no one reads, but that the programs ask for: three of control, 256 bytes, words."""
    import gguf

    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + 256 * [kinds.BYTE]
    words = VOCABULARY - len(tokens)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + [f"word{i}" for i in range(words)])
    writer.add_token_scores([float(-i) for i in range(VOCABULARY)])
    writer.add_token_types(types + words * [kinds.NORMAL])
    writer.add_add_bos_token(False)


def write_gguf(path, layers, experts):
    import gguf
    import numpy as np

    random = np.random.Generator(np.random.PCG64(1))
    q8 = gguf.GGMLQuantizationType.Q8_0

    def matrix(*shape):
        """Random Q8_0 blocks, a half and 32 signed bytes each, that keep a signal's size."""
        blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // 32, 34), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(1 / (74 * shape[-1]**0.5)).tobytes(), np.uint8)
        return blocks.reshape(*shape[:-1], shape[-1] // 32 * 34)

    ones = lambda width: np.ones(width, np.float32)
    writer = gguf.GGUFWriter(str(path), "minimax-m2")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_expert_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(ROTARY)
    writer.add_rope_freq_base(5e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(TOP)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    add_vocabulary(writer)
    add = lambda name, data: writer.add_tensor(name, data, raw_dtype=q8 if data.dtype == np.uint8 else None)
    add("token_embd.weight", matrix(VOCABULARY, HIDDEN))
    add("output_norm.weight", ones(HIDDEN))
    add("output.weight", matrix(VOCABULARY, HIDDEN))
    for layer in range(layers):
        block = f"blk.{layer}."
        add(block + "attn_norm.weight", ones(HIDDEN))
        add(block + "attn_q.weight", matrix(HEADS * HEAD_DIM, HIDDEN))
        add(block + "attn_k.weight", matrix(KV_HEADS * HEAD_DIM, HIDDEN))
        add(block + "attn_v.weight", matrix(KV_HEADS * HEAD_DIM, HIDDEN))
        add(block + "attn_q_norm.weight", ones(HEADS * HEAD_DIM))
        add(block + "attn_k_norm.weight", ones(KV_HEADS * HEAD_DIM))
        add(block + "attn_output.weight", matrix(HIDDEN, HEADS * HEAD_DIM))
        add(block + "ffn_norm.weight", ones(HIDDEN))
        spread = np.float32(HIDDEN**-0.5)
        add(block + "ffn_gate_inp.weight", random.standard_normal((experts, HIDDEN), np.float32) * spread)
        add(block + "exp_probs_b.bias", np.zeros(experts, np.float32))
        add(block + "ffn_gate_exps.weight", matrix(experts, INNER, HIDDEN))
        add(block + "ffn_up_exps.weight", matrix(experts, INNER, HIDDEN))
        add(block + "ffn_down_exps.weight", matrix(experts, HIDDEN, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def run_peer(command, model, threads):
    """{(name of what ran): (prompt, decode)} in tokens per second."""
    text = output_of([*command, "-m", str(model), "-p", str(PROMPT), "-n", str(GENERATED), "-t",
                      str(threads), "-r", "2", "-o", "json"])
    results = json.loads(text[text.index("["):])
    prompt = next(r["avg_ts"] for r in results if r["n_gen"] == 0)
    decode = next(r["avg_ts"] for r in results if r["n_prompt"] == 0)
    return prompt, decode, f"build {results[0]['build_commit']}"


def run_m2(program, layers, experts, threads):
    text = output_of([program, str(layers), str(experts), str(threads)])
    read = re.search(r"Read ([\d.]+) GB/s", text)[1]
    return {f"m2, {used}": (float(prompt), float(decode), f"{share} % of read at {read} GB/s")
            for used, decode, share, prompt in re.findall(
                r"^\| (\w+) \| ([\d.]+) \| (\d+) % \| ([\d.]+) \|", text, re.M)}


def run_transformers(layers, experts, threads):
    import torch
    import transformers

    torch.set_num_threads(threads)
    config = transformers.MiniMaxM2Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, rotary_dim=ROTARY,
        num_local_experts=experts, num_experts_per_tok=TOP, max_position_embeddings=4096)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.MiniMaxM2ForCausalLM(config).eval()
    ids = torch.randint(VOCABULARY, (1, PROMPT))
    with torch.inference_mode():
        model(ids, logits_to_keep=1)
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prompt = PROMPT / (time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(GENERATED):
            out = model(torch.randint(VOCABULARY, (1, 1)), past_key_values=out.past_key_values)
        decode = GENERATED / (time.perf_counter() - start)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps([prompt, decode, versions]))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND",
                        help="a llama-bench of llama.cpp's family, with its own options if any")
    parser.add_argument("--transformers", metavar="PYTHON", help="a Python that has torch and transformers")
    parser.add_argument("--forward-bench", default="build/bin/forward_bench")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/m2-compare"),
                        help="where the GGUF file is written and found again")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="only write the GGUF file")
    parser.add_argument("--run-transformers", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.run_transformers:
        return run_transformers(o.layers, o.experts, o.threads)
    model = o.folder / f"minimax-m2-{o.layers}x{o.experts}-q8_0.gguf"
    if not model.exists():
        o.folder.mkdir(parents=True, exist_ok=True)
        write_gguf(model.with_suffix(".part"), o.layers, o.experts)
        model.with_suffix(".part").rename(model)
    if o.prepare:
        return
    runs = {}
    for turn in range(o.rounds):
        print(f"round {turn + 1} of {o.rounds}", file=sys.stderr)
        for peer in o.peer:
            name, command = peer.split("=", 1)
            runs.setdefault(name, []).append(run_peer(shlex.split(command), model, o.threads))
        for name, result in run_m2(o.forward_bench, o.layers, o.experts, o.threads).items():
            runs.setdefault(name, []).append(result)
    if o.transformers:
        sizes = ["--layers", str(o.layers), "--experts", str(o.experts), "--threads", str(o.threads)]
        text = output_of([o.transformers, __file__, "--run-transformers", *sizes])
        runs["transformers, BF16"] = [tuple(json.loads(text.splitlines()[-1]))]
    medians = {name: [statistics.median(r[i] for r in results) for i in (0, 1)]
               for name, results in runs.items()}
    peers = [peer.split("=", 1)[0] for peer in o.peer]
    best = [max((medians[p][i] for p in peers), default=0) for i in (0, 1)]
    ratio = lambda value, best: f"{value / best:.2f}" if best else "-"
    print(f"{o.layers} layers, {o.experts} experts, {o.threads} threads, medians of {o.rounds} rounds.\n")
    print(f"| program | prompt of {PROMPT}, tokens/s | over the best peer | decode, tokens/s | over the best peer | |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, (prompt, decode) in medians.items():
        print(f"| {name} | {prompt:.1f} | {ratio(prompt, best[0])} | {decode:.1f} | {ratio(decode, best[1])} | "
              f"{runs[name][-1][2]} |")


if __name__ == "__main__":
    main()
