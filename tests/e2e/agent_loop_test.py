"""Thirty turns of a tool loop on each surface: what the client sends back, the prefix cache has."""

import json
import math
import unittest

from scripted import ServerCase, main

TURNS = 30
BLOCK = 16
QUESTION = "Count the words of every file. " + "Mind the details of each. " * 40 + "script:t0;"
TOOL = {
    "name": "read_file", "description": "Reads a file.",
    "parameters": {"type": "object", "properties": {
        "path": {"type": "string"}, "options": {"type": "object"},
        "ratio": {"type": "number"}}},
}


def script(i):
    """A turn written as a model may and a renderer would not: JSON without spaces, 1e1, blanks."""
    return (
        f"Turn {i}: the next file is due 数🎉.\n</think>\n\nReading.\n\n"
        "<minimax:tool_call>\n<invoke name=\"read_file\">\n"
        f"<parameter name=\"path\">/data/{i}.txt</parameter>\n"
        f"<parameter name=\"options\">{{\"a\":[1,{i}],\"b\":null}}</parameter>\n"
        f"<parameter name=\"ratio\">{i}.50</parameter>\n"
        "</invoke>\n</minimax:tool_call>")


SCRIPTS = {f"t{i}": {"text": script(i)} for i in range(TURNS)}
SCRIPTS["end"] = {"text": "Done.\n</think>\n\nAll counted."}


def result(i):
    name = f"t{i}" if i < TURNS else "end"
    return f"The file holds {i * 7 + 3} words. script:{name};"


class Chat:
    path = "/v1/chat/completions"

    def __init__(self, name=""):
        self.name = name  # loops of different names have no beginning in common
        self.tools = [{"type": "function", "function": TOOL}]
        self.messages = [{"role": "user", "content": self.question()}]

    def question(self):
        return f"{self.name}: {QUESTION}"

    def body(self):
        return {"model": "scripted", "messages": self.messages, "tools": self.tools,
                "max_tokens": 400}

    def read(self, reply):
        self.message = reply["choices"][0]["message"]
        usage = reply["usage"]
        return (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"],
                usage["completion_tokens"])

    def calls(self):
        return [c["id"] for c in self.message["tool_calls"]]

    def text(self):
        return self.message["content"]

    def reasoning(self):
        return self.message["reasoning"]

    def answer(self, text, drop):
        message = {"role": "assistant", "content": self.message["content"],
                   "tool_calls": self.message["tool_calls"]}
        if not drop:
            message["reasoning_content"] = self.message["reasoning_content"]
        self.messages.append(message)
        self.messages.append({"role": "tool", "tool_call_id": self.calls()[0], "content": text})


class Responses(Chat):
    path = "/v1/responses"

    def __init__(self, name=""):
        self.name = name
        self.tools = [{"type": "function", **TOOL}]
        self.items = [{"role": "user", "content": self.question()}]

    def body(self):
        return {"model": "scripted", "input": self.items, "tools": self.tools, "store": False}

    def read(self, reply):
        self.output = reply["output"]
        usage = reply["usage"]
        return (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"],
                usage["output_tokens"])

    def calls(self):
        return [i["call_id"] for i in self.output if i["type"] == "function_call"]

    def text(self):
        return "".join(i["content"][0]["text"] for i in self.output if i["type"] == "message")

    def reasoning(self):
        return "".join(i["content"][0]["text"] for i in self.output if i["type"] == "reasoning")

    def answer(self, text, drop):
        self.items += [i for i in self.output if not (drop and i["type"] == "reasoning")]
        self.items.append({"type": "function_call_output", "call_id": self.calls()[0],
                           "output": text})


class Messages(Chat):
    path = "/v1/messages"

    def __init__(self, name=""):
        self.name = name
        self.tools = [{"name": TOOL["name"], "description": TOOL["description"],
                       "input_schema": TOOL["parameters"]}]
        self.messages = [{"role": "user", "content": self.question()}]

    def body(self):
        return {"model": "scripted", "messages": self.messages, "tools": self.tools,
                "max_tokens": 400}

    def read(self, reply):
        self.content = reply["content"]
        usage = reply["usage"]
        cached = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + cached, cached, usage["output_tokens"]

    def calls(self):
        return [b["id"] for b in self.content if b["type"] == "tool_use"]

    def text(self):
        return "".join(b["text"] for b in self.content if b["type"] == "text")

    def reasoning(self):
        return "".join(b["thinking"] for b in self.content if b["type"] == "thinking")

    def answer(self, text, drop):
        self.messages.append({"role": "assistant", "content": [
            b for b in self.content if not (drop and b["type"] == "thinking")]})
        self.messages.append({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": self.calls()[0],
             "content": [{"type": "text", "text": text}]}]})


