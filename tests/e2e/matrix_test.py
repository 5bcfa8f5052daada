"""B-MATRIX: hostile values in every field of every described route, and relations between fields.
Whatever is sent, the answer is a 200 or one of the contract's 4xx, within a second; the server stays
ready, and 32 witnesses that are asked all the while keep their exact bytes. The fields are those of
/openapi.json, so a new route joins with one line in BASES."""

import itertools
import json
import os
import re
import threading
import time

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scripted import ServerCase, main

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "script:plain;"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}
STATUSES = (200, 400, 404, 413, 415, 422, 429)
SLOWEST = float(os.environ.get("M2_TIME_FACTOR", "1"))
# The quick run takes an eighth of the values, others for each field; the long one takes all.
SHARE = 1 if os.environ.get("M2_LONG") else 8

# A good request of every route that takes a body.
BASES = {
    CHAT: {"messages": USER, "max_tokens": 2},
    TEXT: {"prompt": "script:plain;<fim_middle>", "max_tokens": 2},
    "/invocations": {"messages": USER, "max_tokens": 2},
    CHAT + "/render": {"messages": USER, "max_tokens": 2},
    TEXT + "/render": {"prompt": "a", "max_tokens": 2},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/responses": {"input": "script:plain;", "max_output_tokens": 2},
    "/v1/messages": {"messages": USER, "max_tokens": 2, "model": "scripted"},
    "/v1/messages/count_tokens": {"messages": USER, "model": "scripted"},
}


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


MISSING = object()
VALUES = [
    MISSING, None, True, False, -1, 0, 1, 2, 20, 21, 1.5, -0.5, 200_053, 200_054, 200_064,
    2**31 - 1, 2**31, -2**31, 2**53 + 1, 2**63, 2**64, -2**63, 1e308, -1e308, 1e-308,
    "", "7", "NaN", "\0", "line\nbreak", "/", "🎉", "none", "auto", [], {}, [None], [""], [[]], [-1],
    [2**63], [1.5], ["a"] * 200, [0] * 2000, {"a": {}}, {"0": 1}, {"type": "x"}, {"type": None},
    [{"type": "text", "text": "a"}], [{}], nested(100)]
# Long ones, for every field once.
LARGE = ["x" * (1 << 20), ["y" * 100] * 10_000, {str(i): i for i in range(5_000)}]
# Bodies that are no JSON, or too much of it.
RAW = [b"", b"{", b"null", b"[]", b'"a"', b"3", b'{"model":"\xff\xfe"}', b'{"\xff":1}',
       b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b"\xef\xbb\xbf{}",
       b"[" * 100_000, b'{"a":' * 300 + b"1" + b"}" * 300, b"{}" + b" " * (17 << 20),
       b'{"a":0123}', b"{'a':1}", b'{"a":1,}', b"\x00"]

RELATIONS = {
    ("min_tokens", "max_tokens"): ([0, 1, 3, 1023, 1024], [None, 1, 2, 3, 1000, 1024]),
    ("truncate_prompt_tokens", "max_tokens", "truncation_side"): (
        [-1, 1, 2, 1022, 1023, 1024], [1, 2, 1024], ["left", "right"]),
    ("n", "temperature", "seed"): ([1, 2, 16, 17], [0, 1e-9, 1, 1e6, 1e7], [None, -1, 7]),
    ("stream", "stream_options", "prompt_logprobs"): (
        [False, True], [None, {}, {"include_usage": True, "continuous_usage_stats": True}],
        [None, 0, 1, -1]),
    ("echo", "max_tokens", "prompt_logprobs", "return_token_ids"): (
        [True], [0, 1, 2], [None, 0, 2], [False, True]),
    ("stop", "min_tokens", "include_stop_str_in_output"): (
        ["o", ["o", "n"] * 8, ["one two", "two"]], [0, 2], [False, True]),
    ("allowed_token_ids", "min_tokens", "logit_bias"): (
        [[200020], [10, 11], [200053]], [0, 1, 2], [None, {"10": -100}, {"200020": 100}]),
    ("bad_words", "stop_token_ids", "ignore_eos"): (
        [["one", " two"], ["🎉"]], [[], [200020], [10]], [False, True]),
    ("thinking_token_budget", "min_tokens", "bad_words"): ([0, 1, 2**62], [0, 2], [[], ["one"]]),
    ("top_k", "top_p", "min_p"): ([-1, 1, 2**31], [1e-9, 1], [0, 1]),
    ("presence_penalty", "frequency_penalty", "repetition_penalty"): ([-2, 2], [-2, 2], [1e-6, 1e6]),
    ("tools", "tool_choice", "parallel_tool_calls"): (
        [None, [], [TOOL], [TOOL] * 2], [None, "auto", "none"], [False, True]),
    ("continue_final_message", "add_generation_prompt", "echo"): (
        [False, True], [None, False, True], [False, True]),
    ("logprobs", "top_logprobs"): ([None, False, True, 0, 5, 20, 21], [None, 0, 1, 20, 21, -1]),
}

