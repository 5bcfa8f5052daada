"""The openai SDKs for Python and Node as clients of the scripted server."""

import json
import os
import shutil
import subprocess
import sys
import unittest

from scripted import ServerCase, main

try:
    import openai
except ImportError:
    print("skipped: the openai package is not installed")
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TOOLS = [{
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
    },
}]


def user(script):
    return {"role": "user", "content": f"script:{script};"}


class Python(ServerCase):
    CONFIG = {"api_keys": ["secret"], "prompt_tokens_details": True}

    def setUp(self):
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.server.port}/v1", api_key="secret", max_retries=0)
        self.chat = self.client.chat.completions

    def tearDown(self):
        self.client.close()

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["scripted", "other-name"])

    def test_chat(self):
        reply = self.chat.create(model="scripted", messages=[user("hello")])
        message = reply.choices[0].message
        self.assertEqual(message.content, "Hello, world! 你好 🎉")
        self.assertEqual(message.reasoning, "A greeting is due.")
        self.assertEqual(message.reasoning_content, "A greeting is due.")
        self.assertGreaterEqual(reply.usage.prompt_tokens_details.cached_tokens, 0)
        again = self.chat.create(model="scripted", messages=[
            {"role": "system", "content": "x " * 100}, user("hello")])
        again = self.chat.create(model="scripted", messages=[
            {"role": "system", "content": "x " * 100}, user("hello")])
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 0)

    def test_stream(self):
        content = reasoning = ""
        usage = None
        for chunk in self.chat.create(model="scripted", messages=[user("hello")], stream=True,
                                      stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        self.assertEqual((content, reasoning), ("Hello, world! 你好 🎉", "A greeting is due."))
        self.assertGreater(usage.completion_tokens_details.reasoning_tokens, 0)

    def test_tool_round_trip(self):
        reply = self.chat.create(model="scripted", messages=[user("tool")], tools=TOOLS)
        message = reply.choices[0].message
        self.assertEqual(reply.choices[0].finish_reason, "tool_calls")
        call = message.tool_calls[0]
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris", "days": 3})
        history = [user("tool"), message.model_dump(exclude_none=True),
                   {"role": "tool", "tool_call_id": call.id, "content": "Sunny. script:hello;"}]
        answer = self.chat.create(model="scripted", messages=history, tools=TOOLS)
        self.assertEqual(answer.choices[0].message.content, "Hello, world! 你好 🎉")

    def test_tool_call_streamed(self):
        name, arguments, ids = "", "", set()
        for chunk in self.chat.create(model="scripted", messages=[user("tool")], tools=TOOLS,
                                      stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                ids.update([call.id] if call.id else [])
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            finish = chunk.choices[0].finish_reason
        self.assertEqual((name, json.loads(arguments), len(ids), finish),
                         ("get_weather", {"city": "Paris", "days": 3}, 1, "tool_calls"))

    def test_completion_with_logprobs(self):
        reply = self.client.completions.create(
            model="scripted", prompt="script:plain;<fim_middle>", logprobs=2, max_tokens=3)
        self.assertEqual(reply.choices[0].text, "one two three")
        self.assertEqual(reply.choices[0].logprobs.tokens, ["one", " two", " three"])
        self.assertEqual(len(reply.choices[0].logprobs.top_logprobs[0]), 2)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError):
            self.chat.create(model="nope", messages=[user("hello")])
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat.create(model="scripted", messages=[user("hello")], top_p=2)
        self.assertIn("top_p must be in (0, 1], got 2.0.", str(caught.exception))
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.client.base_url, api_key="wrong").models.list()
        with self.assertRaises(openai.APIError):
            for _ in self.chat.create(model="scripted", messages=[user("nan")], stream=True):
                pass


class Node(ServerCase):
    def test_openai_node(self):
        node = shutil.which("node")
        if not node:
            self.skipTest("node is not installed")
        places = [os.path.join(p, "node_modules") for p in (HERE, ROOT)]
        modules = next((p for p in places if os.path.isdir(os.path.join(p, "openai"))), None)
        if not modules:
            self.skipTest("the openai package for node is not installed: npm install in tests/e2e")
        result = subprocess.run(
            [node, os.path.join(HERE, "sdk_test.mjs"), modules,
             f"http://127.0.0.1:{self.server.port}/v1"],
            capture_output=True, text=True, timeout=60)
        self.assertEqual((result.returncode, result.stdout.strip()), (0, "ok"), result.stderr)


if __name__ == "__main__":
    main()
