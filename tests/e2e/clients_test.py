"""litellm and langchain as clients of the scripted server, on every surface they speak."""

import json
import os
import sys
import unittest

from scripted import ServerCase, main

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched from elsewhere
os.environ["LANGSMITH_TRACING"] = "false"
try:
    import litellm
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI
except ImportError as missing:
    print(f"skipped: {missing}: tools/setup agents")
    sys.exit(77)

litellm.telemetry = False
HELLO = "Hello, world! 你好 🎉"
PARIS = {"city": "Paris", "days": 3}
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}}}}}


def user(script):
    return {"role": "user", "content": f"script:{script};"}


class Litellm(ServerCase):
    CONFIG = {"prompt_tokens_details": True}

    def complete(self, model, messages, **fields):
        base = f"http://127.0.0.1:{self.server.port}"
        return litellm.completion(
            model=model, messages=messages, api_key="x", max_tokens=200, num_retries=0,
            api_base=base if model.startswith("anthropic/") else base + "/v1", **fields)

    def test_round_trips(self):
        for model in ("hosted_vllm/scripted", "openai/scripted", "anthropic/scripted"):
            with self.subTest(model):
                reply = self.complete(model, [user("tool")], tools=[TOOL])
                message = reply.choices[0].message
                self.assertEqual(json.loads(message.tool_calls[0].function.arguments), PARIS)
                self.assertEqual(message.reasoning_content, "I need the weather.")
                history = [user("tool"), message.model_dump(exclude_none=True),
                           {"role": "tool", "tool_call_id": message.tool_calls[0].id,
                            "content": "Sunny. script:hello;"}]
                answer = self.complete(model, history, tools=[TOOL])
                self.assertEqual(answer.choices[0].message.content, HELLO)
                self.assertGreater(answer.usage.prompt_tokens_details.cached_tokens, 0)

    def test_streams(self):
        for model in ("hosted_vllm/scripted", "openai/scripted", "anthropic/scripted"):
            with self.subTest(model):
                chunks = list(self.complete(model, [user("hello")], stream=True))
                whole = litellm.stream_chunk_builder(chunks).choices[0].message
                self.assertEqual(whole.content, HELLO)
                self.assertEqual(whole.reasoning_content, "A greeting is due.")

    def test_responses(self):
        reply = litellm.responses(model="openai/scripted", input="script:hello;", api_key="x",
                                  api_base=f"http://127.0.0.1:{self.server.port}/v1")
        self.assertEqual(reply.output[1].content[0].text, HELLO)

    def test_errors(self):
        with self.assertRaises(litellm.NotFoundError):
            self.complete("openai/nope", [user("hello")])
        with self.assertRaises(litellm.NotFoundError):
            self.complete("anthropic/nope", [user("hello")])


class Langchain(ServerCase):
    def model(self, **fields):
        return ChatOpenAI(model="scripted", base_url=f"http://127.0.0.1:{self.server.port}/v1",
                          api_key="x", max_retries=0, **fields)

    def round_trip(self, model):
        bound = model.bind_tools([TOOL])
        question = HumanMessage("script:tool;")
        reply = bound.invoke([question])
        self.assertEqual(reply.tool_calls[0]["args"], PARIS)
        result = ToolMessage("Sunny. script:hello;", tool_call_id=reply.tool_calls[0]["id"])
        return bound.invoke([question, reply, result])

    def test_chat_drops_thinking_and_gets_it_back(self):
        seen = []
        import httpx
        client = httpx.Client(event_hooks={"response": [lambda r: seen.append(r.headers)]})
        answer = self.round_trip(self.model(http_client=client))
        self.assertEqual(answer.content, HELLO)
        self.assertEqual([h.get("x-m2-reasoning-restored") for h in seen], [None, "1"])
        client.close()

    def test_responses(self):
        answer = self.round_trip(self.model(use_responses_api=True))
        self.assertEqual(answer.text, HELLO)

    def test_stream(self):
        whole = None
        for chunk in self.model(stream_usage=True).stream("script:hello;"):
            whole = chunk if whole is None else whole + chunk
        self.assertEqual(whole.content, HELLO)
        self.assertGreater(whole.usage_metadata["output_tokens"], 0)


if __name__ == "__main__":
    main()
