#!/usr/bin/env python3
"""Writes models/m2-micro/golden.json: logits of m2-micro by transformers, for `m2 doctor`.

    tools/micro/capture_logits.py      (needs torch, transformers, safetensors, numpy)

The format is that of tests/golden/model (README.md there), with the model beside the file instead of
made from options. The prompts are questions through the chat template; the greedy answer's tokens must be
clear, as there. Runs with rounded inputs have all of the answer's rows: where another rounding chooses another expert a row
is far off, so devices that round are judged by the middle of many (app/doctor/golden.cc).
"""

import pathlib
import sys

import torch
from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import capture_goldens  # noqa: E402

MODEL = ROOT / "models" / "m2-micro"
QUESTIONS = ["What is 347 + 58?", "Hello"]
TOKENS = 12


def main():
    capture_goldens.GREEDY_TOKENS = TOKENS
    capture_goldens.numbers = lambda row: [float(f"{value:.4g}") for value in row.tolist()]
    models = {dtype: capture_goldens.build_reference(MODEL, dtype) for dtype in (torch.float32, torch.float64)}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    runs = []
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True,
            return_dict=False)  # fmt: skip
        for inputs in ("f32", "bf16"):
            whole = inputs == "bf16"
            found = capture_goldens.capture_run(
                models, list(prompt), "bf16", inputs, len(tokenizer), whole)
            if found is None:
                sys.exit(f"{question}: unclear choices")
            runs.append(found)
            print(f"{question}: prompt of {len(prompt)}, inputs {inputs}, smallest margin "
                  f"{found['smallest_margin']:.2f}, float64 differs by {found['float64_difference']:.2g}: "
                  f"{tokenizer.decode(found['greedy'])!r}")  # fmt: skip
    capture_goldens.write_golden(MODEL / "golden.json", {"id_limit": len(tokenizer), "runs": runs})


if __name__ == "__main__":
    main()
