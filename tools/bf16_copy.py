#!/usr/bin/env python3
"""Writes the BF16 copy of an FP8 block checkpoint: each weight times its block's scale, rounded once.

    tools/bf16_copy.py CHECKPOINT OUT

Small checkpoints only: a file of weights is held in memory. Needs numpy alone.
"""

import argparse
import json
import pathlib
import shutil
import struct

import numpy as np

from make_checkpoint import BLOCK, to_bf16, write_json, write_safetensors

SCALE = "_scale_inv"
DTYPES = {"F32": np.float32, "BF16": np.uint16, "F8_E4M3": np.uint8}


def e4m3_values():
    """The value of each of the 256 codes."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


def read_safetensors(path):
    """{name: (dtype, array)}."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = np.frombuffer(data[8 + length + begin : 8 + length + end], DTYPES[entry["dtype"]])
            out[name] = entry["dtype"], array.reshape(entry["shape"])
    return out


class Dequantised:
    """The tensors of a checkpoint without FP8; as make_checkpoint.Weights."""

    def __init__(self, stored):
        self.entries, self.makers = [], {}
        values = e4m3_values()
        for name, (dtype, array) in stored.items():
            if name.endswith(SCALE):
                continue
            if dtype == "F8_E4M3":
                scale = stored[name + SCALE][1].repeat(BLOCK, 0).repeat(BLOCK, 1)
                product = values[array] * scale[: array.shape[0], : array.shape[1]]
                dtype, array = "BF16", to_bf16(product)
            self.entries.append((name, dtype, array.shape))
            self.makers[name] = lambda array=array: array


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("checkpoint", type=pathlib.Path)
    options.add_argument("out", type=pathlib.Path)
    options = options.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stored = {}
    for path in sorted(options.checkpoint.glob("model*.safetensors")):
        stored.update(read_safetensors(path))
    weights = Dequantised(stored)
    write_safetensors(options.out / "model.safetensors", weights, weights.entries)
    config = json.loads((options.checkpoint / "config.json").read_text())
    config.pop("quantization_config", None)
    write_json(options.out / "config.json", config)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (options.checkpoint / name).exists():
            shutil.copyfile(options.checkpoint / name, options.out / name)


if __name__ == "__main__":
    main()
