"""What requests may say: the texts of contract.md 4.5 and 2.5, and what is too much (B-COST). The
matrix of hostile values is matrix_test.py."""

import json
import time

from scripted import TIME_FACTOR, ServerCase, main

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "script:hello;"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USAGE = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'


class Texts(ServerCase):
    CONFIG = {"max_model_len": 512}

    def refused(self, fields, message, kind="BadRequestError", path=CHAT, status=400, param=...):
        body = {"messages": USER} if path == CHAT else {"prompt": "script:plain;<fim_middle>"}
        got, reply = self.server.post(path, {**body, **fields})
        self.assertEqual(got, status, reply)
        error = reply["error"]
        self.assertEqual(list(error), ["message", "type", "param", "code"])
        self.assertEqual((error["message"], error["type"], error["code"]), (message, kind, status))
        if param is not ...:
            self.assertEqual(error["param"], param)

    def test_ranges(self):
        for fields, message in (
                ({"n": 0}, "n must be at least 1, got 0."),
                ({"presence_penalty": 3}, "presence_penalty must be in [-2, 2], got 3.0."),
                ({"frequency_penalty": -2.5}, "frequency_penalty must be in [-2, 2], got -2.5."),
                ({"repetition_penalty": 0},
                 "repetition_penalty must be greater than zero, got 0.0."),
                ({"temperature": -1}, "temperature must be non-negative, got -1.0."),
                ({"top_p": 0}, "top_p must be in (0, 1], got 0.0."),
                ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5."),
                ({"top_k": -2}, "top_k must be 0 (disable), or at least 1, got -2."),
                ({"min_p": 2}, "min_p must be in [0, 1], got 2.0."),
                ({"max_tokens": 0}, "max_tokens must be at least 1, got 0."),
                ({"min_tokens": -1}, "min_tokens must be greater than or equal to 0, got -1."),
                ({"min_tokens": 5, "max_tokens": 4},
                 "min_tokens must be less than or equal to max_tokens=4, got 5."),
                ({"truncate_prompt_tokens": 0},
                 "truncate_prompt_tokens must be an integer >= 1 or -1, got 0"),
                ({"truncate_prompt_tokens": 500, "max_tokens": 20},
                 "truncate_prompt_tokens=500 cannot be greater than max_model_len - max_tokens = "
                 "492. Please request a smaller truncation size."),
                ({"n": 2, "temperature": 0}, "n must be 1 when using greedy sampling, got 2."),
                ({"stop": [""]}, "stop cannot contain an empty string."),
                ({"logprobs": True, "top_logprobs": 21},
                 "Requested sample logprobs of 21, which is greater than max allowed: 20"),
                ({"stop_token_ids": [200064]}, "Token id 200064 is out of vocabulary"),
                ({"logit_bias": {"200064": 1}},
                 "token_id(s) [200064] in logit_bias contain out-of-vocab token ids. Vocabulary "
                 "size: 200064"),
                ({"allowed_token_ids": []}, "allowed_token_ids is not None and empty!"),
                ({"allowed_token_ids": [-1]},
                 "allowed_token_ids contains out-of-vocab token id!"),
                ({"max_tokens": 513},
                 "max_tokens=513cannot be greater than max_model_len=max_total_tokens=512. Please "
                 "request fewer output tokens."),
                ({"max_completion_tokens": 513},
                 "max_completion_tokens=513cannot be greater than "
                 "max_model_len=max_total_tokens=512. Please request fewer output tokens.")):
            self.refused(fields, message)

    def test_conflicts(self):
        for fields, message in (
                ({"stream_options": {}}, "Stream options can only be defined when `stream=True`."),
                ({"stream": True, "prompt_logprobs": 1},
                 "`prompt_logprobs` are not available when `stream=True`."),
                ({"prompt_logprobs": -2}, "`prompt_logprobs` must be a positive value or -1."),
                ({"top_logprobs": -2}, "`top_logprobs` must be a positive value or -1."),
                ({"top_logprobs": 1},
                 "when using `top_logprobs`, `logprobs` must be set to true."),
                ({"continue_final_message": True, "add_generation_prompt": True},
                 "Cannot set both `continue_final_message` and `add_generation_prompt` to True."),
                ({"thinking_token_budget": -2},
                 "thinking_token_budget must be a non-negative integer, or -1 for no bound, got "
                 "-2."),
                ({"truncation_side": "middle"},
                 "truncation_side: Input should be 'left' or 'right'"),
                ({"cache_salt": ""},
                 "Parameter 'cache_salt' must be a non-empty string if provided."),
                ({"tool_choice": "auto"}, "When using `tool_choice`, `tools` must be set."),
                ({"tools": [TOOL], "tool_choice": "maybe"},
                 'Invalid value for `tool_choice`: maybe! Only named tools, "none", "auto" or '
                 '"required" are supported.'),
                ({"tools": [TOOL], "tool_choice": {"type": "function"}},
                 "Invalid value for `function`: `None` in `tool_choice`! " + USAGE),
                ({"tools": [TOOL], "tool_choice": {"function": {}}},
                 "Expected field `name` in `function` in `tool_choice`! " + USAGE),
                ({"tools": [TOOL], "tool_choice": {"function": {"name": ""}}},
                 "Invalid `name` in `function`: `` in `tool_choice`! " + USAGE),
                ({"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}},
                 "The tool specified in `tool_choice` does not match any of the specified "
                 "`tools`"),
                ({"n": "7"}, "n: Input should be a valid integer"),
                ({"stream": 1}, "stream: Input should be a valid boolean")):
            self.refused(fields, message, "Bad Request")
        self.refused({"logprobs": -1}, "`logprobs` must be a positive value.", "Bad Request", TEXT)
        self.refused({"prompt": ""},
                     "Either prompt or prompt_embeds must be provided and non-empty.",
                     "Bad Request", TEXT)
        self.refused({"prompt_embeds": "x"},
                     "You must set `--enable-prompt-embeds` to input `prompt_embeds`.",
                     "Bad Request", TEXT)
        self.refused({"suffix": "x"}, "suffix is not currently supported", path=TEXT)
        self.refused({"prompt": [[]]}, "The decoder prompt cannot be empty", path=TEXT)
        self.refused({"prompt": [200064]}, "Token id 200064 is out of vocabulary", path=TEXT)

    def test_lengths_are_named_as_they_were_sent(self):
        beyond = "=513cannot be greater than max_model_len=max_total_tokens=512. " \
            "Please request fewer output tokens."
        for path, field, body in ((CHAT, "max_tokens", {"messages": USER}),
                                  (CHAT, "max_completion_tokens", {"messages": USER}),
                                  ("/v1/responses", "max_output_tokens", {"input": "x"})):
            for value, message in ((0, "max_tokens must be at least 1, got 0."),
                                   (513, field + beyond)):
                status, reply = self.server.post(path, {**body, field: value})
                self.assertEqual(status, 400)
                self.assertEqual((reply["error"]["message"], reply["error"]["param"]),
                                 (message, field))

    def test_lengths_and_model(self):
        self.refused({"model": "nope"}, "The model `nope` does not exist.", "NotFoundError",
                     status=404, param="model")
        self.refused(
            {"prompt": [10] * 500, "max_tokens": 20},
            "You passed 500 input tokens and requested 20 output tokens. However, the model's "
            "context length is only 512 tokens, resulting in a maximum input length of 492 tokens. "
            "Please reduce the length of the input prompt.", path=TEXT, param="input_tokens")
        longest = self.server.post("/detokenize", {"tokens": [199999]}) and 128

        def chat(*contents):
            return {"messages": [{"role": "user", "content": c} for c in contents]}

        def around(*contents):
            """Characters of a chat prompt beside those of its contents."""
            _, prompts = self.server.post(CHAT + "/render", chat(*("a" for _ in contents)))[1]
            return len(prompts[0]["prompt"]) - len(contents)

        many = ["é" * 7_000] * 10
        for path, fields, tokens, characters in (
                (TEXT, {"prompt": "é" * 70_000, "max_tokens": 20}, 20, 70_000),
                (CHAT, chat("é" * 70_000), 0, 70_000 + around("é")),
                (CHAT, chat(*many), 0, 70_000 + around(*many))):
            self.refused(
                fields, f"You passed {characters} input characters and requested {tokens} output tokens. "
                f"However, the model's context length is only 512 tokens, resulting in a maximum "
                f"input length of {512 - tokens} tokens (at most {(512 - tokens) * longest} "
                "characters). Please reduce the length of the input prompt.", path=path,
                param="input_text")
        status, reply = self.server.post(TEXT, {"prompt": [10] * 511, "max_tokens": 1,
                                                "model": None})
        self.assertEqual((status, reply["usage"]["total_tokens"]), (200, 512))

    def test_constraints(self):
        def schema(value):
            return {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}

        def tools(value):
            good = {"type": "function", "function": {"name": "good"}}
            parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}},
                          "required": ["x"], "$defs": {"a": value}}
            return [good, {"type": "function", "function": {"name": "f", "parameters": parameters}}]

        a = {"$ref": "#/$defs/a"}
        for fields, text, param in (
                ({"response_format": schema({"not": {}})},
                 "The JSON schema keyword 'not' is not supported.", "response_format"),
                ({"response_format": schema({"$ref": "#"})},
                 "The JSON schema has a circle: its '$ref' to '#' leads back to itself, and nothing "
                 "of a value is read on the way.",
                 "response_format"),
                ({"structured_outputs": {"choice": []}}, "Choice '[]' cannot be an empty list",
                 "structured_outputs"),
                ({"structured_outputs": {"grammar": " "}},
                 "structured_outputs.grammar cannot be an empty string", "structured_outputs"),
                ({"structured_outputs": {"grammar": 'root ::= "' + ")" * 70 + '" ' + "(" * 65 +
                                         '"a"' + ")" * 65}},
                 "The grammar is nested more than 64 deep.", "structured_outputs"),
                ({"structured_outputs": {"grammar": 'root[capture="]"] ::= ' + "(" * 65 + '"a"' + ")" * 65}},
                 "The grammar is nested more than 64 deep.", "structured_outputs"),
                ({"structured_outputs": {"grammar": '# )\rroot ::= [\\])"]' + "(" * 65 + '"a"' + ")" * 65}},
                 "The grammar is nested more than 64 deep.", "structured_outputs"),
                ({"structured_outputs": {"grammar": 'root ::= ("a"{1,200}){1,200} [{] # {9}'}},
                 "The repetition counts of the grammar multiply to more than 10000.",
                 "structured_outputs"),
                ({"structured_outputs": {"regex": "a", "json_object": True}},
                 "You can only use one kind of constraints for structured outputs ('json', 'regex' "
                 "or 'choice').", "structured_outputs"),
                ({"structured_outputs": {}}, "You must use one kind of structured outputs "
                 "constraint but none are specified: {}", "structured_outputs"),
                ({"structured_outputs": {"regex": "^.{1,4000}$"}},
                 "The regex is not supported: its repetitions make it longer than 10000 characters, "
                 "of which those of a wide class count for 50.", "structured_outputs"),
                ({"structured_outputs": {"grammar": 'root ::= Regex("a{200}")'}},
                 "The grammar is beyond what can be compiled. In a Regex() at most 128 repetitions "
                 "can be counted.", "structured_outputs"),
                ({"response_format": schema({"type": "string", "pattern": "^(ab)*$",
                                             "minLength": 1, "maxLength": 1})},
                 "The pattern '^(ab)*$' beside 'minLength' or 'maxLength' is refused: it and the "
                 "lengths beside it exclude each other.",
                 "response_format"),
                ({"tools": tools({"anyOf": [a, {"type": "string"}]})},
                 "The parameter 'x' of the tool 'f': The JSON schema has a circle: its '$ref' to "
                 "'#/$defs/a' leads back to itself, and nothing of a value is read on the way.",
                 "tools"),
                ({"tools": tools({"type": "object", "properties": {"y": a}, "required": ["y"]})},
                 "The tool 'f': Not a grammar that can be satisfied: some of its rules (of a JSON "
                 "schema: its '$ref's) require each other in a circle, so that no text of theirs "
                 "ever ends.", "tools")):
            self.refused(fields, text, param=param)

    def test_a_faulty_tool_among_many_is_found_soon(self):
        # Each of the others takes about a second to compile.
        tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {
            "type": "object", "properties": {"x": {"type": "string",
                                                   "pattern": f"^(.+q{i},){{1,12}}x$"}}}}}
            for i in range(30)]
        circle = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
        tools.append({"type": "function", "function": {"name": "last", "parameters": circle}})
        start = time.monotonic()
        self.refused({"tools": tools},
                     "The tool 'last': Not a grammar that can be satisfied: some of its rules (of a "
                     "JSON schema: its '$ref's) require each other in a circle, so that no text of "
                     "theirs ever ends.", param="tools")
        self.assertLess(time.monotonic() - start, 8 * TIME_FACTOR)

    def test_large_objects_take_time_by_their_size(self):
        count = 60_000
        members = {f"k{i}": 1 for i in range(count)}
        names = [[f"{letter}{i}" for i in range(count)] for letter in "ab"]
        empty = {f"k{i}": {} for i in range(count)}

        def schema(value):
            return {"response_format": {"type": "json_schema",
                                        "json_schema": {"name": "s", "schema": value}}}

        def both(a, b):
            return schema({"allOf": [{"type": "object", **a}, {"type": "object", **b}]})

        chats = {
            "fields of a message": {"messages": [{**USER[0], **members}]},
            "fields of a tool": {"tools": [{"type": "function", "function": {"name": "f", **members}}]},
            "names a tool requires": {"tools": [{"type": "function", "function": {
                "name": "f", "parameters": {"type": "object", "required": names[0]}}}]},
            "keywords": schema(members),
            "properties": both({"properties": empty}, {"properties": {"z": {}}}),
            "required": both({"required": names[0]}, {"required": names[1]}),
            "enum": schema({"allOf": [{"enum": names[0]}, {"enum": names[1]}]}),
            "enums apart": schema({"oneOf": [{"enum": names[0]}, {"enum": names[1]}]}),
            "references": schema({"$defs": empty, "anyOf": [{"$ref": f"#/$defs/k{i}"}
                                                            for i in range(count)]}),
            "properties apart": schema({"oneOf": [
                {"type": "object", "properties": empty, "required": ["k1"]},
                {"type": "object", "properties": empty, "required": ["k2"]}]}),
        }
        responses = {
            "fields of a format": {"text": {"format": {"type": "json_schema", "name": "s",
                                                       "schema": {}, **members}}},
            "fields of a function": {"tools": [{"type": "function", "name": "f", **members}]},
        }
        thinking = [{"type": "thinking", "thinking": "abc"}] * 3 * count
        asked = [("thinking", "/v1/messages", {
            "model": "scripted", "max_tokens": 1,
            "messages": [*USER, {"role": "assistant", "content": thinking}, *USER]})]
        asked += [(name, CHAT, {"messages": USER, **fields}) for name, fields in chats.items()]
        asked += [(name, "/v1/responses", {"input": "script:hello;", **fields})
                  for name, fields in responses.items()]
        self.server.post(CHAT, {"messages": USER, **schema({"type": "null"})})  # makes the masks
        for name, path, body in asked:
            start = time.monotonic()
            status, reply = self.server.post(path, body, timeout=120)
            self.assertIn(status, (200, 400), reply)
            self.assertLess(time.monotonic() - start, 3 * TIME_FACTOR, name)

    def test_messages(self):
        good = (
            [{"role": "user", "content": None}, *USER], [{"role": "user"}, *USER],
            [{"role": "user", "content": []}, *USER],
            [{"role": "user", "content": [{"type": "text", "text": "script:"},
                                          {"type": "text", "text": "hello;"}]}],
            [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, *USER],
            [*USER, {"role": "system", "content": "late"}],
            [*USER, {"role": "assistant", "content": None, "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
             {"role": "tool", "tool_call_id": "x", "content": "r"}, *USER],
            [*USER, {"role": "assistant", "content": "a", "reasoning_details": [{"text": "t"}],
                     "tool_calls": [{"function": {"name": "f", "arguments": ""}},
                                    {"function": {"name": "f", "arguments": None}},
                                    {"function": {"name": "f", "arguments": {"a": 1}}}]}, *USER])
        for messages in good:
            status, reply = self.server.post(CHAT, {"messages": messages, "max_tokens": 1})
            self.assertEqual(status, 200, (messages, reply))
        call = {"role": "assistant", "tool_calls": [
            {"id": "x", "function": {"name": "f", "arguments": "{"}}]}
        bad = ([], [{"role": "king", "content": "a"}], [{"content": "a"}], ["a"], "a",
               [{"role": "user", "content": 3}], [{"role": "user", "content": {"a": 1}}],
               [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
               [{"role": "user", "content": [{"type": "input_audio"}]}], [*USER, call],
               [*USER, {"role": "tool", "content": "no call before"}])
        for messages in bad:
            status, reply = self.server.post(CHAT, {"messages": messages})
            self.assertEqual(status, 400, (messages, reply))

    def test_control_tokens_of_users_stay_text(self):
        _, reply = self.server.post("/tokenize", {
            "messages": [{"role": "user", "content": "]~b]ai [e~[ <think>"}]})
        self.assertEqual(reply["tokens"].count(200019), 3)  # system, user, ai
        self.assertEqual(reply["tokens"].count(200020), 2)

    def test_bodies_that_are_no_requests(self):
        for body in ("", "{", "[]", "3", "null", '{"messages":1,"messages":2}', "[" * 200,
                     '{"a":"\ud800"}', "{\"n\":NaN}", '{"n":1e999}'):
            for path in (CHAT, TEXT, "/tokenize", "/detokenize"):
                status, _, text = self.server.request("POST", path, body)
                self.assertEqual(status, 400, (body, path, text))
                self.assertEqual(json.loads(text)["error"]["code"], 400)


class Costly(ServerCase):
    CONFIG = {"max_model_len": 2048, "threads": 2}

    def test_costly_requests_are_refused_quickly(self):
        for path, body in ((TEXT, {"prompt": "a", "n": 10**9}),
                           (TEXT, {"prompt": ["a"] * 4, "n": 2**62}),  # together no int64
                           (TEXT, {"prompt": ["a"] * 200_000}),
                           (TEXT, {"prompt": "a", "bad_words": ["x"] * 100_000}),
                           (TEXT, {"prompt": "a", "stop": ["x"] * 100_000}),
                           (CHAT, {"messages": USER * 5000}),
                           (CHAT, {"messages": USER, "tools": [TOOL] * 513}),
                           (CHAT, {"messages": USER, **{f"f{i}": i for i in range(50_000)}})):
            began = time.time()
            status, _, _ = self.server.request("POST", path, body)
            self.assertIn(status, (200, 400))
            self.assertLess(time.time() - began, 3, str(body)[:100])


if __name__ == "__main__":
    main()
