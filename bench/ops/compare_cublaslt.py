#!/usr/bin/env python3
"""The model's dense products by cuBLASLt, beside those of `m2 bench ops`.

    bench/ops/compare_cublaslt.py [--seconds 0.2]      (needs a GPU and torch >= 2.9)

Shapes and method are those of `m2 bench ops`: many calls in a graph, weights that rotate over more than
L2 holds, random numbers, the least and the median of the batches' times. cuBLASLt is reached through
PyTorch: BF16; FP8 with one scale a tensor; FP8 with a scale for each token and each row of weights; FP8 with
the model's own scales (128 columns of a token, 128 x 128 of the weights). Inputs come quantised. Prints a
table; a product that the library refuses is left out, with what it says on stderr.
"""

import argparse
import sys
import time

import torch

SHAPES = {"qkv 8192x3072": (8192, 3072), "o 3072x6144": (3072, 6144), "head 200064x3072": (200064, 3072)}
TOKENS = (1, 8, 64, 8192)
BETWEEN = 256 << 20  # bytes of weights before one is met again
F8 = torch.float8_e4m3fn


def cast(rows, columns, dtype):
    values = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
    return values.to(dtype)


def scales(*shape):
    return torch.rand(shape, device="cuda") + 0.5


def bf16(tokens, rows, columns):
    x = cast(tokens, columns, torch.bfloat16)
    return x, lambda: cast(rows, columns, torch.bfloat16), lambda w: x @ w.t()


def scaled(x_scale, w_scale):
    def make(tokens, rows, columns):
        x, a, b = cast(tokens, columns, F8), x_scale(tokens, columns), w_scale(rows, columns)
        multiply = lambda w: torch._scaled_mm(x, w.t(), a, b, out_dtype=torch.bfloat16)
        return x, lambda: cast(rows, columns, F8), multiply

    return make


KINDS = {
    "bf16": bf16,
    "fp8, one scale": scaled(lambda t, k: scales(), lambda n, k: scales()),
    "fp8, a scale a row": scaled(lambda t, k: scales(t, 1), lambda n, k: scales(1, n)),
    "fp8, blocks of 128": scaled(
        lambda t, k: scales(k // 128, t).t(), lambda n, k: scales(n // 128, k // 128).t()),
}  # fmt: skip


def measure(make, tokens, rows, columns, seconds):
    """(least, median) seconds of a call."""
    x, weight, multiply = make(tokens, rows, columns)
    first = weight()
    copies = max(1, -(-BETWEEN // (first.numel() * first.element_size())))
    weights = [first, *(weight() for _ in range(copies - 1))]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            start = time.perf_counter()
            multiply(first)
            stream.synchronize()
        calls = max(1, int(5e-3 / max(time.perf_counter() - start, 1e-6)))
        calls = -(-calls // copies) * copies
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(calls):
                multiply(weights[i % copies])
        times = []
        begin = time.perf_counter()
        while len(times) < 6 or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            graph.replay()
            stream.synchronize()
            times.append((time.perf_counter() - start) / calls)
    times = sorted(times[1:])
    return times[0], times[len(times) // 2]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("--seconds", type=float, default=0.2, help="time spent on each row")
    seconds = arguments.parse_args().seconds
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| product | us | median | GB/s | TFLOP/s |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (rows, columns) in SHAPES.items():
        for kind, make in KINDS.items():
            if name.startswith("head") and kind != "bf16":
                continue
            for tokens in TOKENS:
                if name.startswith("head") and tokens > 64:
                    continue
                try:
                    least, median = measure(make, tokens, rows, columns, seconds)
                except Exception as error:  # whatever the library refuses with
                    print(f"{kind} {name}, {tokens} tokens: {str(error).splitlines()[0]}", file=sys.stderr)
                    torch.cuda.synchronize()
                    continue
                weight_bytes = rows * columns * (2 if kind == "bf16" else 1)
                print(f"| {kind} {name}, {tokens} tokens | {least * 1e6:.1f} | {median * 1e6:.1f} | "
                      f"{weight_bytes / least / 1e9:.0f} | "
                      f"{2 * tokens * rows * columns / least / 1e12:.1f} |", flush=True)  # fmt: skip
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
