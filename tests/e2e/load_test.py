"""Many clients, clients that leave, overload, start-up and shutdown."""

import http.client
import json
import re
import signal
import socket
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from random import Random

from scripted import SCRIPTS, TIME_FACTOR, Server, ServerCase, main


def wait_until(condition, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def open_stream(server, script, **fields):
    """A connection whose stream has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"prompt": f"script:{script};<fim_middle>", "max_tokens": 1000, "stream": True, **fields}
    connection.request("POST", "/v1/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    # The connection forgets its socket when the reply ends it.
    connection.held = connection.sock
    return connection, connection.getresponse()


class Load(ServerCase):
    CONFIG = {"threads": 2}

    def idle(self):
        return (self.server.metric("vllm:num_requests_running") == 0
                and self.server.metric("vllm:num_requests_waiting") == 0
                and json.loads(self.server.request("GET", "/load")[2])["server_load"] == 0)

    def test_256_streams_at_once(self):
        results = []

        def run():
            chunks = self.server.stream("/v1/chat/completions", {
                "messages": [{"role": "user", "content": "script:hello;"}]})
            results.append("".join(
                c["choices"][0]["delta"].get("content") or "" for c in chunks[:-1]))

        threads = [threading.Thread(target=run) for _ in range(256)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, ["Hello, world! 你好 🎉"] * 256)
        self.assertTrue(wait_until(self.idle))

    def test_a_steps_tokens_leave_in_one_piece(self):
        """Four choices of one request: what a step gives them is one write, one HTTP chunk."""
        body = json.dumps({"prompt": "script:hello;<fim_middle>", "n": 4, "max_tokens": 30,
                           "stream": True}).encode()
        with self.server.connect() as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                               b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                               % (len(body), body))
            with connection.makefile("rb") as reply:
                while reply.readline() not in (b"\r\n", b""):
                    pass
                pieces = []
                while size := int(reply.readline(), 16):
                    pieces.append(reply.read(size))
                    reply.readline()
        counts = [piece.count(b'"choices":[{') for piece in pieces]
        tokens = sum(counts) // 4
        self.assertEqual(sum(counts), 4 * tokens)
        # Choices may begin and end in different steps; between, every piece has a token of each, or,
        # where the machine is busy, the tokens of several steps.
        self.assertGreaterEqual(tokens, 8)
        self.assertLessEqual(sum(count % 4 != 0 for count in counts), 6)
        self.assertLessEqual(len(pieces), tokens + 6)

    def test_leaving_frees_everything(self):
        for stream in (True, False):
            connections = []
            for _ in range(8):
                connection = self.server.connect()
                body = json.dumps({"prompt": "script:long;<fim_middle>", "max_tokens": 8000,
                                   "stream": stream}).encode()
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json"
                    b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                connections.append(connection)
            self.assertTrue(wait_until(
                lambda: self.server.metric("vllm:num_requests_running") == 8))
            for i, connection in enumerate(connections):
                if i % 2:  # RST instead of FIN
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                          b"\x01\x00\x00\x00\x00\x00\x00\x00")
                connection.close()
            self.assertTrue(wait_until(self.idle, 3))
            self.assertEqual(self.server.metric("vllm:kv_cache_usage_perc"), 0)

    def test_slow_stream_does_not_hold_up_another_connection(self):
        connection, reply = open_stream(self.server, "long")
        reply.read(100)
        status, _ = self.server.post("/tokenize", {"prompt": "x " * 400_000})
        self.assertEqual(status, 200)
        connection.held.close()
        connection.close()
        self.assertTrue(wait_until(self.idle))


class IoThreads(unittest.TestCase):
    """A step's events wake as many io threads as its streams are worth."""

    TICKS = {"ticks": {"text": "tick tock " * 100, "delay_ms": 4}}

    def wakes(self, **config):
        """How often each io thread went to sleep while eight streams ran, the most first."""
        with Server(scripts=self.TICKS, **config) as server:
            streams = [open_stream(server, "ticks", max_tokens=150) for _ in range(8)]
            before = server.naps("m2-io")
            for connection, reply in streams:
                reply.read()
                connection.close()
            after = server.naps("m2-io")
        return sorted((after[thread] - before[thread] for thread in after), reverse=True)

    def test_few_streams_are_one_threads(self):
        busy, idle = self.wakes(few_connections=8)
        self.assertGreater(busy, 100)
        self.assertLess(idle, busy / 3)  # its clock's ticks

    def test_more_are_shared(self):
        first, second = self.wakes(few_connections=4)
        self.assertGreater(second, first / 3)
        self.assertGreater(second, 100)


class Storm(ServerCase):
    """Responses made, followed, cancelled, deleted and continued by many clients at once."""

    TICKS = {"ticks": {"text": "I tick.\n</think>\n\n" + "tick tock " * 20, "delay_ms": 5}}
    CONFIG = {"scripts": {**SCRIPTS, **TICKS}, "store_responses": True, "max_responses": 40,
              "max_event_bytes": 200_000, "log_level": "critical"}
    SECONDS = 3

    def act(self, random, ids, ends):
        path = "/v1/responses"
        if random.random() < 0.3 or not ids:
            body = {"input": f"script:{random.choice(['ticks', 'hello', 'nan', 'slow'])};",
                    "background": True, "stream": random.random() < 0.3, "max_output_tokens": 60}
            status, _, text = self.server.request("POST", path, body)
            ids.extend(re.findall(r'"id":"(resp_[0-9a-f]{32})"', text)[:1])
            return status
        one = f"{path}/{random.choice(ids[-20:])}"
        deed = random.randrange(6)
        if deed == 0:
            return self.server.request("POST", one + "/cancel", "{}")[0]
        if deed == 1:
            return self.server.request("DELETE", one)[0]
        if deed == 2:
            return self.server.request("POST", path, {
                "input": "script:hello;", "previous_response_id": one.rsplit("/")[-1],
                "max_output_tokens": 3})[0]
        if deed == 3:  # follows, and leaves at once
            with self.server.connect() as connection:
                connection.sendall(f"GET {one}?stream=true HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                time.sleep(random.random() / 20)
            return 200
        if deed == 4:
            return self.server.request("GET", one)[0]
        status, _, text = self.server.request("GET", f"{one}?stream=true&starting_after=2")
        if status == 200 and text:
            ends.append(re.findall(r'"type":"([a-z_.]+)"', text.split("\n\n")[-2])[:1])
        return status

    def test_storm(self):
        ids, ends, statuses = [], [], []
        until = time.time() + self.SECONDS

        def goes_on():  # longer where the machine is slow, so that enough happens
            return time.time() < until or (statuses.count(200) <= 50 and time.time() < until + 60)

        def client(seed):
            random = Random(seed)
            while goes_on():
                statuses.append(self.act(random, ids, ends))

        with ThreadPoolExecutor(12) as clients:
            for done in [clients.submit(client, seed) for seed in range(12)]:
                done.result()
        self.assertLessEqual(set(statuses), {200, 400, 404})
        self.assertGreater(statuses.count(200), 50)
        known = {*(f"response.{end}" for end in ("completed", "incomplete", "failed", "cancelled")),
                 "server_error"}
        self.assertLessEqual({end[0] for end in ends if end}, known)
        for name in set(ids):
            self.server.request("DELETE", f"/v1/responses/{name}")
        for _ in range(100):
            if self.server.metric("vllm:num_requests_running") == 0:
                break
            time.sleep(0.05)
        self.assertEqual(self.server.metric("vllm:num_requests_running"), 0)
        self.assertEqual(self.server.metric("vllm:kv_cache_usage_perc"), 0)
        self.assertEqual(json.loads(self.server.request("GET", "/load")[2]), {"server_load": 0})


class Overload(ServerCase):
    CONFIG = {"max_num_seqs": 1, "max_queued_requests": 2}

    def test_full_queue_gives_429(self):
        held = [open_stream(self.server, "slow")]
        self.assertTrue(wait_until(lambda: self.server.metric("vllm:num_requests_running") == 1))
        held += [open_stream(self.server, "slow") for _ in range(2)]
        began = time.time()
        status, headers, text = self.server.request(
            "POST", "/v1/completions", {"prompt": "script:slow;<fim_middle>", "stream": True})
        self.assertLess(time.time() - began, 1)
        self.assertEqual(status, 429, text)
        self.assertGreaterEqual(int(headers["retry-after"]), 1)
        self.assertEqual(json.loads(text)["error"]["type"], "rate_limit_error")
        for connection, _ in held:
            connection.held.close()
            connection.close()

    def test_a_full_server_refuses_what_its_workers_would_do_alone(self):
        chat = {"messages": [{"role": "user", "content": "a"}]}
        paths = {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]},
                 "/v1/chat/completions/render": chat, "/v1/completions/render": {"prompt": "a"},
                 "/v1/messages/count_tokens": chat}
        with Server(max_requests=0) as server:
            for path, body in paths.items():
                with self.subTest(path):
                    status, headers, text = server.request("POST", path, body)
                    self.assertEqual(status, 429, text)
                    self.assertGreaterEqual(int(headers["retry-after"]), 1)
                    self.assertEqual(json.loads(text)["error"]["type"], "rate_limit_error")
            self.assertEqual(server.request("GET", "/v1/models")[0], 200)