class Loop(ServerCase):
    CONFIG = {"scripts": SCRIPTS, "prompt_tokens_details": True, "max_model_len": 16384}

    def run_loop(self, surface, drop, turns):
        client = surface(f"{surface.path} {drop}")
        prompt_tokens = cached_tokens = previous = 0
        for turn in range(turns + 1):
            status, headers, text = self.server.request("POST", client.path, client.body())
            self.assertEqual(status, 200, text)
            prompt, cached, output = client.read(json.loads(text))
            prompt_tokens += prompt
            cached_tokens += cached
            # Everything the cache can have: whole blocks of the last prompt and answer (the last
            # token of an answer is never fed to the model).
            self.assertGreaterEqual(cached, math.floor((previous - 1) / BLOCK) * BLOCK, turn)
            self.assertEqual(headers.get("x-m2-reasoning-restored"),
                             str(turn) if drop and turn else None)
            previous = prompt + output
            if turn < turns:
                self.assertIn(f"Turn {turn}:", client.reasoning())
                client.answer(result(turn + 1 if turn + 1 < turns else TURNS), drop)
        self.assertEqual(client.text(), "All counted.")
        rate = cached_tokens / prompt_tokens
        print(f"{client.path}, reasoning {'dropped' if drop else 'kept'}: {cached_tokens} of "
              f"{prompt_tokens} prompt tokens from the cache, {rate:.4f}")
        return rate

    def test_thirty_turns_of_a_client_that_drops_thinking(self):
        for surface in (Chat, Responses, Messages):
            self.assertGreaterEqual(self.run_loop(surface, drop=True, turns=TURNS), 0.95)

    def test_turns_of_a_client_that_sends_it_back(self):
        for surface in (Chat, Responses, Messages):
            self.run_loop(surface, drop=False, turns=5)

    def test_changed_turns_are_read_anew(self):
        client = Chat()
        _, reply = self.server.post(client.path, client.body())
        client.read(reply)
        client.answer(result(1), False)
        call = client.messages[1]["tool_calls"][0]["function"]
        call["arguments"] = call["arguments"].replace("/data/0.txt", "/data/changed.txt")
        client.messages[1]["reasoning_content"] = "Something else."
        _, reply = self.server.post(client.path + "/render", client.body())
        prompt = reply[1][0]["prompt"]
        self.assertIn("<think>\nSomething else.\n</think>", prompt)
        self.assertIn("/data/changed.txt", prompt)
        self.assertIn('{"a": [1, 0], "b": null}', prompt)  # printed, not as sampled

    def test_the_prompt_says_what_was_sampled(self):
        client = Chat()
        _, reply = self.server.post(client.path, client.body())
        client.read(reply)
        client.answer(result(1), True)
        _, reply = self.server.post(client.path + "/render", client.body())
        self.assertIn("]~b]ai\n<think>\n" + script(0) + "[e~[\n]~b]tool", reply[1][0]["prompt"])
        # A new question ends the loop: the template drops the thinking of the turns before it.
        client.messages += [{"role": "assistant", "content": "ok"},
                            {"role": "user", "content": "And now?"}]
        _, reply = self.server.post(client.path + "/render", client.body())
        self.assertNotIn("the next file is due", reply[1][0]["prompt"])


class Off(ServerCase):
    CONFIG = {"scripts": SCRIPTS, "keep_turns": False, "max_model_len": 16384}

    def test_nothing_is_restored(self):
        client = Chat()
        _, reply = self.server.post(client.path, client.body())
        client.message = reply["choices"][0]["message"]
        client.answer(result(1), True)
        _, headers, _ = self.server.request("POST", client.path, client.body())
        self.assertNotIn("x-m2-reasoning-restored", headers)
        _, reply = self.server.post(client.path + "/render", client.body())
        self.assertNotIn("the next file is due", reply[1][0]["prompt"])


class Bound(ServerCase):
    CONFIG = {"scripts": SCRIPTS, "max_turns": 1, "max_model_len": 16384}

    def test_old_turns_are_forgotten(self):
        clients = [Chat(), Chat()]
        for client in clients:
            _, reply = self.server.post(client.path, client.body())
            client.message = reply["choices"][0]["message"]
            client.answer(result(1), True)
        restored = [self.server.request("POST", c.path, c.body())[1].get("x-m2-reasoning-restored")
                    for c in (clients[1], clients[0])]
        self.assertEqual(restored, ["1", None])


if __name__ == "__main__":
    main()
