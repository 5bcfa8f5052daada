"""How the server is reached: TLS and certificates, unix socket, CORS, a proxy's prefix, and what it
says of itself in /openapi.json and /metrics."""

import http.client
import json
import os
import shutil
import socket
import ssl
import tempfile
import time
import unittest

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from scripted import Server, ServerCase, main, make_certificate

CHAT = "/v1/chat/completions"


@unittest.skipUnless(shutil.which("openssl"), "needs the openssl command")
class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.certificate, cls.key = make_certificate(cls.folder, "server")
        cls.trust = ssl.create_default_context(cafile=cls.certificate)
        cls.server = Server(ssl_certfile=cls.certificate, ssl_keyfile=cls.key, ssl_refresh=True,
                            ping_interval=0.3, header_deadline=1.0)
        cls.addClassCleanup(cls.server.stop)

    def connect(self, context=None, port=None):
        return http.client.HTTPSConnection("localhost", port or self.server.port, timeout=10,
                                           context=context or self.trust)

    def test_openai_sdk(self):
        client = openai.OpenAI(base_url=f"https://localhost:{self.server.port}/v1", api_key="x",
                               http_client=httpx.Client(verify=self.trust))
        with client:
            messages = [{"role": "user", "content": "script:hello;"}]
            whole = client.chat.completions.create(model="scripted", messages=messages)
            self.assertEqual(whole.choices[0].message.content, "Hello, world! 你好 🎉")
            text = ""
            for chunk in client.chat.completions.create(
                    model="scripted", messages=messages, stream=True):
                text += chunk.choices[0].delta.content or ""
            self.assertEqual(text, "Hello, world! 你好 🎉")

    def test_large_bodies_and_keep_alive(self):
        connection = self.connect()
        for size in (10, 100_000, 2_000_000):
            body = json.dumps({"prompt": "a " * (size // 2)})
            connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
            reply = json.loads(connection.getresponse().read())
            self.assertGreaterEqual(reply["count"], size // 2)
            self.assertEqual(len(reply["tokens"]), reply["count"])
        connection.close()

    def test_old_protocols_and_plain_text_are_refused(self):
        old = ssl.create_default_context(cafile=self.certificate)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            self.connect(old).request("GET", "/livez")
        for data in (b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 999):
            with self.server.connect() as plain:
                plain.sendall(data)
                plain.settimeout(5)
                try:
                    got = plain.recv(1000)
                except ConnectionResetError:
                    got = b""
                self.assertNotIn(b"HTTP/1.1 200", got)

    def test_a_handshake_that_does_not_end_is_dropped(self):
        with self.server.connect() as slow:
            began = time.time()
            slow.settimeout(10)
            slow.sendall(b"\x16\x03\x01")
            self.assertEqual(slow.recv(100), b"")
            self.assertLess(time.time() - began, 4)

    def test_certificate_is_refreshed(self):
        make_certificate(self.folder, "server")
        type(self).trust = ssl.create_default_context(cafile=self.certificate)
        time.sleep(1.1)
        with self.assertRaises(ssl.SSLError):  # the old one is known no more
            make_certificate(self.folder, "other")
            self.connect(ssl.create_default_context(
                cafile=os.path.join(self.folder, "other.pem"))).request("GET", "/livez")
        connection = self.connect()
        connection.request("GET", "/livez")
        self.assertEqual(connection.getresponse().status, 200)
        connection.close()
        with open(self.certificate) as file:
            whole = file.read()
        with open(self.certificate, "w") as file:  # a broken one is not taken
            file.write("nothing")
        time.sleep(1.1)
        connection = self.connect()
        connection.request("GET", "/livez")
        self.assertEqual(connection.getresponse().status, 200)
        connection.close()
        with open(self.certificate, "w") as file:
            file.write(whole)

    def test_client_certificates(self):
        ca, _ = make_certificate(self.folder, "ca")
        own, key = make_certificate(self.folder, "own")
        good, good_key = make_certificate(self.folder, "client", "ca")
        bad, bad_key = make_certificate(self.folder, "stranger")
        with Server(ssl_certfile=own, ssl_keyfile=key, ssl_ca_certs=ca, ssl_cert_reqs=2) as server:
            for certificate, served in (((good, good_key), True), ((bad, bad_key), False),
                                        (None, False)):
                context = ssl.create_default_context(cafile=own)
                if certificate:
                    context.load_cert_chain(*certificate)
                connection = self.connect(context, server.port)
                try:
                    connection.request("GET", "/livez")
                    status = connection.getresponse().status
                except (ssl.SSLError, OSError):
                    status = None
                self.assertEqual(status, 200 if served else None, certificate)
                connection.close()


class UnixSocket(unittest.TestCase):
    def test_uds(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "m2.sock")
            with Server(uds=path):
                with httpx.Client(transport=httpx.HTTPTransport(uds=path),
                                  base_url="http://m2") as client:
                    self.assertEqual(client.get("/health").status_code, 200)
                    reply = client.post("/v1/completions", json={
                        "prompt": "script:plain;<fim_middle>", "max_tokens": 2}).json()
                    self.assertEqual(reply["choices"][0]["text"], "one two")
                    # A second server leaves the first its path.
                    with self.assertRaises(RuntimeError), Server(uds=path):
                        pass
                    self.assertEqual(client.get("/health").status_code, 200)
            self.assertFalse(os.path.exists(path))

    def test_what_stands_at_the_path(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "m2.sock")
            left = socket.socket(socket.AF_UNIX)
            left.bind(path)
            left.close()  # as a server that was killed leaves it
            with Server(uds=path):
                pass
            file = os.path.join(folder, "notes.txt")
            with open(file, "w") as out:
                out.write("precious")
            with self.assertRaises(RuntimeError), Server(uds=file):
                pass
            with open(file) as kept:
                self.assertEqual(kept.read(), "precious")


class Cors(ServerCase):
    CONFIG = {"origins": ["https://a.example", "https://b.example"], "methods": ["GET", "POST"],
              "headers": ["Authorization", "X-Thing"], "credentials": True, "root_path": "/llm"}

    def preflight(self, origin, method="POST", headers=None):
        asked = {"Origin": origin, "Access-Control-Request-Method": method}
        if headers:
            asked["Access-Control-Request-Headers"] = headers
        return self.server.request("OPTIONS", CHAT, headers=asked)

    def test_preflight(self):
        status, headers, text = self.preflight("https://a.example", "POST",
                                               "authorization, content-type,x-thing")
        self.assertEqual((status, text), (200, "OK"))
        self.assertEqual(headers["access-control-allow-origin"], "https://a.example")
        self.assertEqual(headers["access-control-allow-credentials"], "true")
        self.assertEqual(headers["access-control-allow-methods"], "GET, POST")
        self.assertEqual(headers["vary"], "Origin")
        for arguments, text in ((("https://c.example",), "Disallowed CORS origin"),
                                (("https://a.example", "PUT"), "Disallowed CORS method"),
                                (("https://a.example", "GET", "x-other"),
                                 "Disallowed CORS headers")):
            status, headers, said = self.preflight(*arguments)
            self.assertEqual((status, said), (400, text))

    def test_replies(self):
        _, headers, _ = self.server.request("GET", "/v1/models",
                                            headers={"Origin": "https://b.example"})
        self.assertEqual(headers["access-control-allow-origin"], "https://b.example")
        for sent in ({"Origin": "https://c.example"}, {}):
            _, headers, _ = self.server.request("GET", "/v1/models", headers=sent)
            self.assertNotIn("access-control-allow-origin", headers)

    def test_root_path(self):
        for path, status in (("/llm/v1/models", 200), ("/v1/models", 200), ("/llmv1/models", 404),
                             ("/llm/llm/v1/models", 404), ("/llm", 404), ("/llm/", 200)):
            self.assertEqual(self.server.request("GET", path)[0], status, path)

    def test_a_slash_at_the_end_is_none(self):
        """As scrapers and probes of vLLM have it, which redirects; and past no key."""
        with Server(api_keys=["k"]) as server:
            key = {"Authorization": "Bearer k"}
            for path in ("/health/", "/metrics/", "/version/", "/"):
                self.assertEqual(server.request("GET", path)[0], 200, path)
            for path in ("/v1/models/", "/v1/models/scripted/"):
                self.assertEqual(server.request("GET", path)[0], 401, path)
                self.assertEqual(server.request("GET", path, headers=key)[0], 200, path)
            body = {"messages": [{"role": "user", "content": "script:hello;"}]}
            for path in (CHAT + "/", "/invocations/"):
                self.assertEqual(server.request("POST", path, body)[0], 401, path)
                self.assertEqual(server.request("POST", path, body, key)[0], 200, path)
            self.assertEqual(server.request("GET", "/health//")[0], 404)

    def test_root_path_does_not_open_a_door(self):
        with Server(api_keys=["k"], root_path="/llm") as server:
            for path in ("/llm/v1/models", "/v1/models", "/llm/v1/../v1/models"):
                self.assertIn(server.request("GET", path)[0], (401, 404), path)


class Tenants(ServerCase):
    """What one key's requests leave behind, no other key's find."""

    CONFIG = {"api_keys": ["one", "two"], "store_responses": True, "prompt_tokens_details": True}
    TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}

    def ask(self, key, method, path, body=None, server=None):
        status, headers, text = (server or self.server).request(
            method, path, body, {"Authorization": f"Bearer {key}"})
        return status, headers, json.loads(text)

    def test_stored_responses(self):
        body = {"input": "script:slow;", "background": True}
        name = self.ask("one", "POST", "/v1/responses", body)[2]["id"]
        path = "/v1/responses/" + name
        for method, where in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")):
            status, _, error = self.ask("two", method, path + where, "{}" if method == "POST" else None)
            self.assertEqual((status, error["error"]["message"]),
                             (404, f"Response with id '{name}' not found."))
        self.assertIn(self.ask("one", "GET", path)[2]["status"], ("queued", "in_progress"))
        self.assertEqual(self.ask("one", "POST", path + "/cancel", "{}")[2]["status"], "cancelled")
        # Of events a HEAD has no more than of an answer: what came would be read as the next answer.
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        for where in ("", "?stream=true"):
            connection.request("HEAD", path + where, headers={"Authorization": "Bearer one"})
            self.assertEqual(connection.getresponse().read(), b"")
            connection.request("GET", path, headers={"Authorization": "Bearer one"})
            self.assertEqual(json.loads(connection.getresponse().read())["id"], name)
        connection.close()
        done = self.ask("one", "POST", "/v1/responses", {"input": "script:hello;"})[2]["id"]
        follow = {"input": "script:hello;", "previous_response_id": done}
        self.assertEqual(self.ask("two", "POST", "/v1/responses", follow)[0], 404)
        self.assertEqual(self.ask("one", "POST", "/v1/responses", follow)[0], 200)

    def cached(self, key, server=None, **more):
        messages = [{"role": "system", "content": "x " * 200},
                    {"role": "user", "content": "script:plain;"}]
        reply = self.ask(key, "POST", CHAT, {"messages": messages, "max_tokens": 1, **more}, server)[2]
        return reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    def test_cached_prompts(self):
        found = [self.cached(key) > 0 for key in ("one", "one", "two", "two")]
        self.assertEqual(found, [False, True, False, True])
        # A salt is the key's own; it cannot be made to name another's.
        found = [self.cached(*a) > 0 for a in (("one",), ("two",))]
        self.assertEqual([self.cached("two", cache_salt=s) for s in ("key0", "s")], [0, 0])
        self.assertEqual(self.ask("two", "POST", CHAT, {
            "messages": [{"role": "user", "content": "a"}], "cache_salt": "key0/"})[0], 400)

    def test_remembered_turns(self):
        question = [{"role": "user", "content": "script:tool;"}]
        body = {"messages": question, "tools": [self.TOOL]}
        message = self.ask("one", "POST", CHAT, body)[2]["choices"][0]["message"]
        call = message["tool_calls"][0]
        body["messages"] = question + [
            {"role": "assistant", "content": message["content"], "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "Sunny. script:hello;"}]
        restored = [self.ask(key, "POST", CHAT, body)[1].get("x-m2-reasoning-restored")
                    for key in ("two", "one")]
        self.assertEqual(restored, [None, "1"])
        _, _, text = self.server.request("POST", "/tokenize", {k: body[k] for k in ("messages", "tools")})
        ids = json.loads(text)["tokens"]
        _, _, text = self.server.request("POST", "/detokenize", {"tokens": ids})
        self.assertNotIn("I need the weather", text)

    def test_switched_off(self):
        with Server(api_keys=["one", "two"], prompt_tokens_details=True,
                    isolate_api_keys=False) as server:
            found = [self.cached(key, server) > 0 for key in ("one", "two")]
            self.assertEqual(found, [False, True])


class Describes(ServerCase):
    CONFIG = {"api_keys": ["secret"]}

    def test_openapi(self):
        status, headers, text = self.server.request("GET", "/openapi.json")
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        document = json.loads(text)
        self.assertEqual(document["openapi"], "3.1.0")
        chat = document["paths"][CHAT]["post"]
        self.assertEqual(chat["security"], [{"key": []}, {}])
        schema = chat["requestBody"]["content"]["application/json"]["schema"]
        self.assertEqual(schema["required"], ["messages"])
        self.assertEqual(schema["properties"]["n"],
                         {"anyOf": [{"type": "integer"}, {"type": "null"}]})
        # Every route there is answers; none is undescribed.
        ids = set()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                ids.add(operation["operationId"])
                status, _, _ = self.server.request(
                    method.upper(), path.replace("{id}", "x"), "{}" if method == "post" else None,
                    {"Authorization": "Bearer secret"})
                self.assertNotEqual(status, 405, path)
        self.assertEqual(len(ids), sum(map(len, document["paths"].values())))

    def test_docs(self):
        for path in ("/docs", "/redoc"):
            status, headers, text = self.server.request("GET", path)
            self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
            self.assertIn('fetch("openapi.json")', text)
            self.assertNotIn("//", text.replace("</", ""))  # nothing from elsewhere
        with Server(openapi=False) as server:
            self.assertEqual([server.request("GET", path)[0]
                              for path in ("/docs", "/redoc", "/openapi.json")], [404] * 3)

    def test_invocations(self):
        self.assertEqual(self.server.request("POST", "/invocations", {"prompt": "a"})[0], 401)
        key = {"Authorization": "Bearer secret"}
        for body, kind in (({"messages": [{"role": "user", "content": "script:hello;"}]},
                            "chat.completion"),
                           ({"prompt": "script:plain;<fim_middle>"}, "text_completion")):
            status, _, text = self.server.request("POST", "/invocations", body, key)
            self.assertEqual((status, json.loads(text)["object"]), (200, kind))

    def test_metrics(self):
        before = self.server.metric("vllm:request_success_total")
        self.server.request("POST", CHAT, {"messages": [{"role": "user", "content": "script:hello;"}]},
                            {"Authorization": "Bearer secret"})
        _, headers, text = self.server.request("GET", "/metrics")
        self.assertTrue(headers["content-type"].startswith("text/plain; version=0.0.4"))
        families = {f.name: f for f in text_string_to_metric_families(text)}
        lengths = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
        token_time = [.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20,
                      40, 80]
        request_time = [.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480,
                        960, 1920, 7680]
        buckets = {
            **{f"request_{name}": lengths for name in (
                "prompt_tokens", "generation_tokens", "max_num_generation_tokens",
                "params_max_tokens", "prefill_kv_computed_tokens")},
            "request_params_n": [1, 2, 5, 10, 20],
            "iteration_tokens_total": [1] + [2**i for i in range(3, 15)],
            "time_to_first_token_seconds": [
                .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
                80, 160, 640, 2560],
            "inter_token_latency_seconds": token_time,
            "request_time_per_output_token_seconds": token_time,
            **{name: request_time for name in (
                "e2e_request_latency_seconds", "request_queue_time_seconds",
                "request_inference_time_seconds", "request_prefill_time_seconds",
                "request_decode_time_seconds")}}
        for name, bounds in buckets.items():
            family = families["vllm:" + name]
            self.assertEqual(family.type, "histogram", name)
            les = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
            self.assertEqual([float(x) for x in les], [*bounds, float("inf")], name)
            labels = {k: v for k, v in family.samples[0].labels.items() if k != "le"}
            self.assertEqual(labels, {"model_name": "scripted", "engine": "0"}, name)
            self.assertGreater([s.value for s in family.samples if s.name.endswith("_count")][0], 0,
                               name)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
                     "engine_sleep_state", "cache_config_info"):
            self.assertEqual(families["vllm:" + name].type, "gauge", name)
        waiting = families["vllm:num_requests_waiting_by_reason"]
        self.assertEqual({s.labels["reason"] for s in waiting.samples}, {"capacity", "deferred"})
        for name in ("virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds", "open_fds",
                     "max_fds"):
            self.assertEqual(families["process_" + name].type, "gauge", name)
        self.assertEqual(families["process_cpu_seconds"].type, "counter")
        sleep = {s.labels["sleep_state"]: s.value for s in families["vllm:engine_sleep_state"].samples}
        self.assertEqual(sleep, {"awake": 1, "weights_offloaded": 0, "discard_all": 0})
        config = families["vllm:cache_config_info"].samples[0]
        self.assertEqual((config.value, config.labels["block_size"]), (1, "16"))
        for name in ("prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
                     "external_prefix_cache_hits", "mm_cache_queries", "mm_cache_hits",
                     "num_preemptions", "prompt_tokens", "prompt_tokens_by_source",
                     "prompt_tokens_cached", "prompt_tokens_recomputed", "generation_tokens",
                     "request_success", "corrupted_requests"):
            family = families["vllm:" + name]
            self.assertEqual(family.type, "counter", name)
            self.assertTrue(all(s.name == f"vllm:{name}_total" for s in family.samples), name)
        self.assertEqual(
            {s.labels["source"] for s in families["vllm:prompt_tokens_by_source"].samples},
            {"local_compute", "local_cache_hit", "external_kv_transfer"})
        reasons = {s.labels["finished_reason"]: s.value
                   for s in families["vllm:request_success"].samples}
        self.assertEqual(set(reasons), {"stop", "length", "abort", "error"})
        self.assertEqual(sum(reasons.values()), before + 1)
        self.assertGreater(reasons["stop"], 0)
        handlers = {s.labels["handler"] for s in families["http_requests"].samples}
        self.assertIn(CHAT, handlers)
        self.assertTrue(handlers.isdisjoint({"/metrics", "/health", "/load", "/ping", "/version"}))
        for name in ("http_request_duration_seconds", "http_request_size_bytes",
                     "http_response_size_bytes"):
            self.assertEqual(families[name].type, "histogram", name)


class Log(unittest.TestCase):
    """What is said of requests, on standard error."""

    def said(self, ask, **config):
        with tempfile.TemporaryFile("w+") as log:
            with Server(log=log, **config) as server:
                ask(server)
            log.seek(0)
            return log.read()

    def test_unknown_fields_are_named_once(self):
        def ask(server):
            for _ in range(3):
                self.assertEqual(server.complete("plain", max_tokens=1, foo=1, guided_json={})[0], 200)
            server.complete("plain", max_tokens=1, bar="\n(scripted) INFO forged")
            server.complete("plain", max_tokens=1, **{"x\n(scripted) INFO forged": 1})
        text = self.said(ask)
        line = "The following fields were present in the request but ignored: "
        self.assertEqual(text.count(line + "{'foo', 'guided_json'}"), 1, text)
        self.assertEqual(text.count(line), 3)
        self.assertNotIn("\n(scripted) INFO forged", text)

    def test_fields_that_would_change_the_answer_elsewhere_are_named(self):
        def ask(server):
            for field, value in (("best_of", 3), ("vllm_xargs", {}), ("return_prompt_text", False),
                                 ("repetition_detection", {"max_pattern_size": 4})):
                self.assertEqual(server.complete("plain", max_tokens=1, **{field: value})[0], 200)
            self.assertEqual(server.chat("hello", functions=[{"name": "f"}], user="u", tools=[
                {"type": "custom", "custom": {"name": "g"}}])[0], 200)
        line = "The following fields were present in the request but ignored: "
        self.assertEqual(
            [said.split(line)[1] for said in self.said(ask).splitlines() if line in said],
            ["{'best_of'}", "{'repetition_detection'}", "{'functions', 'tool:custom'}"])

    def test_priority_is_mentioned_where_it_is_ignored(self):
        def ask(server):
            for priority in (0, 5, 5):
                self.assertEqual(server.complete("plain", max_tokens=1, priority=priority)[0], 200)
        self.assertEqual(self.said(ask).count("priority is ignored"), 1)
        self.assertNotIn("priority is ignored", self.said(ask, priority=True))

    def test_access_log(self):
        def ask(server):
            for path in ("/version", "/health", "/metrics", "/v1/models"):
                server.request("GET", path)
            server.complete("plain", max_tokens=1, user="canary")
        text = self.said(ask, access_log=True, log_level="info",
                         unlogged_paths=["/metrics", "/health"])
        self.assertRegex(text, r'127\.0\.0\.1:\d+ - "GET /version" 200 \d+\.\d ms')
        self.assertRegex(text, r'"POST /v1/completions" 200')
        for word in ("/metrics", "/health", "canary", "script:plain"):
            self.assertNotIn(word, text)


if __name__ == "__main__":
    main()