WITNESSES = [
    (path, {**body, **extra, "stream": stream})
    for stream in (False, True)
    for path, body, extras in (
        (CHAT, {"messages": [{"role": "user", "content": "script:hello;"}]},
         ({}, {"max_tokens": 5}, {"logprobs": True, "top_logprobs": 2}, {"return_token_ids": True},
          {"include_reasoning": False}, {"thinking_token_budget": 2}, {"stop": "world"})),
        (CHAT, {"messages": [{"role": "user", "content": "script:tool;"}], "tools": [TOOL]},
         ({}, {"tool_choice": "auto", "seed": 3, "temperature": 1}, {"max_tokens": 20})),
        (TEXT, {"prompt": "script:plain;<fim_middle>", "max_tokens": 9},
         ({}, {"stop": ["STOP"]}, {"echo": True}, {"logprobs": 3}, {"temperature": 1, "seed": 7})),
        (TEXT, {"prompt": "many words " * 300 + "script:words;<fim_middle>", "max_tokens": 40},
         ({},)))
    for extra in extras]


def masked(text):
    """A reply without what differs each time: ids and the time."""
    text = re.sub(r'"id":"(chatcmpl-tool|chatcmpl|cmpl)-[0-9a-f]{32}"', r'"id":"\1"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


class Witnesses:
    """Asks the fixed requests over and over beside whatever else a server is asked."""

    def __init__(self, server):
        self.server, self.rounds, self.faults = server, 0, []
        self.expected = [self.ask(*w) for w in WITNESSES]
        assert all(status == 200 for status, _ in self.expected), self.expected
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.loop)

    def ask(self, path, body):
        status, _, text = self.server.request("POST", path, body)
        return status, masked(text)

    def loop(self):
        while not self.over.is_set():
            for witness, expected in zip(WITNESSES, self.expected):
                found = self.ask(*witness)
                if found != expected:
                    self.faults.append((witness, expected, found))
            self.rounds += 1
            self.over.wait(0.2)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Matrix(ServerCase):
    CONFIG = {"max_model_len": 1024, "threads": 2, "store_responses": True}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        document = json.loads(cls.server.request("GET", "/openapi.json")[2])
        cls.schemas = {
            path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, methods in document["paths"].items()
            if "requestBody" in methods.get("post", {})}

    def setUp(self):
        self.seen = {}

    def check(self, path, body):
        # Answers that are asked to be long may take their time.
        asked = [body.get(name, 2) for name in ("max_tokens", "max_completion_tokens",
                                                "max_output_tokens")
                 ] if isinstance(body, dict) else []
        is_long = any(n is None or isinstance(n, (int, float)) and n > 50 for n in asked)
        slowest = 20.0 if is_long else 1.0
        for attempt in range(2):  # the machine may have been busy once
            began = time.monotonic()
            status, _, text = self.server.request("POST", path, body)
            took = time.monotonic() - began
            if took <= slowest * SLOWEST:
                break
        said = (path, str(body)[:300], text[:300])
        self.assertIn(status, STATUSES, said)
        self.assertLessEqual(took, slowest * SLOWEST, said)
        if status != 200:
            error = json.loads(text)["error"]
            self.assertTrue(error["message"], said)
            if "code" in error:
                self.assertEqual(error["code"], status, said)
        self.seen[status] = self.seen.get(status, 0) + 1

    def check_ready(self, witnesses):
        self.assertEqual(self.server.request("GET", "/readyz")[0], 200)
        self.assertEqual(witnesses.faults, [])
        self.assertGreater(witnesses.rounds, 0)

    def test_every_route_has_a_base(self):
        self.assertGreaterEqual(len(WITNESSES), 32)
        self.assertLessEqual(set(self.schemas), set(BASES))
        for path in self.schemas:
            status, _, text = self.server.request("POST", path, BASES[path])
            self.assertEqual(status, 200, (path, text))

    def test_every_field_with_every_value(self):
        with Witnesses(self.server) as witnesses:
            for path, schema in self.schemas.items():
                for number, field in enumerate([*schema["properties"], "unknown_field"]):
                    for value in VALUES[number % SHARE::SHARE]:
                        body = {**BASES[path], field: value}
                        if value is MISSING:
                            del body[field]
                        self.check(path, body)
        self.check_ready(witnesses)
        self.assertGreater(self.seen[200], 1000 / SHARE)
        self.assertGreater(self.seen[400], 1000 / SHARE)
        print(f"matrix: {sum(self.seen.values())} requests, {self.seen}, "
              f"{witnesses.rounds} rounds of {len(WITNESSES)} witnesses")

    def test_large_values(self):
        with Witnesses(self.server) as witnesses:
            for path, schema in self.schemas.items():
                for number, field in enumerate(schema["properties"]):
                    for value in LARGE if SHARE == 1 else LARGE[number % len(LARGE)::12]:
                        self.check(path, {**BASES[path], field: value})
            for path in self.schemas:
                for body in RAW:
                    self.check(path, body)
        self.check_ready(witnesses)
        self.assertEqual(set(self.seen) & {413, 400}, {413, 400})

    def test_relations(self):
        with Witnesses(self.server) as witnesses:
            for path in (CHAT, TEXT):
                for fields, values in RELATIONS.items():
                    if not set(fields) <= set(self.schemas[path]["properties"]):
                        continue
                    for row in itertools.product(*values):
                        self.check(path, {**BASES[path], **dict(zip(fields, row))})
        self.check_ready(witnesses)
        self.assertGreater(sum(self.seen.values()), 400)

    def test_content_types(self):
        for path in self.schemas:
            for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/xml"},
                            {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
                status, _, text = self.server.request("POST", path, BASES[path], headers)
                self.assertEqual(status, 400, (path, text))


# ---- requests made from the description itself

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**65, 2**65) | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=4), max_leaves=8)


