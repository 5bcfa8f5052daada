#!/usr/bin/env python3
"""Compares a server that runs m2-micro with transformers' MiniMaxM2ForCausalLM on the same checkpoint.

    tools/micro/check_transformers.py URL CHECKPOINT

transformers loads the folder itself, dequantises and computes in float32. For every golden question the
prompt (its tokenizer, its chat template) must have the server's ids, and the log-probabilities of the
server's greedy answer must agree; prints the largest difference. Needs torch and transformers.
"""

import json
import pathlib
import sys
import urllib.request

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def main():
    url, folder = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True))  # fmt: skip
    model = model.float().eval()
    largest, tokens = 0.0, 0
    for golden in json.loads((ROOT / "tests/golden/micro/answers.json").read_text()):
        request = {key: golden[key] for key in ("messages", "tools") if key in golden}
        prompt = tokenizer.apply_chat_template(
            request["messages"], tools=request.get("tools"), add_generation_prompt=True, tokenize=True,
            return_dict=False)  # fmt: skip
        assert post(url + "/tokenize", request)["tokens"] == list(prompt), golden["messages"][-1]
        body = {"prompt": list(prompt), "max_tokens": 400, "temperature": 0, "logprobs": 1,
                "return_token_ids": True}  # fmt: skip
        choice = post(url + "/v1/completions", body)["choices"][0]
        answer = choice["token_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        assert rows.argmax(-1).tolist() == answer, golden["messages"][-1]
        ours = torch.tensor(choice["logprobs"]["token_logprobs"]).double()
        largest = max(largest, float((rows[torch.arange(len(answer)), answer] - ours).abs().max()))
        tokens += len(answer)
    print(f"{tokens} greedy tokens are transformers' too; log-probabilities differ by at most {largest:.2g}")


if __name__ == "__main__":
    main()
