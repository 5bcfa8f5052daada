"""Constrained output over HTTP: random weights, which know nothing, must still write what was asked.

Arguments: BINARY SOURCE_DIR.
"""

import concurrent.futures
import json
import pathlib
import re
import sys
import tempfile
import unittest

import anthropic
import jsonschema
import openai
import pydantic

BINARY, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
sys.path.insert(0, str(SOURCE / "tests" / "app"))
import serve_process  # noqa: E402

MESSAGES = [{"role": "user", "content": "Anything."}]
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["red", "green", 3]},
        "count": {"type": "integer", "minimum": 0, "maximum": 500},
        "on": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["kind", "count", "on", "tags"],
    "additionalProperties": False,
}
SET_LIGHT = {"type": "function", "function": {"name": "set_light", "parameters": {
    "type": "object", "properties": {"room": {"enum": ["hall", "kitchen"]},
                                     "level": {"type": "integer", "minimum": 0, "maximum": 10}},
    "required": ["room", "level"]}}}
PING = {"type": "function", "function": {"name": "ping", "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}}
TOOLS = [SET_LIGHT, PING]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
SEEDS = range(12)


class Light(pydantic.BaseModel):
    on: bool
    level: int


class Constrained(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        serve_process.make_checkpoint(cls.folder.name, "--layers", 1)
        cls.server = serve_process.Server(cls.folder.name, "--served-model-name", "random",
                                          "--disable-uvicorn-access-log")
        url = f"http://127.0.0.1:{cls.server.port}"
        cls.client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
        cls.anthropic = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.anthropic.close()
        cls.server.__exit__()
        assert cls.server.process.returncode == 0
        cls.folder.cleanup()

    def chat(self, seed, extra=None, **fields):
        return self.client.chat.completions.create(
            model="random", messages=MESSAGES, max_tokens=600, seed=seed, temperature=1.0, top_p=1.0,
            extra_body={"top_k": 0, **NO_THINKING, **(extra or {})}, **fields)

    def check_calls(self, message):
        for call in message.tool_calls:
            self.assertIn(call.function.name, PARAMETERS)
            jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])

    def test_json_schema(self):
        format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
        kinds = set()
        for seed in SEEDS:
            choice = self.chat(seed, response_format=format_).choices[0]
            self.assertEqual(choice.finish_reason, "stop")
            value = json.loads(choice.message.content)
            jsonschema.validate(value, SCHEMA)
            kinds.add(value["kind"])
        self.assertGreater(len(kinds), 1, "random weights draw more than one of three")

    def test_parse_of_the_sdk(self):
        answer = self.client.chat.completions.parse(
            model="random", messages=MESSAGES, max_tokens=400, seed=3, response_format=Light,
            extra_body=NO_THINKING)
        self.assertIsInstance(answer.choices[0].message.parsed, Light)

    def test_patterns_choices_and_grammars(self):
        for extra, pattern in (({"regex": "[a-f]{3}-[0-9]{2}"}, "[a-f]{3}-[0-9]{2}"),
                               ({"choice": ["yes", "no, never"]}, "yes|no, never"),
                               ({"grammar": 'root ::= "x" [0-9] | "y"'}, "x[0-9]|y"),
                               # What stands in literals, classes and comments is no structure.
                               ({"grammar": 'root ::= "{" [0-9]{1,200} "}" | [({] [)}] # {2000}'},
                                r"\{[0-9]{1,200}\}|[({][)}]")):
            for seed in SEEDS:
                choice = self.chat(seed, extra={"structured_outputs": extra}).choices[0]
                self.assertEqual(choice.finish_reason, "stop")
                self.assertRegex(choice.message.content, f"^(?:{pattern})$")

    def test_json_object(self):
        whole = 0
        for seed in SEEDS:
            choice = self.chat(seed, response_format={"type": "json_object"}).choices[0]
            if choice.finish_reason == "stop":
                self.assertIsInstance(json.loads(choice.message.content), dict)
                whole += 1
            else:
                self.assertTrue(choice.message.content.lstrip().startswith("{"))
        self.assertGreater(whole, 0)

    def test_blanks_and_names_as_asked(self):
        forms = (({}, None), ({"disable_any_whitespace": True}, (", ", ": ")),
                 ({"whitespace_pattern": "\\n\\n"}, (",\n\n", ":\n\n")),
                 ({"disable_additional_properties": True}, None))
        for fields, separators in forms:
            for seed in range(4):
                text = self.chat(seed, extra={"structured_outputs": {"json": SCHEMA, **fields}}).choices[
                    0].message.content
                value = json.loads(text)
                jsonschema.validate(value, SCHEMA)
                if separators:
                    inside = text if separators[0] == ", " else re.sub(r"(?<=[{[])\n\n|\n\n(?=[]}])", "", text)
                    self.assertEqual(inside, json.dumps(value, separators=separators))

    def test_structural_tag(self):
        tag = {"type": "structural_tag", "format": {
            "type": "tag", "begin": "<light>", "end": "</light>",
            "content": {"type": "json_schema", "json_schema": SET_LIGHT["function"]["parameters"]}}}
        for extra in ({"response_format": tag},
                      {"structured_outputs": {"structural_tag": json.dumps(tag)}}):
            for seed in range(4):
                content = self.chat(seed, extra=extra).choices[0].message.content
                inside = re.fullmatch("<light>(.*)</light>", content, re.DOTALL)
                jsonschema.validate(json.loads(inside[1]), SET_LIGHT["function"]["parameters"])

    def test_completions(self):
        for extra, pattern in (({"regex": "[a-f]{3}-[0-9]{2}"}, "[a-f]{3}-[0-9]{2}"),
                               ({"grammar": 'root ::= "x" [0-9] | "y"'}, "x[0-9]|y")):
            reply = self.client.completions.create(model="random", prompt="A", max_tokens=50, seed=1,
                                                   extra_body={"structured_outputs": extra})
            self.assertRegex(reply.choices[0].text, f"^(?:{pattern})$")
        reply = self.client.completions.create(model="random", prompt="A", max_tokens=600, seed=1,
                                               extra_body={"structured_outputs": {"json": SCHEMA}})
        jsonschema.validate(json.loads(reply.choices[0].text), SCHEMA)
        for seed in SEEDS:
            reply = self.client.completions.create(
                model="random", prompt="A", max_tokens=50, seed=seed,
                extra_body={"structured_outputs": {"choice": ["left", "right"]}})
            self.assertIn(reply.choices[0].text, ("left", "right"))

    def test_required_and_named_calls(self):
        names = set()
        for seed in SEEDS:
            choice = self.chat(seed, tools=TOOLS, tool_choice="required",
                               parallel_tool_calls=False).choices[0]
            self.assertEqual(len(choice.message.tool_calls), 1)
            self.check_calls(choice.message)
            names.add(choice.message.tool_calls[0].function.name)
            named = self.chat(seed, tools=TOOLS, tool_choice={
                "type": "function", "function": {"name": "set_light"}}).choices[0].message
            self.assertEqual([call.function.name for call in named.tool_calls], ["set_light"])
            self.check_calls(named)
        self.assertEqual(names, set(PARAMETERS))

    def test_each_choice_has_its_own_state(self):
        reply = self.chat(5, n=4, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        self.assertEqual(len(reply.choices), 4)
        for choice in reply.choices:
            self.check_calls(choice.message)

    def test_streams_say_the_same(self):
        fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        whole = self.chat(8, **fields).choices[0].message.tool_calls[0].function
        name = arguments = ""
        for chunk in self.chat(8, stream=True, **fields):
            for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
        self.assertEqual((name, arguments), (whole.name, whole.arguments))

    def test_after_thinking(self):
        """A thinking budget ends the reasoning; what follows is bound."""
        reply = self.client.chat.completions.create(
            model="random", messages=MESSAGES, max_tokens=300, seed=2,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
            extra_body={"thinking_token_budget": 20})
        self.assertTrue(reply.choices[0].message.reasoning)
        jsonschema.validate(json.loads(reply.choices[0].message.content), SCHEMA)

    def test_responses(self):
        reply = self.client.responses.create(
            model="random", input="Anything.", max_output_tokens=400,
            text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
            extra_body={"seed": 4, **NO_THINKING, "thinking_token_budget": 10})
        jsonschema.validate(json.loads(reply.output_text), SCHEMA)

    def test_calls_of_responses(self):
        tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
        for choice, names in (("required", set(PARAMETERS)),
                              ({"type": "function", "name": "set_light"}, {"set_light"})):
            for seed in range(4):
                fields = {"model": "random", "input": "Anything.", "max_output_tokens": 600,
                          "tools": tools, "tool_choice": choice, "parallel_tool_calls": False,
                          "extra_body": {"seed": seed, **NO_THINKING}}
                reply = self.client.responses.create(**fields)
                call = self.only([item for item in reply.output if item.type == "function_call"])
                self.assertIn(call.name, names)
                jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name])
                done = self.only([event for event in self.client.responses.create(stream=True, **fields)
                                  if event.type == "response.function_call_arguments.done"])
                self.assertEqual(done.arguments, call.arguments)

    ALLOWED = {"mode": "required", "tools": [{"type": "function", "function": {"name": "set_light"}}]}

    def test_allowed_tools(self):
        """Of two tools the one that the list holds, though the prompt has both."""
        prompts = set()
        for choice in ("required", {"type": "allowed_tools", "allowed_tools": self.ALLOWED}):
            called = set()
            for seed in range(8):
                reply = self.chat(seed, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
                self.check_calls(reply.choices[0].message)
                called.add(reply.choices[0].message.tool_calls[0].function.name)
                prompts.add(reply.usage.prompt_tokens)
            self.assertEqual(called, set(PARAMETERS) if choice == "required" else {"set_light"})
        self.assertEqual(len(prompts), 1)

    def test_allowed_tools_of_responses(self):
        tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
        for seed in range(6):
            reply = self.client.responses.create(
                model="random", input="Anything.", max_output_tokens=600, tools=tools,
                parallel_tool_calls=False, extra_body={"seed": seed, **NO_THINKING},
                tool_choice={"type": "allowed_tools", "mode": "required", "tools": [
                    {"type": "image_generation"}, {"type": "function", "name": "ping"}]})
            self.assertEqual(self.only(reply.output).name, "ping")

    def test_formats_of_custom_tools(self):
        for definition in ("[a-f]{3}-[0-9]{2}", "^[a-f]{3}-[0-9]{2}$"):
            tools = [{"type": "custom", "name": "code", "description": "A code.", "format": {
                "type": "grammar", "syntax": "regex", "definition": definition}}]
            for seed in range(4):
                reply = self.client.responses.create(
                    model="random", input="Anything.", max_output_tokens=600, tools=tools,
                    tool_choice="required", parallel_tool_calls=False,
                    extra_body={"seed": seed, **NO_THINKING})
                self.assertRegex(self.only(reply.output).input, "^[a-f]{3}-[0-9]{2}$")

    def message(self, **fields):
        return {"model": "random", "max_tokens": 600, "messages": MESSAGES,
                "thinking": {"type": "disabled"}, **fields}

    def only(self, items):
        self.assertEqual(len(items), 1)
        return items[0]

    def test_calls_of_messages(self):
        tools = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]}
                 for tool in TOOLS]
        for choice, names in (({"type": "any"}, set(PARAMETERS)),
                              ({"type": "tool", "name": "set_light"}, {"set_light"})):
            fields = self.message(tools=tools,
                                  tool_choice={**choice, "disable_parallel_tool_use": True})
            for _ in range(4):
                with self.anthropic.messages.stream(**fields) as stream:
                    streamed = stream.get_final_message()
                for reply in (self.anthropic.messages.create(**fields), streamed):
                    self.assertEqual(reply.stop_reason, "tool_use")
                    call = self.only([block for block in reply.content if block.type == "tool_use"])
                    self.assertIn(call.name, names)
                    jsonschema.validate(call.input, PARAMETERS[call.name])
        none = self.anthropic.messages.create(
            **self.message(tools=tools, tool_choice={"type": "none"}, max_tokens=30))
        self.assertNotIn("tool_use", [block.type for block in none.content])

    def test_format_of_messages(self):
        fields = self.message(
            extra_body={"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}})
        for _ in range(4):
            reply = self.anthropic.messages.create(**fields)
            jsonschema.validate(json.loads(self.only(reply.content).text), SCHEMA)

    def test_others_keep_their_bytes(self):
        def free(seed):
            return self.chat(seed).choices[0].message.content

        def bound(seed):
            return self.chat(seed, tools=TOOLS, tool_choice="required").choices[0].message

        alone = [free(seed) for seed in range(4)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            others = [pool.submit(bound, seed) for seed in range(8)]
            crowd = list(pool.map(free, range(4)))
            for other in others:
                other.result()
        self.assertEqual(crowd, alone)

    def test_what_can_never_be_written_is_the_request_s_fault(self):
        with self.assertRaises(openai.BadRequestError):
            self.chat(1, extra={"structured_outputs": {"choice": ["yes"]}, "allowed_token_ids": [65]})
        self.assertTrue(self.chat(1).choices, "the server goes on")


class CallsUnderAuto(unittest.TestCase):
    def calls(self, *flags, tool_choice="auto"):
        """What a model calls that writes the mark of a call wherever it may."""
        with tempfile.TemporaryDirectory() as folder:
            serve_process.make_checkpoint(folder, "--layers", 1)
            with serve_process.Server(folder, "--served-model-name", "random",
                                      "--disable-uvicorn-access-log", *flags) as server, \
                 openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}", api_key="none") as client:
                mark = self.only(client.post("/tokenize", cast_to=object, body={
                    "prompt": "<minimax:tool_call>", "add_special_tokens": False})["tokens"])
                reply = client.post("/v1/chat/completions", cast_to=object, body={
                    "messages": MESSAGES, "tools": TOOLS, "max_tokens": 600, "seed": 1,
                    "tool_choice": tool_choice,
                    "logit_bias": {str(mark): 100}, **NO_THINKING})
                return reply["choices"][0]["message"]["tool_calls"] or []

    def only(self, items):
        self.assertEqual(len(items), 1)
        return items[0]

    def test_are_whole(self):
        calls = self.calls()
        self.assertGreater(len(calls), 0)
        for call in calls[:-1] or calls:
            jsonschema.validate(json.loads(call["function"]["arguments"]),
                                PARAMETERS[call["function"]["name"]])

    def test_are_of_the_allowed_tools_even_where_calls_are_free(self):
        allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "ping"}}]}
        calls = self.calls("--no-constrain-auto-tools",
                           tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
        self.assertEqual({call["function"]["name"] for call in calls}, {"ping"})

    def test_are_free_where_that_is_asked(self):
        self.assertEqual(self.calls("--no-constrain-auto-tools"), [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