def values_of(schema):
    """Values that fit a schema, most of the time."""
    if "anyOf" in schema:
        return st.one_of([values_of(s) for s in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    made = {
        None: JSON, "null": st.none(), "boolean": st.booleans(), "string": st.text(max_size=30),
        "integer": st.integers(-2, 300) | st.integers(),
        "number": st.floats(-2, 2) | st.floats(allow_nan=False, allow_infinity=False),
    }
    if kind == "array":
        return st.lists(values_of(schema.get("items", {})), max_size=4)
    if kind == "object":
        named = {k: values_of(v) for k, v in schema.get("properties", {}).items()}
        return st.fixed_dictionaries({}, optional=named) if named else st.dictionaries(
            st.text(max_size=8), values_of(schema.get("additionalProperties", {})), max_size=4)
    return made[kind]


class Described(Matrix):
    """Bodies of a few described fields at a time, most of the right type, some of any."""

    test_every_route_has_a_base = test_every_field_with_every_value = None
    test_large_values = test_relations = test_content_types = None

    def test_described_requests(self):
        @st.composite
        def requests(draw):
            path = draw(st.sampled_from(sorted(self.schemas)))
            properties = self.schemas[path]["properties"]
            body = dict(BASES[path])
            for name in draw(st.lists(st.sampled_from(sorted(properties)), max_size=6)):
                body[name] = draw(values_of(properties[name]) | JSON)
            return path, body

        @settings(max_examples=1200 // min(SHARE, 5), derandomize=True, database=None, deadline=None,
                  phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(requests())
        def ask(request):
            self.check(*request)

        with Witnesses(self.server) as witnesses:
            ask()
        self.check_ready(witnesses)


if __name__ == "__main__":
    main()
