"""Requests of every kind, right and wrong, from clients that leave at any moment: nothing of them may
stay. Two times two seconds over each of TCP and TLS; M2_LONG=1: a minute."""

import json
import os
import re
import socket
import ssl
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from random import Random

from scripted import SCRIPTS, TIME_FACTOR, Server, main, make_certificate

SECONDS = 60 if os.environ.get("M2_LONG") else 2
CLIENTS = 16
SCRIPT_NAMES = ["hello", "tool", "plain", "long", "ticks", "nan"]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS}}

# Fields of a generating request, each with values that may be wrong.
FIELDS = {
    "temperature": [0, 0.7, 1, -1], "top_p": [0.5, 1.5], "top_k": [-1, 40], "min_p": [0.1], "seed": [7],
    "stop": [["STOP"], "o", [""]], "stop_token_ids": [[10], [10**9]], "ignore_eos": [True],
    "min_tokens": [3, 30], "bad_words": [["tick"]], "logit_bias": [{"10": 5}, {"x": 1}], "n": [2, 3, 99],
    "repetition_penalty": [1.2], "priority": [2], "cache_salt": ["x", ""], "prompt_logprobs": [1],
    "skip_special_tokens": [False], "include_stop_str_in_output": [True], "return_token_ids": [True],
    "thinking_token_budget": [0, 3], "allowed_token_ids": [[10, 11]], "stream_interval": [5],
}


def generating(random):
    """Path and body of a request that makes tokens."""
    script = f"script:{random.choice(SCRIPT_NAMES)};"
    length = random.choice([1, 5, 20, 80, 0])
    stream = random.random() < 0.5
    fields = {name: random.choice(values) for name, values in FIELDS.items() if random.random() < 0.08}
    if stream and random.random() < 0.5:
        fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    tools = random.random() < 0.3
    kind = random.randrange(4)
    if kind == 0:
        body = {"messages": [{"role": "user", "content": script}], "max_tokens": length, "stream": stream,
                **fields}
        if tools:
            body["tools"] = [{"type": "function",
                              "function": {"name": "get_weather", "parameters": PARAMETERS}}]
            body["tool_choice"] = random.choice(["auto", "none", "required", "bad"])
        elif random.random() < 0.2:
            body["response_format"] = random.choice([SCHEMA, {"type": "json_object"}, {"type": "x"}])
        return "/v1/chat/completions", body
    if kind == 1:
        prompt = random.choice([script + "<fim_middle>", [script, "a b"], [1, 2, 3], [[5], [-1]], "x " * 9000])
        body = {"prompt": prompt, "max_tokens": length, "stream": stream, **fields}
        if random.random() < 0.3:
            body |= {"logprobs": 2, "echo": True}
        return "/v1/completions", body
    if kind == 2:
        body = {"input": script, "max_output_tokens": length or 7, "stream": stream,
                "background": random.random() < 0.3}
        if tools:
            body["tools"] = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS},
                             {"type": "custom", "name": "apply_patch"}, {"type": "web_search"}]
            body["tool_choice"] = random.choice(["auto", "required", "none"])
        return "/v1/responses", body
    body = {"model": "scripted", "max_tokens": length, "stream": stream, "messages": [
        {"role": "user", "content": random.choice([script, [{"type": "text", "text": script}],
                                                   [{"type": "image", "source": {}}]])}]}
    if tools:
        body["tools"] = [{"name": "get_weather", "input_schema": PARAMETERS}]
        body["tool_choice"] = {"type": random.choice(["auto", "any", "none", "bad"])}
    return random.choice(["/v1/messages", "/v1/messages?beta=true", "/v1/messages/count_tokens"]), body


def request_of(random, ids):
    """Method, path and body."""
    if random.random() < 0.8:
        return "POST", *generating(random)
    one = "/v1/responses/" + (random.choice(ids[-30:]) if ids else "resp_none")
    return random.choice([
        ("GET", "/metrics", None), ("GET", "/v1/models", None), ("GET", "/health", None),
        ("POST", "/tokenize", {"prompt": "a b " * random.randrange(2000), "return_token_strs": True}),
        ("POST", "/detokenize", {"tokens": [random.randint(-1, 200_000) for _ in range(5)]}),
        ("GET", one, None), ("GET", one + "?stream=true", None), ("DELETE", one, None),
        ("POST", one + "/cancel", {}), ("POST", "/v1/chat/completions", b"{no json"),
        ("POST", "/v1/chat/completions/render", {"messages": [{"role": "user", "content": "a"}]}),
        ("PUT", "/nothing", None)])