class Wedge(unittest.TestCase):
    def test_a_step_that_does_not_end_shows_on_the_probes(self):
        scripts = {"stuck": {"text": "a", "delay_ms": 5000}}
        # An idle engine ticks once a second: deadlines are longer than that.
        with Server(scripts=scripts, engine_deadline_seconds=2,
                    live_deadline_seconds=3.5) as server:
            probe = lambda path: server.request("GET", path)[0]
            self.assertEqual([probe("/readyz"), probe("/health"), probe("/livez")], [200] * 3)
            worker = threading.Thread(target=server.complete, args=("stuck",),
                                      kwargs={"max_tokens": 1})
            worker.start()
            self.assertTrue(wait_until(lambda: probe("/readyz") == 503, 3))
            self.assertEqual([probe("/health"), probe("/livez")], [503, 200])
            self.assertTrue(wait_until(lambda: probe("/livez") == 503, 2.5))
            worker.join()
            self.assertTrue(wait_until(lambda: probe("/livez") == probe("/readyz") == 200, 2))


class Phases(unittest.TestCase):
    def test_503_with_progress_while_loading(self):
        with Server(wait_ready=False, load_ms=800) as server:
            status, headers, text = server.request("GET", "/health")
            self.assertEqual(status, 503)
            self.assertIn("retry-after", headers)
            self.assertIn("the model is not ready", json.loads(text)["error"]["message"])
            self.assertEqual(server.complete("plain")[0], 503)
            self.assertEqual(server.request("GET", "/livez")[0], 200)
            server.wait_ready()
            self.assertEqual(server.request("GET", "/health")[0], 200)

    def test_sigterm_drains(self):
        with Server(drain_seconds=20) as server:
            streams = [open_stream(server, "slow", max_tokens=40) for _ in range(10)]
            server.process.send_signal(signal.SIGTERM)
            self.assertTrue(wait_until(lambda: server.request("GET", "/readyz")[0] == 503, 1))
            status, headers, _ = server.request(
                "POST", "/v1/completions", {"prompt": "script:plain;<fim_middle>"})
            self.assertEqual((status, headers["connection"]), (503, "close"))
            self.assertIn("retry-after", headers)
            for connection, reply in streams:
                text = reply.read().decode()
                self.assertIn('"finish_reason":"length"', text)
                self.assertTrue(text.endswith("data: [DONE]\n\n"))
                connection.close()
            began = time.time()
            self.assertEqual(server.process.wait(5), 0)
            self.assertLess(time.time() - began, 2)

    def test_drain_ends_streams_with_an_error_when_time_is_up(self):
        with Server(drain_seconds=0.5) as server:
            streams = [open_stream(server, "slow") for _ in range(10)]
            began = time.time()
            server.process.send_signal(signal.SIGTERM)
            for connection, reply in streams:
                text = reply.read().decode()
                self.assertIn('data: {"error":', text)
                self.assertTrue(text.endswith("data: [DONE]\n\n"))
                connection.close()
            self.assertEqual(server.process.wait(5), 0)
            self.assertLess(time.time() - began, 2.5)

    def test_second_signal_waits_no_longer(self):
        with Server(drain_seconds=30) as server:
            connection, reply = open_stream(server, "slow")
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            began = time.time()
            server.process.send_signal(signal.SIGTERM)
            text = reply.read().decode()
            self.assertIn('data: {"error":', text)
            self.assertTrue(text.endswith("data: [DONE]\n\n"))
            connection.close()
            self.assertEqual(server.process.wait(3), 0)
            self.assertLess(time.time() - began, 1.5 * TIME_FACTOR)


if __name__ == "__main__":
    main()
