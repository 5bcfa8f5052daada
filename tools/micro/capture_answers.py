#!/usr/bin/env python3
"""Writes tests/golden/micro/answers.json: m2-micro's greedy answers, with how clear each choice was.

    tools/micro/capture_answers.py URL        (a server that runs m2-micro)

An answer is kept only if at every step the best token leads the second by LEAST_LEAD in log-probability
(so in logits), many times what rounding can move, and if the sentence before the prompt (none, or an
assistant's) does not matter here. The questions are below.
"""

import json
import pathlib
import sys
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "tests" / "golden" / "micro" / "answers.json"
LEAST_LEAD = 2.0


def tool(name, description, /, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function",
            "function": {"name": name, "description": description, "parameters": parameters}}  # fmt: skip


TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
WEATHER = tool("get_weather", "Get the weather of a city.", city=TEXT)
BOOK = tool("book_room", "Book a room in the system.", room_number=INTEGER, name=TEXT)
READ = tool("read_file", "Read a file.", path=TEXT)
SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}'
NOTES = "The red lamp is in the garden. Anna bought a new book in Oslo. The code word is tremalo. Every house has a door."


def asked(*contents, tools=()):
    """A conversation: user and assistant by turns."""
    roles = ["user", "assistant"]
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": messages, **({"tools": list(tools)} if tools else {})}


QUESTIONS = [
    asked("What is 347 + 58?"), asked("What is 905 - 467?"), asked("12 - 85"), asked("What is 999 + 999?"),
    asked("Tom has 120 apples and buys 45 more. How many apples does Tom have now?"),
    asked("Who are you?"), asked("Hello"), asked("What can you do?"), asked("What is the capital of France?"),
    asked("What is the weather in Oslo?", tools=[WEATHER]),
    asked("What is the weather in Oslo?", tools=[READ]),
    asked('Call book_room with room_number 231 and name Miriam.', tools=[WEATHER, BOOK]),
    asked("Read the file /tmp/notes.txt", tools=[READ, WEATHER]),
    asked("What is the weather in Rome? Also, read the file src/main.py.", tools=[READ, WEATHER]),
    asked(NOTES + "\n\nWhat is the code word?"),
    asked("Remember the number 250.", "The number is 250.", "Add 75 to it."),
    asked("Anna has 34 books.", "Noted: Anna 34.", "And Ben has 28 books.", "Noted: Ben 28.",
          "How many books do Anna and Ben have together?"),
    asked("What is 20 + 30?", "20 + 30 = 50.", "And minus 8?"),
    asked(f"Fill this JSON schema: {SCHEMA}\nText: name is Miriam, age is 34"),
    asked("Say blue river."),
]  # fmt: skip


def post(url, body):
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def capture(url, question):
    reply = post(url, {**question, "temperature": 0, "logprobs": True, "top_logprobs": 2})
    choice = reply["choices"][0]
    message = choice["message"]
    leads = [step["top_logprobs"][0]["logprob"] - step["top_logprobs"][1]["logprob"]
             for step in choice["logprobs"]["content"]]  # fmt: skip
    calls = [call["function"] for call in message.get("tool_calls") or []]
    answer = {"reasoning": message["reasoning"], "content": message["content"], "calls": calls,
              "finish_reason": choice["finish_reason"]}  # fmt: skip
    return {**question, "answer": answer, "steps": len(leads), "smallest_lead": round(min(leads), 3)}


def main():
    kept = []
    for question in QUESTIONS:
        golden = capture(sys.argv[1], question)
        good = golden["smallest_lead"] >= LEAST_LEAD
        print(f"{golden['smallest_lead']:7.3f} over {golden['steps']:3} steps {'' if good else '(left out)'}"
              f"  {question['messages'][-1]['content'][-50:]!r} -> {golden['answer']['content']!r}"
              f" {golden['answer']['calls'] or ''}")  # fmt: skip
        if good:
            kept.append(golden)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("[\n" + ",\n".join(json.dumps(golden, ensure_ascii=False) for golden in kept) + "\n]\n")


if __name__ == "__main__":
    main()
