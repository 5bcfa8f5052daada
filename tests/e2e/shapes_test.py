"""Every member of a rich request of /v1/responses and /v1/messages, replaced by values it was not made
for: each is answered with 200 or a 4xx of the contract, in the surface's form, and the server goes on."""

import copy
import json
import unittest

from scripted import ServerCase, main

VALUES = [None, True, -1, 1e30, 2**63, "", "\u0000", [], ["x"], [None], {}, {"type": "text"},
          {"type": 7}, [{"type": "text"}], [{"type": 7}]]
ALLOWED = {200, 400, 404, 413, 415, 422, 429}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}

RESPONSE = {
    "model": "scripted", "instructions": "Be brief.", "max_output_tokens": 1, "temperature": 0.5,
    "top_p": 0.9, "store": True, "metadata": {"a": "b"}, "parallel_tool_calls": True,
    "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}}, "truncation": "disabled", "tool_choice": "auto",
    "input": [
        {"role": "developer", "content": "Note."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}],
         "content": [{"type": "reasoning_text", "text": "r"}], "encrypted_content": "m2r1.cg=="},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "a", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "namespace": "n", "name": "f",
         "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1",
         "output": [{"type": "input_text", "text": "o"}]},
        {"type": "custom_tool_call", "call_id": "c2", "name": "p", "input": "i"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "o"},
    ],
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA},
              {"type": "namespace", "name": "n", "tools": [
                  {"type": "function", "name": "f", "parameters": SCHEMA}]},
              {"type": "custom", "name": "p", "description": "d",
               "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
              {"type": "web_search"}],
}
MESSAGE = {
    "model": "scripted", "max_tokens": 1, "temperature": 0.5, "top_k": 5, "top_p": 0.9,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "stop_sequences": ["STOP"], "metadata": {"user_id": "u"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"},
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"city": "x"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "is_error": True,
             "content": [{"type": "text", "text": "o"}]},
            {"type": "text", "text": "<system-reminder>r</system-reminder>"},
            {"type": "document", "source": {"type": "text", "data": "d"}}]},
        {"role": "system", "content": "late"},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA},
              {"type": "web_search_20250305", "name": "web_search"}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
}


def places(value, path=()):
    """The paths of all members and items."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(body, path, value):
    body = copy.deepcopy(body)
    at = body
    for key in path[:-1]:
        at = at[key]
    if value is places:  # nothing at all
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return body


class Shapes(ServerCase):
    CONFIG = {"store_responses": True, "max_model_len": 640, "log_level": "error"}

    def check(self, route, body, is_error):
        status, reply = self.server.post(route, body)
        self.assertEqual(status, 200, reply)
        count = 0
        for path in places(body):
            for value in [places, *VALUES]:
                status, _, text = self.server.request("POST", route, changed(body, path, value))
                where = (route, path, value, status, text)
                self.assertIn(status, ALLOWED, where)
                if status != 200:
                    self.assertTrue(is_error(json.loads(text)), where)
                count += 1
        self.assertEqual(self.server.post(route, body)[0], 200)
        self.assertGreater(count, 800)

    def test_responses(self):
        self.check("/v1/responses", RESPONSE,
                   lambda e: set(e["error"]) == {"message", "type", "param", "code"})

    def test_messages(self):
        self.check("/v1/messages", MESSAGE,
                   lambda e: e["type"] == "error" and set(e["error"]) == {"type", "message"})


if __name__ == "__main__":
    main()
