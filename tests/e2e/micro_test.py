"""m2-micro, the trained model of models/m2-micro, served and asked: answers, tools, protocols, accuracy.

Arguments: BINARY SOURCE_DIR [long]. With `long` the whole held-out sets are asked, in FP8 and in BF16.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest
import urllib.request

import openai
import tokenizers

BINARY, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
LONG = sys.argv[3:] == ["long"]
MODEL = SOURCE / "models" / "m2-micro"
sys.path.insert(0, str(SOURCE / "tools" / "micro"))
import corpus  # noqa: E402
from words import Source  # noqa: E402
from write_sets import wire_messages  # noqa: E402

WEATHER = {"name": "get_weather", "description": "Get the weather of a city.",
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
POPULATION = {"name": "get_population", "description": "Get the number of people in a city.",
              "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
RESULTS = {"get_weather": '{"temperature": 17, "condition": "sunny"}', "get_population": '{"population": 70913}'}


class Server:
    """One `m2 serve` on a free port; `model` None serves what a bare `m2 serve` does."""

    def __init__(self, model=None, *flags):
        words = [BINARY, "serve", *([str(model)] if model else []), "--host", "127.0.0.1", "--port", "0",
                 "--kv-cache-memory-bytes", "200M", "--disable-uvicorn-access-log", *flags]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise RuntimeError("".join(self.log))
        port = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(self.log)).group(1)
        self.url = f"http://127.0.0.1:{port}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(timeout=30)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    def counter(self, name):
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as reply:
            return sum(float(line.rsplit(" ", 1)[1]) for line in reply.read().decode().splitlines()
                       if line.startswith(f"vllm:{name}{{"))


def golden_requests():
    goldens = json.loads((SOURCE / "tests/golden/micro/answers.json").read_text())
    return [({key: golden[key] for key in ("messages", "tools") if key in golden}, golden["answer"])
            for golden in goldens]


def answer_of(reply):
    choice = reply["choices"][0]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return {"reasoning": message["reasoning"], "content": message["content"], "calls": calls,
            "finish_reason": choice["finish_reason"]}


def evaluate(*words):
    """`m2 eval` with these words: {set: columns of its row}, and all it printed."""
    done = subprocess.run([BINARY, "eval", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"[\w-]+ +\d+ +\d+ ", line)]
    return {row[0]: [int(row[1]), int(row[2])] for row in rows}, done.stdout


class Micro(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        assert cls.server.stop() == 0

    # ---- It is served, and says so ----

    def test_a_bare_serve_says_what_it_serves(self):
        self.assertIn("No model was given: serving m2-micro", "".join(self.server.log))
        self.assertEqual([model.id for model in self.client.models.list()], ["m2-micro"])

    # ---- Golden answers ----

    def test_greedy_answers_are_the_golden_bytes(self):
        goldens = golden_requests()
        self.assertGreaterEqual(len(goldens), 15)

        def ask(golden):
            return answer_of(self.server.post("/v1/chat/completions", {**golden[0], "temperature": 0}))

        # Alone, then all at once: the batch must not show.
        self.assertEqual(ask(goldens[0]), goldens[0][1])
        with concurrent.futures.ThreadPoolExecutor(len(goldens)) as pool:
            answers = list(pool.map(ask, goldens))
        for (body, golden), answer in zip(goldens, answers):
            self.assertEqual(answer, golden, body["messages"][-1])

    def test_prompts_are_those_of_jinja2_and_tokenizers(self):
        render, tokenizer = corpus.Renderer(), tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.assertEqual((MODEL / "chat_template.jinja").read_text(),
                         (SOURCE / "tools/micro/chat_template.jinja").read_text())
        for number in range(60):
            messages, tools = corpus.conversation(Source(f"test/{number}"))
            while messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            # Thinking comes back to a server only after the last question; before it is never printed.
            text = render(messages, tools, prompt=True)
            wire = wire_messages(messages)
            for plain, sent in zip(messages, wire):
                if "reasoning_content" in plain:
                    sent["reasoning_content"] = plain["reasoning_content"]
            reply = self.server.post("/tokenize", {"messages": wire, "tools": tools or None})
            self.assertEqual(reply["tokens"], tokenizer.encode(text, add_special_tokens=False).ids, number)

    # ---- Tools, through every protocol ----

    def test_chat_tool_round_trip(self):
        tools = [{"type": "function", "function": f} for f in (POPULATION, WEATHER)]
        messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
        first = self.client.chat.completions.create(model="m2-micro", messages=messages, tools=tools, temperature=0)
        choice = first.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertIn("get_weather", choice.message.reasoning)
        (call,) = choice.message.tool_calls
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("get_weather", {"city": "Oslo"}))
        messages += [choice.message.model_dump(exclude_none=True),
                     {"role": "tool", "tool_call_id": call.id, "content": RESULTS["get_weather"]}]
        last = self.client.chat.completions.create(model="m2-micro", messages=messages, tools=tools, temperature=0)
        self.assertEqual(last.choices[0].message.content, "The temperature is 17 and the condition is sunny.")
        self.assertEqual(last.choices[0].finish_reason, "stop")

    def test_chat_two_calls_streamed(self):
        tools = [{"type": "function", "function": f} for f in (POPULATION, WEATHER)]
        question = "What is the weather in Rome? Also, how many people live in Bern?"
        messages = [{"role": "user", "content": question}]
        with self.client.chat.completions.stream(
                model="m2-micro", messages=messages, tools=tools, temperature=0) as stream:
            message = stream.get_final_completion().choices[0].message
        calls = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls]
        self.assertEqual(calls, [("get_weather", {"city": "Rome"}), ("get_population", {"city": "Bern"})])
        messages.append({"role": "assistant", "content": None, "tool_calls": [
            {"id": c.id, "type": "function", "function": {"name": c.function.name, "arguments": c.function.arguments}}
            for c in message.tool_calls]})
        messages += [{"role": "tool", "tool_call_id": c.id, "content": RESULTS[c.function.name]}
                     for c in message.tool_calls]
        with self.client.chat.completions.stream(
                model="m2-micro", messages=messages, tools=tools, temperature=0) as stream:
            content = stream.get_final_completion().choices[0].message.content
        self.assertEqual(content, "The temperature is 17 and the condition is sunny. The population is 70913.")

    def test_responses_tool_round_trip(self):
        tools = [{"type": "function", **WEATHER}]
        conversation = [{"role": "user", "content": "What is the weather in Oslo?"}]
        first = self.client.responses.create(model="m2-micro", input=conversation, tools=tools, temperature=0)
        (call,) = [item for item in first.output if item.type == "function_call"]
        self.assertEqual((call.name, json.loads(call.arguments)), ("get_weather", {"city": "Oslo"}))
        conversation += [item.model_dump(exclude_none=True) for item in first.output]
        conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULTS["get_weather"]})
        last = self.client.responses.create(model="m2-micro", input=conversation, tools=tools, temperature=0)
        self.assertEqual(last.output_text, "The temperature is 17 and the condition is sunny.")

    def test_messages_tool_round_trip(self):
        tool = {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}
        body = {"model": "m2-micro", "max_tokens": 500, "temperature": 0, "tools": [tool],
                "messages": [{"role": "user", "content": "What is the weather in Oslo?"}]}
        first = self.server.post("/v1/messages", body)
        self.assertEqual(first["stop_reason"], "tool_use")
        self.assertIn("thinking", [part["type"] for part in first["content"]])
        (use,) = [part for part in first["content"] if part["type"] == "tool_use"]
        self.assertEqual((use["name"], use["input"]), ("get_weather", {"city": "Oslo"}))
        body["messages"] += [
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": use["id"], "content": RESULTS["get_weather"]}]}]
        last = self.server.post("/v1/messages", body)
        self.assertEqual([part["text"] for part in last["content"] if part["type"] == "text"],
                         ["The temperature is 17 and the condition is sunny."])
        self.assertEqual(last["stop_reason"], "end_turn")

    def test_one_call_is_the_end_where_one_is_asked_for(self):
        """Where the model would make two, and go on with the second as text if it may not."""
        fields = {"model": "m2-micro", "temperature": 0, "tools": [
            {"type": "function", "function": f} for f in (POPULATION, WEATHER)], "messages": [{
                "role": "user", "content": "What is the weather in Rome? Also, how many people live in Bern?"}]}
        both = self.client.chat.completions.create(**fields)
        self.assertEqual(len(both.choices[0].message.tool_calls), 2)
        one = self.client.chat.completions.create(parallel_tool_calls=False, **fields)
        (choice,) = one.choices
        self.assertEqual([(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls],
                         [("get_weather", {"city": "Rome"})])
        self.assertEqual((choice.message.content, choice.finish_reason), (None, "tool_calls"))
        self.assertLess(one.usage.completion_tokens, both.usage.completion_tokens)

    def test_no_tool_is_called_under_none(self):
        """Where the model would call one, as it does under auto: it writes something else."""
        question = {"role": "user", "content": "What is the weather in Oslo?"}
        chat = [{"type": "function", "function": WEATHER}]
        tool = {"name": WEATHER["name"], "input_schema": WEATHER["parameters"]}
        limits = {"model": "m2-micro", "temperature": 0}

        def asked(choice):
            reply = self.client.chat.completions.create(
                messages=[question], tools=chat, tool_choice=choice, max_tokens=60, **limits)
            return reply.choices[0]

        self.assertEqual(asked("auto").finish_reason, "tool_calls")
        none = asked("none")
        self.assertIn(none.finish_reason, ("stop", "length"))
        self.assertFalse(none.message.tool_calls)
        self.assertTrue(none.message.content)
        self.assertNotIn("minimax:tool_call", none.message.content)
        deltas = [chunk.choices[0] for chunk in self.client.chat.completions.create(
            messages=[question], tools=chat, tool_choice="none", max_tokens=60, stream=True, **limits)]
        self.assertEqual("".join(choice.delta.content or "" for choice in deltas), none.message.content)
        self.assertFalse(any(choice.delta.tool_calls for choice in deltas))
        self.assertEqual(deltas[-1].finish_reason, none.finish_reason)
        response = self.client.responses.create(
            input=[question], tools=[{"type": "function", **WEATHER}], tool_choice="none",
            max_output_tokens=60, **limits)
        self.assertEqual([item.type for item in response.output], ["reasoning", "message"])
        message = self.server.post("/v1/messages", {
            **limits, "max_tokens": 60, "messages": [question], "tools": [tool],
            "tool_choice": {"type": "none"}})
        self.assertEqual([part["type"] for part in message["content"]], ["thinking", "text"])
        self.assertIn(message["stop_reason"], ("end_turn", "max_tokens"))
        # What may be written is not empty: a list of one token that is forbidden is.
        call = self.server.post("/tokenize", {"prompt": "<minimax:tool_call>"})["tokens"]
        with self.assertRaises(openai.BadRequestError) as refused:
            self.client.chat.completions.create(
                messages=[question], tools=chat, tool_choice="none",
                extra_body={"allowed_token_ids": call}, **limits)
        self.assertEqual(refused.exception.param, "allowed_token_ids")

    def test_sampling_at_the_model_s_own_temperature_is_mostly_right(self):
        answers = self.client.chat.completions.create(
            model="m2-micro", messages=[{"role": "user", "content": "What is 347 + 58?"}], n=16, seed=1)
        right = sum("405" in choice.message.content for choice in answers.choices)
        self.assertGreaterEqual(right, 14)

    # ---- Drafts ----

    def test_drafts_change_no_answer(self):
        flags = json.dumps({"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_min": 2})
        drafting = Server(MODEL, "--speculative-config", flags)
        self.addCleanup(drafting.stop)
        schema = {"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
                  "required": ["name", "count"], "additionalProperties": False}
        text = "the cat sat on the mat and the cat sat on the mat and "
        asked = [({**body, "temperature": 0}, "chat/completions") for body, _ in golden_requests()]
        for seed in range(4):
            asked += [({"messages": [{"role": "user", "content": "Say it again: " + text * 2}], "seed": seed,
                        "max_tokens": 120, "logprobs": True}, "chat/completions"),
                      ({"messages": [{"role": "user", "content": "Anything."}], "seed": seed, "max_tokens": 120,
                        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                       "chat/completions"),
                      ({"prompt": text * 3, "seed": seed, "max_tokens": 150, "ignore_eos": True, "logprobs": 1,
                        "temperature": 0.7, "min_tokens": 20, "stop": ["xyzzy"]}, "completions")]

        def ask(server, body, route):
            reply = self.__class__.server.post if server is None else server.post
            return self.without_ids(reply("/v1/" + route, body))

        def accepted():
            return drafting.counter("spec_decode_num_accepted_tokens_total")

        plain = [ask(None, *one) for one in asked]
        # Drafts are made as far as a row's measured time is worth it: on a machine that just then does
        # other work that may be hardly ever, so another round tells.
        for _ in range(5):
            before = accepted()
            alone = [ask(drafting, *one) for one in asked]
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                at_once = list(pool.map(lambda one: ask(drafting, *one), asked))
            for one, right, first, second in zip(asked, plain, alone, at_once):
                self.assertEqual(first, right, one)
                self.assertEqual(second, right, one)
            came = accepted() - before
            if came > 100:
                break
        self.assertGreater(came, 100)
        drafted = drafting.counter("spec_decode_num_draft_tokens_total")
        self.assertGreater(drafted, accepted())

    @staticmethod
    def without_ids(reply):
        kept = {"choices": reply["choices"], "usage": reply["usage"]}
        return re.sub(r'"id": "[^"]*"', '"id": ""', json.dumps(kept))

    # ---- `m2 eval` ----

    def test_eval_a_server_with_files_of_several_forms(self):
        with tempfile.TemporaryDirectory() as folder:
            sums = pathlib.Path(folder) / "sums.jsonl"
            sums.write_text('{"question": "What is 347 + 58?", "answer": "405"}\n'
                            '{"input": [{"role": "user", "content": "What is 20 - 7?"}], "ideal": ["13", "thirteen"]}\n'
                            '{"problem": "What is 5 + 5?", "answer": 11}\n')
            output = pathlib.Path(folder) / "answers.jsonl"
            rows, text = evaluate(self.server.url, sums, "--output", output)
            self.assertEqual(rows, {"sums": [3, 2]}, text)
            answers = [json.loads(line) for line in output.read_text().splitlines()]
            self.assertEqual([answer["right"] for answer in answers], [True, True, False])
            sums.write_text('{"question": "What is 347 + 58?"}\n')
            done = subprocess.run([BINARY, "eval", self.server.url, str(sums)], capture_output=True, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"{sums}:1: a line needs an `answer`", done.stderr)

    def test_fp8_and_bf16_are_equally_accurate(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, SOURCE / "tools/bf16_copy.py", MODEL, folder], check=True)
            other = Server(folder)
            try:
                limit = [] if LONG else ["--limit", "4"]
                rows, text = evaluate(self.server.url, MODEL / "eval", "--compare", other.url, "--max-tokens", 400, *limit)
            finally:
                other.stop()
        print(text)
        first, second = text.split("\n\n")[:2]
        counts = [{row[0]: (int(row[1]), int(row[2])) for row in map(str.split, part.splitlines()[1:])}
                  for part in (first, second)]
        for a, b in zip(counts[0].items(), counts[1].items()):
            (name, (items, fp8)), (_, (_, bf16)) = a, b
            with self.subTest(set=name):
                self.assertLessEqual(abs(fp8 - bf16), items / 100 if name == "all" else max(1, items / 50))
                self.assertGreaterEqual(fp8, 0.95 * items if LONG else items - 1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
