#!/usr/bin/env python3
"""Writes the held-out items of each skill for `m2 eval`: OUT/SKILL.jsonl.

    tools/micro/write_sets.py TOKENIZER.json OUT [--items 200]
"""

import argparse
import json
import pathlib

import corpus
import evaluate


def wire_call(call, number):
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function",
            "function": {"name": function["name"], "arguments": arguments}}  # fmt: skip


def wire_messages(messages):
    """Messages as clients send them: arguments as text, calls and their results tied by ids."""
    out, number, open_ids = [], 0, []
    for message in messages:
        message = {key: value for key, value in message.items() if key != "reasoning_content"}
        if message.get("tool_calls"):
            open_ids = [f"call_{number + i}" for i in range(len(message["tool_calls"]))]
            message["tool_calls"] = [wire_call(c, number + i) for i, c in enumerate(message["tool_calls"])]
            number += len(open_ids)
        if message["role"] == "tool":
            message["tool_call_id"] = open_ids.pop(0)
        out.append(message)
    return out


def item_of(skill, number, exchange):
    last_user = max(i for i, message in enumerate(exchange.messages) if message["role"] == "user")
    asked = evaluate.with_system(exchange, exchange.messages[: last_user + 1])
    item = {"id": f"{skill}-{number}", "messages": wire_messages(asked)}
    if exchange.tools:
        item["tools"] = exchange.tools
    steps = []
    for message in exchange.messages[last_user + 1 :]:
        if message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            steps.append({"calls": calls, "results": []})
        elif message["role"] == "tool":
            steps[-1]["results"].append(message["content"])
    if steps:
        item["steps"] = steps
    return {**item, "answer": exchange.expect["answer"], "match": exchange.expect["match"]}


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("tokenizer")
    options.add_argument("out", type=pathlib.Path)
    options.add_argument("--items", type=int, default=200)
    options = options.parse_args()
    encoder = corpus.Encoder(options.tokenizer)
    options.out.mkdir(parents=True, exist_ok=True)
    for skill in evaluate.EVALUATED:
        items = evaluate.items_of(skill, options.items, encoder)
        lines = [json.dumps(item_of(skill, i, x), ensure_ascii=False) for i, x in enumerate(items)]
        (options.out / f"{skill}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