class Soak(unittest.TestCase):
    TICKS = {"ticks": {"text": "tick ", "repeat": True, "delay_ms": 1}}
    CONFIG = {"scripts": {**SCRIPTS, **TICKS}, "store_responses": True, "max_responses": 40, "max_turns": 100,
              "max_event_bytes": 200_000, "max_num_seqs": 32, "log_level": "critical", "keep_alive_idle": 2}

    def visit(self, server, random, ids):
        """One connection with one request; the status, or how the client left."""
        method, path, body = request_of(random, ids)
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        request = (f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                   f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n").encode() + data
        with server.connect() as connection:
            connection.settimeout(60 * TIME_FACTOR)
            leaves = random.random()
            if leaves < 0.5 and random.random() < 0.5:  # by RST, not FIN
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if leaves < 0.1:
                connection.sendall(request[:random.randrange(len(request))])
                return "left in the request"
            connection.sendall(request)
            if leaves < 0.35:
                time.sleep(random.choice([0, 0.001, 0.02, 0.2]))
                if random.random() < 0.5:
                    connection.recv(random.choice([1, 300]))
                return "left in the answer"
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
        ids.extend(found.decode() for found in re.findall(rb'"id":"(resp_[0-9a-f]{32})"', reply)[:1])
        return int(reply[9:12])

    def visits(self, server, seconds, seed):
        """What came of all visits of many clients in so many seconds."""
        ids, outcomes, until = [], [], time.time() + seconds

        def client(number):
            random = Random(f"{seed}/{number}")
            while time.time() < until:
                outcomes.append(self.visit(server, random, ids))

        with ThreadPoolExecutor(CLIENTS) as clients:
            for done in [clients.submit(client, number) for number in range(CLIENTS)]:
                done.result()
        for name in set(ids):
            server.request("DELETE", f"/v1/responses/{name}")
        return outcomes

    def rest(self, server):
        """What there is of the server when it does nothing: descriptors, threads, KiB of memory."""
        until = time.time() + 20 * TIME_FACTOR
        while True:
            busy = [name for name in ("num_requests_running", "num_requests_waiting",
                                      "kv_cache_usage_perc") if server.metric("vllm:" + name) != 0]
            load = json.loads(server.request("GET", "/load")[2])["server_load"]
            process = f"/proc/{server.process.pid}"
            open_files = len(os.listdir(process + "/fd"))
            if not busy and load == 0 and open_files <= self.files:
                break
            self.assertLess(time.time(), until, (busy, load, open_files))
            time.sleep(0.1)
        with open(process + "/status") as file:
            resident = int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])
        return len(os.listdir(process + "/task")), resident

    def soak(self, **config):
        with Server(**self.CONFIG, **config) as server:
            if "ssl_certfile" in config:
                server.tls = ssl.create_default_context(cafile=config["ssl_certfile"])
                server.tls.check_hostname = False
            server.request("GET", "/health")
            # One more than at rest: the connection that asked may not be closed yet.
            self.files = len(os.listdir(f"/proc/{server.process.pid}/fd")) + 1
            outcomes = self.visits(server, SECONDS, "first")
            threads, before = self.rest(server)
            outcomes += self.visits(server, SECONDS, "second")
            threads_after, after = self.rest(server)
        self.assertEqual(threads_after, threads)
        self.assertLess(after - before, 48 << 10, "memory grew while as much came as before")
        # 500: the script whose logits are no numbers.
        self.assertLessEqual({o for o in outcomes if isinstance(o, int)}, {200, 400, 404, 405, 500})
        for outcome in ("left in the request", "left in the answer", 200, 400):
            self.assertGreater(outcomes.count(outcome), 5, outcome)

    def test_plain(self):
        self.soak()

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = make_certificate(folder, "server")
            self.soak(ssl_certfile=certificate, ssl_keyfile=key)


if __name__ == "__main__":
    main()
