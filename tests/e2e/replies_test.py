"""The shapes of replies, byte by byte where clients look (contract.md 4.4 - 4.8, 4.13)."""

import email.utils
import json
import os
import re
import time

from scripted import DATA, Server, ServerCase, main

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def joined(chunks):
    """What the deltas of a stream's first choice say together."""
    said = {}
    for chunk in chunks:
        for choice in chunk["choices"] if chunk != "[DONE]" else ():
            delta = dict(choice["delta"])
            for call in delta.pop("tool_calls", ()):
                delta[f"call {call['index']}"] = call["function"].get("name", "") + call[
                    "function"].get("arguments", "")
            for name, text in delta.items():
                said[name] = said.get(name, "") + text
            said["finish"] = choice["finish_reason"] or said.get("finish")
    return said


def user(script):
    return [{"role": "user", "content": f"script:{script};"}]


TOOLS = [{
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}]


class Chat(ServerCase):
    def test_fields_without_effect_here(self):
        """Taken, so that no client is refused for them; the answer is the one without."""
        plain = self.server.chat("hello")[1]["choices"]
        for field, value in (("length_penalty", 0.5), ("spaces_between_special_tokens", False),
                             ("best_of", 2), ("mm_processor_kwargs", {"a": 1}),
                             ("vllm_xargs", {"a": 1}), ("kv_transfer_params", {"a": 1}),
                             ("session_id", "s"), ("logprob_token_ids", [1]),
                             ("repetition_detection", {"a": 1}), ("return_prompt_text", True),
                             ("documents", [{"title": "t", "text": "x"}])):
            status, reply = self.server.chat("hello", **{field: value})
            self.assertEqual((status, reply.get("choices")), (200, plain), field)

    def test_request_id_of_the_body(self):
        status, reply = self.server.chat("hello", request_id="mine-1")
        self.assertEqual((status, reply["id"]), (200, "chatcmpl-mine-1"))

    def test_beam_search_is_refused(self):
        status, reply = self.server.chat("hello", use_beam_search=True)
        self.assertEqual((status, reply["error"]["message"], reply["error"]["param"]),
                         (400, "use_beam_search is not supported", "use_beam_search"))

    def test_whole_reply_has_every_field_in_order(self):
        status, reply = self.server.chat("hello")
        self.assertEqual(status, 200)
        self.assertEqual(list(reply), [
            "id", "object", "created", "model", "choices", "service_tier", "system_fingerprint",
            "usage", "prompt_logprobs", "prompt_token_ids", "kv_transfer_params"])
        self.assertRegex(reply["id"], r"^chatcmpl-[0-9a-f]{32}$")
        self.assertEqual(reply["model"], "scripted")
        choice = reply["choices"][0]
        self.assertEqual(list(choice), [
            "index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"])
        self.assertEqual(choice["message"], {
            "role": "assistant", "content": "Hello, world! 你好 🎉", "refusal": None,
            "annotations": None, "audio": None, "function_call": None, "tool_calls": [],
            "reasoning": "A greeting is due.", "reasoning_content": "A greeting is due."})
        self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("stop", None))
        usage = reply["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertIsNone(usage["prompt_tokens_details"])
        self.assertGreater(usage["completion_tokens_details"]["reasoning_tokens"], 3)

    def test_stream_order(self):
        chunks = self.server.stream(CHAT, {
            "messages": user("hello"), "stream_options": {"include_usage": True}})
        self.assertEqual(chunks[-1], "[DONE]")
        first, usage, last = chunks[0], chunks[-2], chunks[-3]
        self.assertEqual(first["choices"], [{
            "index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
            "finish_reason": None}])
        self.assertIn("prompt_token_ids", first)
        self.assertEqual(usage["choices"], [])
        self.assertEqual(last["choices"][0]["finish_reason"], "stop")
        self.assertIn("stop_reason", last["choices"][0])
        reasoning = content = ""
        for chunk in chunks[1:-3]:
            choice = chunk["choices"][0]
            self.assertEqual(list(choice), [
                "index", "delta", "logprobs", "finish_reason", "token_ids"])
            delta = choice["delta"]
            self.assertIn(list(delta), [["content"], ["reasoning", "reasoning_content"]])
            self.assertTrue(all(delta.values()))
            reasoning += delta.get("reasoning", "")
            content += delta.get("content", "")
        self.assertEqual((reasoning, content), ("A greeting is due.", "Hello, world! 你好 🎉"))
        _, whole = self.server.chat("hello")
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(usage["usage"][key], whole["usage"][key])

    def test_stream_interval(self):
        """The first token at once, then a chunk for every so many."""
        body = {"messages": [{"role": "user", "content": "script:tool;"}], "tools": TOOLS,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        every = self.server.stream(CHAT, body)
        for interval in (1, 2, 5, 1000):
            chunks = self.server.stream(CHAT, {**body, "stream_interval": interval})
            self.assertEqual(joined(chunks), joined(every))
            counts = sorted({c["usage"]["completion_tokens"] for c in chunks[:-1]})
            total = counts.pop()
            self.assertEqual(total, every[-2]["usage"]["completion_tokens"])
            self.assertTrue(all(n == 0 or n % interval == 1 % interval for n in counts),
                            (interval, counts))
            self.assertLessEqual(len(chunks), len(every))
        prompt = {"prompt": "script:words;<fim_middle>", "max_tokens": 12, "logprobs": 0,
                  "return_token_ids": True}
        for interval, sizes in ((1, [1] * 12), (5, [1, 5, 5, 1]), (64, [1, 11])):
            chunks = self.server.stream(TEXT, {**prompt, "stream_interval": interval})[:-1]
            self.assertEqual([len(c["choices"][0]["token_ids"]) for c in chunks], sizes)
            self.assertEqual([len(c["choices"][0]["logprobs"]["tokens"]) for c in chunks], sizes)
            self.assertEqual("".join(c["choices"][0]["text"] for c in chunks), " word" * 12)
        for path, base in ((CHAT, body), (TEXT, prompt)):
            status, error = self.server.post(path, {**base, "stream": True, "stream_interval": 0})
            self.assertEqual((status, error["error"]["message"]),
                             (400, "stream_interval must be at least 1, got 0."))

    def test_stream_interval_of_the_server(self):
        with Server(stream_interval=4) as server:
            chunks = server.stream(TEXT, {"prompt": "script:words;<fim_middle>", "max_tokens": 10})
            self.assertEqual([c["choices"][0]["text"] for c in chunks[:-1]],
                             [" word", " word" * 4, " word" * 4, " word"])

    def test_continuous_usage(self):
        chunks = self.server.stream(CHAT, {
            "messages": user("hello"),
            "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
        counts = [c["usage"]["completion_tokens"] for c in chunks[:-1]]
        self.assertEqual(counts, sorted(counts))

    def test_tool_call(self):
        _, reply = self.server.chat("tool", tools=TOOLS)
        choice = reply["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        call = choice["message"]["tool_calls"][0]
        self.assertEqual(call["function"], {
            "name": "get_weather", "arguments": '{"city": "Paris", "days": 3}'})
        self.assertRegex(call["id"], r"^chatcmpl-tool-[0-9a-f]{32}$")
        chunks = self.server.stream(CHAT, {"messages": user("tool"), "tools": TOOLS})
        deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
        calls = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
        self.assertEqual(calls[0]["function"], {"name": "get_weather", "arguments": ""})
        self.assertEqual("".join(c["function"]["arguments"] for c in calls),
                         '{"city": "Paris", "days": 3}')
        self.assertEqual(chunks[-2]["choices"][0]["finish_reason"], "tool_calls")

    def test_several_choices(self):
        _, reply = self.server.chat("hello", n=3, temperature=1, seed=5)
        self.assertEqual([c["index"] for c in reply["choices"]], [0, 1, 2])
        chunks = self.server.stream(CHAT, {"messages": user("hello"), "n": 2, "temperature": 1})
        ends = [c["choices"][0]["index"] for c in chunks[:-1] if c["choices"][0]["finish_reason"]]
        self.assertEqual(sorted(ends), [0, 1])

    def test_logprobs(self):
        _, reply = self.server.chat("hello", logprobs=True, top_logprobs=2)
        items = reply["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(items), reply["usage"]["completion_tokens"])
        self.assertEqual(list(items[0]), ["token", "logprob", "bytes", "top_logprobs"])
        self.assertEqual(bytes(b for i in items[:-1] for b in i["bytes"]).decode().split("\n")[0],
                         "A greeting is due.")
        self.assertEqual([len(i["top_logprobs"]) for i in items], [2] * len(items))
        chunks = self.server.stream(CHAT, {
            "messages": user("hello"), "logprobs": True, "top_logprobs": 2})
        streamed = [i for c in chunks[:-1] for i in
                    (c["choices"][0]["logprobs"] or {"content": []})["content"]]
        self.assertEqual([i["token"] for i in streamed], [i["token"] for i in items])

    def test_token_ids(self):
        _, reply = self.server.chat("hello", return_token_ids=True)
        choice = reply["choices"][0]
        self.assertEqual(len(choice["token_ids"]), reply["usage"]["completion_tokens"])
        self.assertEqual(len(reply["prompt_token_ids"]), reply["usage"]["prompt_tokens"])
        chunks = self.server.stream(CHAT, {"messages": user("hello"), "return_token_ids": True})
        ids = [i for c in chunks[:-1] for i in c["choices"][0].get("token_ids") or []]
        self.assertEqual(ids, choice["token_ids"])

    def test_include_reasoning_false(self):
        _, reply = self.server.chat("hello", include_reasoning=False)
        self.assertIsNone(reply["choices"][0]["message"]["reasoning"])
        chunks = self.server.stream(CHAT, {"messages": user("hello"), "include_reasoning": False})
        self.assertNotIn("reasoning", json.dumps(chunks))

    OFF = ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}, {"thinking": False},
           {"think": False}, {"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}},
           {"reasoning": {"enabled": False}}, {"chat_template_kwargs": {"enable_thinking": False}},
           {"chat_template_kwargs": {"thinking": False}},
           {"chat_template_kwargs": {"reasoning_effort": "none"}})
    ON = ({}, {"thinking": {"type": "enabled"}}, {"enable_thinking": True},
          {"reasoning_effort": "high"}, {"reasoning_effort": "whatever"},
          {"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning": {"exclude": False}})

    def rendered(self, fields):
        status, reply = self.server.post(
            CHAT + "/render", {"messages": [{"role": "user", "content": "Hi"}], **fields})
        self.assertEqual(status, 200, reply)
        conversation, prompts = reply
        self.assertEqual(conversation, [{"role": "user", "content": "Hi"}])
        self.assertEqual(len(prompts), 1)
        return prompts[0]["prompt"]

    def test_thinking_off_and_on_in_every_spelling(self):
        for fields in self.OFF:
            self.assertTrue(self.rendered(fields).endswith(
                "]~b]ai\n<think>\n\n</think>\n\n"), fields)
        for fields in self.ON:
            self.assertTrue(self.rendered(fields).endswith("]~b]ai\n<think>\n"), fields)
        _, reply = self.server.chat("plain", thinking={"type": "disabled"})
        message = reply["choices"][0]["message"]
        self.assertIsNone(message["reasoning"])
        self.assertEqual(message["content"], "one two three STOP four five")
        self.assertEqual(reply["usage"]["completion_tokens_details"]["reasoning_tokens"], 0)

    def test_thinking_off_by_default_of_the_server(self):
        with Server(default_kwargs={"enable_thinking": False}) as server:
            for fields, off in (({}, True), ({"enable_thinking": True}, False),
                                ({"chat_template_kwargs": {"thinking": True}}, False),
                                ({"reasoning_effort": "high"}, True)):
                _, prompts = server.post(CHAT + "/render", {"messages": user("x"), **fields})[1]
                self.assertEqual(prompts[0]["prompt"].endswith("</think>\n\n"), off, fields)

    def test_thinking_budget_forces_the_end(self):
        for budget in (0, 1, 5):
            fields = {"max_tokens": 12, "thinking_token_budget": budget}
            _, reply = self.server.chat("words", **fields)
            message, usage = reply["choices"][0]["message"], reply["usage"]
            reasoning = message["reasoning"] or ""
            self.assertEqual(reasoning.count("word"), budget)
            # The script goes on after the token that was forced.
            self.assertEqual(message["content"].count("word"), 12 - budget - 1)
            self.assertEqual(usage["completion_tokens_details"]["reasoning_tokens"], budget)
            chunks = self.server.stream(CHAT, {"messages": user("words"), **fields})
            deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
            self.assertEqual("".join(d.get("reasoning", "") for d in deltas), reasoning)
            self.assertEqual("".join(d.get("content", "") for d in deltas), message["content"])
        _, plain = self.server.chat("hello")
        _, roomy = self.server.chat("hello", thinking_token_budget=100)
        self.assertEqual(plain["choices"], roomy["choices"])
        for fields in ({"thinking": {"type": "enabled", "budget_tokens": 2}},
                       {"reasoning": {"max_tokens": 2}}):
            _, reply = self.server.chat("words", max_tokens=8, **fields)
            self.assertEqual(reply["choices"][0]["message"]["reasoning"].count("word"), 2)

    def test_content_format(self):
        """auto as sent, string (parts joined by newlines), openai (a list of parts)."""
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        messages = [{"role": "user", "content": parts},
                    {"role": "assistant", "tool_calls": [
                        {"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                    {"role": "tool", "tool_call_id": "c", "content": "r"}]
        for content_format, user_text, result in ((0, "ab", "<response>r</response>"),
                                                  (1, "a\nb", "<response>r</response>"),
                                                  (2, "ab", "<response>r\n</response>")):
            with Server(content_format=content_format) as server:
                _, prompts = server.post(CHAT + "/render", {"messages": messages})[1]
            self.assertIn(f"user\n{user_text}[e~[", prompts[0]["prompt"])
            self.assertIn(result, prompts[0]["prompt"])

    def test_what_a_tool_returned_and_nobody_reads_is_named(self):
        """A 400 would come for every later request of the agent, too."""
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        messages = [*user("hello"), {"role": "assistant", "tool_calls": [
            {"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}, image]}]
        _, prompts = self.server.post(CHAT + "/render", {"messages": messages})[1]
        self.assertIn("<response>[image_url: this model reads text only]\n</response>",
                      prompts[0]["prompt"])
        asked = {"messages": [{"role": "user", "content": [image]}]}
        self.assertEqual(self.server.post(CHAT, asked)[0], 400)

    def test_continue_and_echo(self):
        messages = [*user("hello"), {"role": "assistant", "content": "An apple a day"}]
        fields = {"messages": messages, "continue_final_message": True, "max_tokens": 3}
        _, prompts = self.server.post(CHAT + "/render", fields)[1]
        self.assertTrue(prompts[0]["prompt"].endswith("]~b]ai\nAn apple a day"))
        _, plain = self.server.post(CHAT, fields)
        text = plain["choices"][0]["message"]["content"]
        _, echoed = self.server.post(CHAT, {**fields, "echo": True})
        self.assertEqual(echoed["choices"][0]["message"]["content"], "An apple a day" + text)
        chunks = self.server.stream(CHAT, {**fields, "echo": True})
        self.assertEqual(chunks[1]["choices"][0]["delta"], {"content": "An apple a day"})
        self.assertEqual("".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]),
                         "An apple a day" + text)
        _, prompts = self.server.post(CHAT + "/render", {
            "messages": user("hello"), "add_generation_prompt": False})[1]
        self.assertFalse(prompts[0]["prompt"].endswith("<think>\n"))

    def test_length(self):
        _, reply = self.server.chat("hello", max_completion_tokens=3)
        self.assertEqual(reply["choices"][0]["finish_reason"], "length")
        self.assertEqual(reply["usage"]["completion_tokens"], 3)

    def test_error_in_mid_stream(self):
        chunks = self.server.stream(CHAT, {"messages": user("nan")})
        self.assertEqual(chunks[-1], "[DONE]")
        self.assertEqual(chunks[-2]["error"]["code"], 500)
        status, reply = self.server.chat("nan")
        self.assertEqual((status, reply["error"]["type"]), (500, "InternalServerError"))

    def test_request_id_becomes_the_suffix(self):
        _, _, text = self.server.request(
            "POST", CHAT, {"messages": user("hello")}, {"X-Request-Id": "abc-1"})
        self.assertEqual(json.loads(text)["id"], "chatcmpl-abc-1")


class Completions(ServerCase):
    def test_fields(self):
        status, reply = self.server.complete("plain", max_tokens=4)
        self.assertEqual(status, 200)
        self.assertEqual(list(reply), [
            "id", "object", "created", "model", "choices", "service_tier", "system_fingerprint",
            "usage", "kv_transfer_params"])
        self.assertRegex(reply["id"], r"^cmpl-[0-9a-f]{32}$")
        self.assertEqual(list(reply["choices"][0]), [
            "index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids",
            "prompt_logprobs", "prompt_token_ids"])
        chunks = self.server.stream("/v1/completions", {
            "prompt": "script:plain;<fim_middle>", "max_tokens": 4,
            "stream_options": {"include_usage": True}})
        self.assertEqual(list(chunks[0]), ["id", "object", "created", "model", "choices", "usage"])
        self.assertEqual(list(chunks[0]["choices"][0]), [
            "index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids",
            "token_ids"])
        self.assertEqual("".join(c["choices"][0]["text"] for c in chunks[:-2]),
                         reply["choices"][0]["text"])
        self.assertEqual((chunks[-2]["choices"], chunks[-1]), ([], "[DONE]"))
        self.assertEqual(len(chunks), 4 + 2)

    def test_stop_string(self):
        _, reply = self.server.complete("plain", stop=["STOP"], max_tokens=50)
        choice = reply["choices"][0]
        self.assertEqual((choice["text"], choice["finish_reason"], choice["stop_reason"]),
                         ("one two three ", "stop", "STOP"))
        _, reply = self.server.complete(
            "plain", stop="STOP", include_stop_str_in_output=True, max_tokens=50)
        self.assertEqual(reply["choices"][0]["text"], "one two three STOP")
        _, reply = self.server.complete("plain", stop="STOP", min_tokens=5, max_tokens=50)
        self.assertEqual(reply["choices"][0]["text"], "one two three STOP four five")

    def test_stop_token(self):
        _, ids = self.server.post("/tokenize", {"prompt": "one two three STOP"})
        _, reply = self.server.complete("plain", stop_token_ids=[ids["tokens"][2]], max_tokens=50)
        choice = reply["choices"][0]
        self.assertEqual((choice["text"], choice["stop_reason"]), ("one two", ids["tokens"][2]))

    def test_prompt_forms(self):
        _, ids = self.server.post("/tokenize", {"prompt": "script:plain;<fim_middle>"})
        prompt = ids["tokens"]
        for form in (prompt, [prompt, prompt], ["script:plain;<fim_middle>"] * 3):
            status, reply = self.server.post(
                "/v1/completions", {"prompt": form, "max_tokens": 2, "n": 1})
            self.assertEqual(status, 200, reply)
            self.assertEqual({c["text"] for c in reply["choices"]}, {"one two"})
        self.assertEqual([c["index"] for c in reply["choices"]], [0, 1, 2])

    def test_logprobs_and_echo(self):
        body = {"prompt": "script:plain;<fim_middle>", "max_tokens": 1, "echo": True,
                "logprobs": 1, "temperature": 0, "seed": 1234}
        _, reply = self.server.post("/v1/completions", body)
        choice = reply["choices"][0]
        self.assertEqual(choice["text"], "script:plain;<fim_middle>one")
        logprobs = choice["logprobs"]
        self.assertEqual(list(logprobs), ["text_offset", "token_logprobs", "tokens",
                                          "top_logprobs"])
        count = reply["usage"]["prompt_tokens"] + 1
        self.assertEqual([len(v) for v in logprobs.values()], [count] * 4)
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertIsNone(logprobs["top_logprobs"][0])
        self.assertEqual("".join(logprobs["tokens"]), choice["text"])
        self.assertEqual(logprobs["token_logprobs"][-1],
                         max(logprobs["top_logprobs"][-1].values()))
        _, only = self.server.post("/v1/completions", {**body, "max_tokens": 0})
        self.assertEqual(only["choices"][0]["text"], "script:plain;<fim_middle>")
        self.assertEqual(len(only["choices"][0]["logprobs"]["tokens"]), count - 1)

    def test_prompt_logprobs(self):
        _, reply = self.server.complete("plain", prompt_logprobs=1, max_tokens=1)
        positions = reply["choices"][0]["prompt_logprobs"]
        self.assertEqual(len(positions), reply["usage"]["prompt_tokens"])
        self.assertIsNone(positions[0])
        self.assertEqual(set(next(iter(positions[1].values()))),
                         {"logprob", "rank", "decoded_token"})

    def test_tokens_as_ids(self):
        _, reply = self.server.complete(
            "plain", logprobs=0, return_tokens_as_token_ids=True, max_tokens=1)
        self.assertRegex(reply["choices"][0]["logprobs"]["tokens"][0], r"^token_id:\d+$")

    def test_logit_bias_and_bad_words_act(self):
        _, plain = self.server.complete("plain", max_tokens=1, return_token_ids=True)
        token = plain["choices"][0]["token_ids"][0]
        _, other = self.server.complete(
            "plain", max_tokens=1, temperature=0, logit_bias={str(token): -100})
        self.assertNotEqual(other["choices"][0]["text"], "one")
        _, other = self.server.complete("plain", max_tokens=1, temperature=0, bad_words=["one"])
        self.assertNotEqual(other["choices"][0]["text"], "one")
        _, other = self.server.complete(
            "plain", max_tokens=2, allowed_token_ids=[token], return_token_ids=True)
        self.assertEqual(other["choices"][0]["token_ids"], [token, token])

    def test_truncate_prompt(self):
        _, reply = self.server.complete(
            "plain", truncate_prompt_tokens=3, max_tokens=1, return_token_ids=True)
        left = reply["choices"][0]["prompt_token_ids"]
        _, ids = self.server.post("/tokenize", {"prompt": "script:plain;<fim_middle>"})
        self.assertEqual(left, ids["tokens"][-3:])
        _, reply = self.server.complete("plain", truncate_prompt_tokens=3, max_tokens=1,
                                        truncation_side="right", return_token_ids=True)
        self.assertEqual(reply["choices"][0]["prompt_token_ids"], ids["tokens"][:3])

    def test_render(self):
        _, prompts = self.server.post("/v1/completions/render", {
            "prompt": ["Hello world", [10, 11]], "max_tokens": 3})
        self.assertEqual([p["prompt"] for p in prompts],
                         ["Hello world", self.server.post("/detokenize", {"tokens": [10, 11]})[1]
                          ["prompt"]])
        self.assertEqual(prompts[1]["prompt_token_ids"], [10, 11])
        self.assertEqual(prompts[1]["max_tokens"], 3)
        self.assertEqual(self.server.post("/v1/completions/render", {"prompt": "a", "n": 0})[0],
                         400)


class Small(ServerCase):
    CONFIG = {"api_keys": ["secret", "another"], "request_id_headers": True, "log_requests": True}

    def test_models_and_keys(self):
        status, _, text = self.server.request("GET", "/v1/models")
        self.assertEqual((status, text), (401, '{"error":"Unauthorized"}'))
        for key, expected in (("Bearer secret", 200), ("bearer another", 200),
                              ("Bearer secre", 401), ("Basic secret", 401), ("Bearer ", 401)):
            status, _, text = self.server.request(
                "GET", "/v1/models", headers={"Authorization": key})
            self.assertEqual(status, expected, key)
        status, _, text = self.server.request(
            "GET", "/v1/models", headers={"Authorization": "Bearer secret"})
        models = json.loads(text)["data"]
        self.assertEqual([m["id"] for m in models], ["scripted", "other-name"])
        self.assertEqual({m["root"] for m in models}, {"scripted"})
        self.assertEqual(models[0]["max_model_len"], 8192)

    def test_one_model(self):
        names = ["org/model", "other%name"]
        with Server(model_names=names, api_keys=["secret"]) as server:
            def ask(name, method="GET", **headers):
                return server.request(method, f"/v1/models/{name}",
                                      headers={"Authorization": "Bearer secret", **headers})
            listed = json.loads(server.request(
                "GET", "/v1/models", headers={"Authorization": "Bearer secret"})[2])["data"]
            for spelled, entry in (("org/model", listed[0]), ("org%2Fmodel", listed[0]),
                                   ("org%2fmodel", listed[0]), ("other%25name", listed[1]),
                                   ("other%name", listed[1])):
                status, _, text = ask(spelled)
                self.assertEqual(status, 200, spelled)
                one = json.loads(text)
                self.assertEqual({**one, "created": 0, "permission": 0},
                                 {**entry, "created": 0, "permission": 0})
            self.assertEqual(ask("org/model", "HEAD")[0], 200)
            for wrong in ("org", "org/", "org%2", "%", "org/model//", "ORG/model"):
                status, _, text = ask(wrong)
                self.assertEqual((status, json.loads(text)["error"]["type"]),
                                 (404, "NotFoundError"), wrong)
            self.assertEqual(json.loads(ask("org/model", **{"anthropic-version": "x"})[2])["type"],
                             "model")
            self.assertEqual(ask("org/model", "POST")[0], 405)
            self.assertEqual(server.request("GET", "/v1/models/org/model")[0], 401)

    def test_tokenize_round_trip(self):
        text = "Hello <think> ]~b] wörld"
        _, reply = self.server.post("/tokenize", {"prompt": text, "return_token_strs": True})
        self.assertEqual(reply["count"], len(reply["tokens"]))
        self.assertEqual("".join(reply["token_strs"][:2]), "Hello <think>"[:len(
            "".join(reply["token_strs"][:2]))])
        _, back = self.server.post("/detokenize", {"tokens": reply["tokens"]})
        self.assertEqual(back, {"prompt": text})
        status, wrong = self.server.post("/detokenize", {"tokens": [-1]})
        self.assertEqual((status, wrong["error"]["param"]), (400, "tokens"))
        _, chat = self.server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})
        self.assertEqual(chat["tokens"][-2:], [200050, 10])

    def test_probes(self):
        for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"),
                             ("GET", "/livez"), ("GET", "/readyz"), ("HEAD", "/")):
            status, headers, text = self.server.request(method, path)
            self.assertEqual((status, text), (200, ""), path)
            said = email.utils.parsedate_to_datetime(headers["date"]).timestamp()
            self.assertLess(abs(time.time() - said), 60)
        self.assertEqual(json.loads(self.server.request("GET", "/version")[2]), {"version": "0"})
        self.assertEqual(json.loads(self.server.request("GET", "/load")[2]), {"server_load": 0})
        self.assertIn("vllm:num_requests_running", self.server.request("GET", "/metrics")[2])

    def test_tokenizer_info_by_flag(self):
        self.assertEqual(self.server.request("GET", "/tokenizer_info")[0], 404)
        with Server(tokenizer_info=True) as server:
            status, _, text = server.request("GET", "/tokenizer_info")
            info = json.loads(text)
            self.assertEqual((status, info["eos_token"]), (200, "[e~["))
            with open(os.path.join(DATA, "chat_template.jinja")) as file:
                self.assertEqual(info["chat_template"], file.read())

    def test_unknown_route_and_method(self):
        status, _, text = self.server.request("GET", "/nothing")
        self.assertEqual((status, json.loads(text)["error"]["type"]), (404, "Not Found"))
        status, headers, _ = self.server.request("GET", "/tokenize")
        self.assertEqual((status, headers["allow"]), (405, "POST"))

    def test_request_id_is_echoed_if_asked_for(self):
        headers = self.server.request("GET", "/livez", headers={"X-Request-Id": "abc"})[1]
        self.assertEqual(headers["x-request-id"], "abc")
        self.assertNotIn("x-request-id", self.server.request("GET", "/livez")[1])

    def test_cors(self):
        status, headers, _ = self.server.request("OPTIONS", CHAT, headers={
            "Origin": "http://a", "Access-Control-Request-Method": "POST"})
        self.assertEqual((status, headers["access-control-allow-origin"]), (200, "*"))
        self.assertIn("POST", headers["access-control-allow-methods"])


if __name__ == "__main__":
    main()
