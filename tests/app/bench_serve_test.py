"""`m2 bench serve` against a server of scripted timings, and against `m2 serve`. Every number of a
result file is computed again with numpy. Arguments: BINARY SOURCE_DIR."""

import asyncio
import glob
import http.server
import json
import os
import pathlib
import random
import re
import resource
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree

import numpy

BINARY, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])


class Scripted(http.server.ThreadingHTTPServer):
    """Streams `max_tokens` chunks, one every `gap` seconds, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.gap, self.asked, self.lock = 0.002, [], threading.Lock()
        self.answer = None  # instead of a stream: (status, body)
        self.usage = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        body = b'{"data":[{"id":"first/one"},{"id":"two"}]}' if self.path == "/v1/models" else b"{}"
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((time.monotonic(), self.path, dict(self.headers), body))
        if self.server.answer:
            status, text = self.server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = "messages" in body
        count = body.get("max_completion_tokens") or body["max_tokens"]
        for i in range(count):
            time.sleep(self.server.gap)
            choice = {"delta": {"content": f"w{i} "}} if chat else {"text": f"w{i} "}
            self.chunk({"id": "x", "choices": [{"index": 0, **choice}]})
        if self.server.usage:
            self.chunk({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": count}})
        self.write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, value):
        self.write(b"data: %s\n\n" % json.dumps(value).encode())

    def write(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def bench(*flags, status=0, env=None):
    done = subprocess.run([BINARY, "bench", "serve", *map(str, flags)], capture_output=True,
                          text=True, timeout=120, env={**os.environ, **(env or {})})
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


TABLE = r"""============ Serving Benchmark Result ============
Successful requests:                     \d+ +
Failed requests:                         \d+ +
Maximum request concurrency:             \d+ +
Benchmark duration \(s\):                  \d+\.\d\d +
Total input tokens:                      \d+ +
Total generated tokens:                  \d+ +
Request throughput \(req/s\):              \d+\.\d\d +
Output token throughput \(tok/s\):         \d+\.\d\d +
Peak output token throughput \(tok/s\):    \d+\.00 +
Peak concurrent requests:                \d+\.00 +
Total Token throughput \(tok/s\):          \d+\.\d\d +
---------------Time to First Token----------------
Mean TTFT \(ms\):                          \d+\.\d\d +
Median TTFT \(ms\):                        \d+\.\d\d +
P99 TTFT \(ms\):                           \d+\.\d\d +
-----Time per Output Token \(excl. 1st token\)------
Mean TPOT \(ms\):                          \d+\.\d\d +
Median TPOT \(ms\):                        \d+\.\d\d +
P99 TPOT \(ms\):                           \d+\.\d\d +
---------------Inter-token Latency----------------
Mean ITL \(ms\):                           \d+\.\d\d +
Median ITL \(ms\):                         \d+\.\d\d +
P99 ITL \(ms\):                            \d+\.\d\d +
==================================================
"""


def recompute(result, percents, levels=None):
    """contract.md 6.6 from the detailed fields."""
    ok = [i for i, error in enumerate(result["errors"]) if not error]
    ttft = numpy.array([result["ttfts"][i] for i in ok])
    itls = [result["itls"][i] for i in ok]
    out = numpy.array([result["output_lens"][i] for i in ok])
    # A latency is the first event's time and all gaps; the client adds them in another order.
    latency = numpy.array([t + sum(gaps) for t, gaps in zip(ttft, itls)])
    start = numpy.array([result["start_times"][i] for i in ok])
    every_tpot = numpy.where(out > 1, (latency - ttft) / numpy.maximum(out - 1, 1), 0)
    duration = result["duration"]
    want = {"completed": len(ok), "failed": len(result["errors"]) - len(ok),
            "total_input_tokens": sum(result["input_lens"][i] for i in ok),
            "total_output_tokens": int(out.sum()),
            "request_throughput": len(ok) / duration,
            "output_throughput": out.sum() / duration}
    want["total_token_throughput"] = (
        (want["total_input_tokens"] + want["total_output_tokens"]) / duration)
    pools = {"ttft": ttft, "tpot": every_tpot[out > 1], "itl": numpy.concatenate(itls),
             "e2el": latency}
    for name, pool in pools.items():
        want[f"mean_{name}_ms"] = numpy.mean(pool) * 1000
        want[f"median_{name}_ms"] = numpy.median(pool) * 1000
        want[f"std_{name}_ms"] = numpy.std(pool) * 1000
        for p in percents:
            want[f"p{p}_{name}_ms"] = numpy.percentile(pool, p) * 1000
    first = start.min()
    seconds = int(numpy.ceil((start + latency).max() - first)) + 1
    events, live = numpy.zeros(seconds), numpy.zeros(seconds)
    for s, t, gaps, end in zip(start, ttft, itls, latency):
        for moment in s + t + numpy.concatenate([[0], numpy.cumsum(gaps)]):
            events[int(moment - first)] += 1
        live[int(s - first):int(s + end - first) + 1] += 1
    want["max_output_tokens_per_s"], want["max_concurrent_requests"] = events.max(), live.max()
    if levels:
        pools["tpot"] = every_tpot
        good = numpy.all([pools[k] <= ms / 1000 for k, ms in levels.items()], axis=0)
        want["request_goodput"] = good.sum() / duration
    return want


class WithModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = pathlib.Path(cls.folder.name)
        cls.model = cls.path / "model"
        subprocess.run([sys.executable, SOURCE / "tools/make_checkpoint.py", cls.model], check=True,
                       capture_output=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def setUp(self):
        self.server = Scripted()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def flags(self, *more):
        return ("--port", self.server.port, "--tokenizer", self.model, "--random-input", 12,
                "--random-output", 10, "--num-prompt", 12, "--max-concurrency", 4, *more)

    def result(self, *flags):
        name = self.path / f"{time.monotonic_ns()}.json"
        done = bench(*flags, "--save-result", "--save-detailed", "--result-filename", name)
        return json.loads(name.read_text()), done

    def assert_numbers(self, result, want):
        for key, value in want.items():
            self.assertAlmostEqual(result[key], value, delta=1e-9 * max(1, abs(value)), msg=key)


class Run(WithModel):
    def test_table_and_console(self):
        done = bench("--backend", "vllm", "--model", "some/model", *self.flags())
        lines = done.stdout.split("\n")
        self.assertTrue(lines[0].startswith("Namespace(backend='vllm', "), lines[0])
        self.assertTrue(lines[1].endswith("For the old behavior, include --temperature=0."))
        head = "\n".join(lines[2:8]) + "\n"
        self.assertEqual(head, "Skipping endpoint ready check.\n"
                               "Starting main benchmark run...\n"
                               "Traffic request rate: inf\n"
                               "Burstiness factor: 1.0 (Poisson process)\n"
                               "Maximum request concurrency: 4\n"
                               "tip: install termplotlib and gnuplot to plot the metrics\n")
        self.assertRegex("\n".join(lines[8:]), "^" + TABLE + "$")
        self.assertTrue(all(len(line) >= 50 for line in lines[8:-1]))
        self.assertIn("12/12", done.stderr)
        self.assertRegex(done.stderr, r"load generator: 120 events, \d+\.\d\d us of CPU per event")
        for _, path, headers, body in self.server.asked:
            self.assertEqual(path, "/v1/completions")
            self.assertRegex(headers["x-request-id"], r"^bench-[0-9a-f]{8}-\d+$")
            self.assertEqual(list(body), ["model", "prompt", "repetition_penalty", "max_tokens",
                                          "logprobs", "stream", "stream_options", "ignore_eos"])

    def test_the_guides_command_line(self):
        """Unchanged, but for the port and shorter texts: the model's name is that of the hub's cache."""
        hub = self.path / "hub/models--MiniMaxAI--MiniMax-M2"
        (hub / "refs").mkdir(parents=True)
        (hub / "refs/main").write_text("0" * 40)
        (hub / "snapshots").mkdir()
        (hub / "snapshots" / ("0" * 40)).symlink_to(self.model)
        line = """--backend vllm --model MiniMaxAI/MiniMax-M2 --endpoint /v1/completions --dataset-name random
                  --random-input 20 --random-output 4 --max-concurrency 10 --num-prompt 100"""
        done = bench(*line.split(), "--port", self.server.port, env={"HF_HOME": str(self.path)})
        self.assertRegex(done.stdout.partition("plot the metrics\n")[2], "^" + TABLE + "$")
        self.assertIn("Successful requests:                     100 ", done.stdout)
        self.assertIn("Maximum request concurrency:             10 ", done.stdout)
        self.assertIn("Total generated tokens:                  400 ", done.stdout)
        self.assertEqual({body["model"] for *_, body in self.server.asked}, {"MiniMaxAI/MiniMax-M2"})

    def test_every_number_again_with_numpy(self):
        result, _ = self.result(*self.flags(
            "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "25,90,99.9",
            "--goodput", "ttft:6", "tpot:4", "e2el:60"))
        self.assert_numbers(result, recompute(result, [25, 90, 99.9],
                                              {"ttft": 6, "tpot": 4, "e2el": 60}))
        self.assertEqual(result["total_output_tokens"], 120)
        self.assertEqual(result["generated_texts"][0], "".join(f"w{i} " for i in range(10)))
        # The events are the server's: one every 2 ms at least.
        self.assertGreaterEqual(min(result["ttfts"]), 0.002)
        self.assertGreaterEqual(result["median_itl_ms"], 1.9)

    def test_chat_without_usage(self):
        self.server.usage = False
        result, _ = self.result("--backend", "openai-chat", *self.flags())
        self.assertEqual(result["endpoint_type"], "openai-chat")
        _, path, _, body = self.server.asked[0]
        self.assertEqual(path, "/v1/chat/completions")
        self.assertEqual(body["messages"][0]["content"][0]["type"], "text")
        # Tokens are counted from the text: the toy tokenizer's own.
        self.assertTrue(all(n >= 10 for n in result["output_lens"]))

    def test_model_from_the_server_and_headers(self):
        result, done = self.result(*self.flags("--header", "x-a=b", "--metadata", "k=v",
                                               "--ready-check", 5, "--num-warmups", 3,
                                               "--api-key", "secret", "--label", "lab"))
        self.assertIn("Model not specified, fetching first model from server...", done.stdout)
        self.assertIn("Starting initial single prompt test run...\nInitial test run completed.\n"
                      "Warming up with 3 requests...\nWarmup run completed.\n", done.stdout)
        self.assertNotIn("secret", done.stdout)
        self.assertEqual((result["model_id"], result["k"], result["label"]),
                         ("first/one", "v", "lab"))
        self.assertEqual(len(self.server.asked), 12 + 3 + 1)
        headers = self.server.asked[0][2]
        self.assertEqual((headers["x-a"], headers["Authorization"]), ("b", "Bearer secret"))

    def test_failures_are_told_not_counted(self):
        self.server.answer = (503, b'{"error":{"message":"not now"}}')
        result, done = self.result("--model", "m", *self.flags())
        self.assertEqual((result["completed"], result["failed"]), (0, 12))
        self.assertIn("Failed requests during benchmark run detected (capping to 10):\n"
                      "Error 0: Service Unavailable", done.stdout)
        self.assertEqual(done.stdout.count("Error "), 10)
        self.server.answer = (200, b"data: [DONE]\n\n")
        result, _ = self.result("--model", "m", *self.flags())
        self.assertEqual(result["errors"][0], "Never received a valid chunk to calculate TTFT."
                                              "This response will be marked as failed!")
        done = bench("--model", "m", "--ready-check", 1, *self.flags(), status=1)
        self.assertIn("Initial test run failed", done.stderr)

    def test_arrivals_are_kept(self):
        self.server.gap = 0
        result, done = self.result("--model", "m", *self.flags("--request-rate", 40, "--seed", 3))
        numpy.random.seed(3)
        times = numpy.cumsum([numpy.random.gamma(shape=1.0, scale=1 / 40.0) for _ in range(12)])
        times *= 12 / 40 / times[-1]
        begins = numpy.array(result["start_times"])
        # A loaded machine is late now and then; the earliest of all stands for the run's start.
        late = begins - times
        self.assertLess(numpy.median(late - late.min()), 0.1)
        self.assertIn("Request rate configured (RPS):           40.00     ", done.stdout)
        self.assertEqual((result["request_rate"], result["burstiness"]), (40.0, 1.0))

    def test_ramp_up(self):
        self.server.gap = 0
        result, done = self.result("--model", "m", *self.flags(
            "--ramp-up-strategy", "linear", "--ramp-up-start-rps", 20, "--ramp-up-end-rps", 60))
        self.assertIn("Traffic ramp-up strategy: linear.\nWill increase RPS from 20 to 60 RPS over "
                      "the duration of the benchmark.\n", done.stdout)
        self.assertEqual([result[k] for k in ("ramp_up_strategy", "ramp_up_start_rps",
                                              "ramp_up_end_rps")], ["linear", 20, 60])
        rates = [e["rps"] for e in result["rps_change_events"]]
        self.assertEqual((rates[0], rates[-1]), (20, 60))

    def test_exponential_ramp_up_and_its_file(self):
        self.server.gap = 0
        folder = self.path / "ramp"
        bench("--model", "m", *self.flags("--ramp-up-strategy", "exponential", "--ramp-up-start", 20,
                                          "--ramp-up-end", 80, "--save-result", "--save-detailed",
                                          "--result-dir", folder))
        path, = folder.iterdir()
        self.assertRegex(path.name, r"^openai-ramp-up-exponential-20qps-80qps-concurrency4-m-")
        begins = json.loads(path.read_text())["start_times"]
        numpy.random.seed(0)
        rates = [20 * 4 ** (i / 11) for i in range(12)]
        times = numpy.cumsum([numpy.random.gamma(shape=1.0, scale=1 / r) for r in rates])
        late = numpy.array(begins) - times
        self.assertLess(numpy.median(late - late.min()), 0.1)

    def test_what_is_asked_of_the_server(self):
        bench("--model", "m", "--served-model-name", "n", *self.flags(
            "--temperature", 0, "--top-p", 0.9, "--top-k", 7, "--min-p", 0.1, "--frequency-pen", 0.5,
            "--presence-penalty", 0.25, "--repetition-penalty", 1.1, "--logprobs", 3,
            "--extra-body", '{"min_tokens": 2, "top_k": 9}', "--request-id-prefix", "mine-",
            "--input-len", 5, "--output-len", 3, "--disable-tqdm"))
        for _, _, headers, body in self.server.asked:
            self.assertRegex(headers["x-request-id"], r"^mine-\d+$")
            want = {"model": "n", "temperature": 0, "top_p": 0.9, "top_k": 9, "min_p": 0.1,
                    "frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.1,
                    "logprobs": 3, "min_tokens": 2, "max_tokens": 3, "ignore_eos": True}
            self.assertEqual({key: body[key] for key in want}, want)

    def test_a_plot_in_png_needs_gnuplot(self):
        path = self.path / "p.png"
        # PATH has a shell, and gnuplot only if this machine does.
        status = 0 if shutil.which("gnuplot") else 1
        done = bench("--model", "m", *self.flags("--plot", path), status=status)
        if status == 0:
            self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        else:
            self.assertIn("PNG is drawn by gnuplot, which is not installed; use a name in .svg",
                          done.stderr)
            self.assertEqual(self.server.asked, [])  # told before the run, not after it

    def test_files(self):
        target = self.path / "out"
        flags = self.flags("--model", "a/b", "--result-dir", target, "--disable-tqdm")
        bench(*flags, "--save-result", "--plot", self.path / "p.svg")
        name, = glob.glob(str(target / "*"))
        self.assertRegex(name, r"openai-infqps-concurrency4-b-\d{8}-\d{6}\.json$")
        self.assertNotIn("itls", json.loads(pathlib.Path(name).read_text()))
        xml.etree.ElementTree.parse(self.path / "p.svg")
        for _ in range(2):
            bench(*flags, "--append-result", "--result-filename", "all.json")
        objects = (target / "all.json").read_text().split("\n")
        self.assertEqual([json.loads(o)["completed"] for o in objects], [12, 12])

    @unittest.skipUnless(shutil.which("openssl"), "no openssl to make a certificate")
    def test_tls(self):
        key, certificate = self.path / "key.pem", self.path / "certificate.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key,
                        "-out", certificate, "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=DNS:localhost"], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        flags = ("--model", "m", "--base-url", f"https://localhost:{self.server.port}",
                 *self.flags("--disable-tqdm"))
        result, _ = self.result(*flags, "--insecure")
        self.assertEqual((result["completed"], result["total_output_tokens"]), (12, 120))
        result, _ = self.result(*flags)
        self.assertIn("certificate verify failed", result["errors"][0])
        name = self.path / "trusted.json"
        bench(*flags, "--save-result", "--result-filename", name,
              env={"SSL_CERT_FILE": str(certificate)})
        self.assertEqual(json.loads(name.read_text())["completed"], 12)

    def test_three_hundred_streams_at_once(self):
        self.server.gap = 0.05
        result, _ = self.result("--model", "m", "--port", self.server.port, "--tokenizer",
                                self.model, "--random-input", 4, "--random-output", 3,
                                "--num-prompt", 300, "--disable-tqdm")
        self.assertEqual((result["completed"], result["max_concurrency"]), (300, None))
        self.assertGreaterEqual(result["max_concurrent_requests"], 250)


class Crowd:
    """Streams to `size` clients at once: nobody gets a token before all of them are here."""

    TOKENS = 5
    CHUNK = b'data: {"choices":[{"index":0,"text":"w "}]}\n\n'
    LAST = (b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":5}}\n\n'
            b"data: [DONE]\n\n")

    def __init__(self, size):
        self.size, self.here, self.port = size, 0, None
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self.run, args=(ready,), daemon=True).start()
        assert ready.wait(30)

    def run(self, ready):
        asyncio.set_event_loop(self.loop)
        self.all_here = asyncio.Event()
        server = self.loop.run_until_complete(
            asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=self.size))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"POST"):  # /metrics is looked at, too
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return writer.close()
        await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
        self.here += 1
        if self.here == self.size:
            self.all_here.set()
        await self.all_here.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in [self.CHUNK] * self.TOKENS + [self.LAST]:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()


class Many(WithModel):
    def test_two_thousand_streams_at_once(self):
        streams = 2000
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        crowd = Crowd(streams)
        self.addCleanup(crowd.loop.call_soon_threadsafe, crowd.loop.stop)
        name = self.path / "many.json"
        # It begins with fewer descriptors than streams, as in most shells.
        done = subprocess.run(
            [BINARY, "bench", "serve", "--model", "m", "--port", str(crowd.port), "--tokenizer",
             str(self.model), "--random-input", "4", "--random-output", "5", "--num-prompt",
             str(streams), "--max-concurrency", str(streams), "--disable-tqdm", "--save-result",
             "--result-filename", str(name)], capture_output=True, text=True, timeout=240,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most)))
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(name.read_text())
        self.assertEqual((result["completed"], result["failed"]), (streams, 0))
        self.assertEqual(result["total_output_tokens"], streams * crowd.TOKENS)
        self.assertIn(f"load generator: {streams * crowd.TOKENS} events, ", done.stderr)


class Datasets(WithModel):
    def prompts(self, *flags):
        self.server.gap = 0
        bench("--model", "m", "--port", self.server.port, "--tokenizer", self.model,
              "--max-concurrency", 1, "--disable-tqdm", *flags)
        return [(body["prompt"], body["max_tokens"]) for _, _, _, body in self.server.asked]

    def test_random_has_the_lengths_asked_for(self):
        result, done = self.result("--model", "m", *self.flags("--random-range-ratio", 0.5,
                                                               "--random-prefix", 3))
        rng = numpy.random.default_rng(0)
        excess = numpy.array(result["input_lens"]) - (3 + rng.integers(6, 19, size=12))
        # What cannot be made exact is told.
        told = re.search(r"there were (\d+) (more|fewer) tokens", done.stderr)
        self.assertLess(numpy.count_nonzero(excess), 4)
        self.assertEqual(abs(excess.sum()), int(told.group(1)) if told else 0)
        self.assertEqual(result["output_lens"], rng.integers(5, 16, size=12).tolist())
        self.assertIn("Sampling input_len from [6, 18] and output_len from [5, 15]", done.stderr)

    def test_sharegpt(self):
        rows = [{"conversations": [{"from": "human", "value": f"question {i} " + "x" * i},
                                   {"from": "gpt", "value": "answer " * (i % 7)}, {"value": "z"}]}
                for i in range(40)] + [{"conversations": [{"value": "alone"}]}, {"id": 3}]
        path = self.path / "share.json"
        path.write_text(json.dumps(rows))
        got = self.prompts("--dataset-name", "sharegpt", "--dataset-path", path, "--num-prompts", 9,
                           "--sharegpt-output-len", 5)
        kept = [r["conversations"][0]["value"] for r in rows[:40]]
        random.seed(0)
        random.shuffle(kept)
        self.assertEqual(got, [(p, 5) for p in kept[:9]])

    def test_custom(self):
        path = self.path / "custom.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"row {i}", "output_tokens": i + 1}) + "\n"
                                for i in range(3)))
        flags = ("--dataset-name", "custom", "--dataset-path", path, "--skip-chat-template")
        rows = [(f"row {i}", i + 1) for i in range(3)]
        self.assertEqual(self.prompts(*flags, "--custom-output-len", -1, "--no-oversample"), rows)
        self.server.asked.clear()
        random.seed(0)
        more = [rows[i] for i in random.choices(range(3), k=4)]
        self.assertEqual(self.prompts(*flags, "--custom-output-len=-1", "--num-prompts", 7),
                         rows + more)
        path.write_text('{"prompt": 3}\n')
        done = bench("--model", "m", "--tokenizer", self.model, *flags, status=1)
        self.assertIn("line 1: needs a \"prompt\" text", done.stderr)

    def test_custom_prompts_go_through_the_chat_template(self):
        path = self.path / "rows.jsonl"
        path.write_text('{"prompt": "one"}\n')
        got = self.prompts("--dataset-name", "custom", "--dataset-path", path, "--num-prompts", 1,
                           "--chat-template",
                           "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                           "{% if add_generation_prompt %}<ai>{% endif %}")
        self.assertEqual(got, [("<user>one<ai>", 256)])

    def test_sonnet(self):
        path = self.path / "sonnet.txt"
        path.write_text("".join(f"Line {i} of the poem\n" for i in range(30)))
        got = self.prompts("--dataset-name", "sonnet", "--dataset-path", path, "--num-prompts", 5,
                           "--sonnet-input-len", 400, "--sonnet-prefix-len", 200)
        self.assertEqual(len(got), 5)
        starts = {prompt[:prompt.index("Line 1 ")] for prompt, _ in got}
        self.assertEqual(len(starts), 1)
        self.assertIn("Pick as many lines as you can from these poem lines:\n", starts.pop())
        self.assertEqual({n for _, n in got}, {150})

    def test_prefix_repetition(self):
        got = self.prompts("--dataset-name", "prefix_repetition", "--num-prompts", 12,
                           "--prefix-repetition-num-prefixes", 3, "--prefix-repetition-prefix", 40,
                           "--prefix-repetition-suffix", 8, "--prefix-repetition-output", 4)
        self.assertEqual(len(got), 12)
        groups = {}
        for prompt, _ in got:
            groups.setdefault(prompt[:20], []).append(prompt)
        self.assertEqual(sorted(len(g) for g in groups.values()), [4, 4, 4])
        self.assertEqual(len({p for p, _ in got}), 12)


class RealServer(WithModel):
    def test_against_m2_serve(self):
        server = subprocess.Popen([BINARY, "serve", self.model, "--host", "127.0.0.1", "--port", "0",
                                   "--disable-uvicorn-access-log"], stderr=subprocess.PIPE,
                                  text=True)
        try:
            log = ""
            for line in server.stderr:
                log += line
                if "Application startup complete" in line:
                    break
            port = re.search(r"http://127\.0\.0\.1:(\d+)", log).group(1)
            result, done = self.result(
                "--backend", "vllm", "--model", self.model, "--port", port, "--random-input", 20,
                "--random-output", 15, "--num-prompt", 30, "--max-concurrency", 8,
                "--percentile-metrics", "ttft,tpot,itl,e2el")
            self.assertRegex(done.stdout, "Successful requests:                     30 ")
            self.assertEqual(result["total_output_tokens"], 30 * 15)
            self.assertAlmostEqual(result["total_input_tokens"], 30 * 20, delta=20)
            self.assert_numbers(result, recompute(result, [99]))
        finally:
            server.terminate()
            server.stderr.close()
            server.wait(timeout=20)


class Offline(WithModel):
    def run_bench(self, what, *flags):
        path = self.path / f"{what}.json"
        done = subprocess.run([BINARY, "bench", what, "--model", str(self.model), "--input-len", "8",
                               "--output-len", "12", "--output-json", str(path), *flags],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(path.read_text()), done.stdout

    def test_latency(self):
        result, text = self.run_bench("latency", "--batch-size", "3", "--num-iters", "4",
                                      "--num-iters-warmup", "1")
        self.assertEqual(len(result["latencies"]), 4)
        self.assertEqual(result["avg_latency"], numpy.mean(result["latencies"]))
        for p in (10, 25, 50, 75, 90, 99):
            self.assertEqual(result["percentiles"][str(p)],
                             numpy.percentile(result["latencies"], p))
            self.assertIn(f"{p}% percentile latency: {result['percentiles'][str(p)]} seconds", text)

    def test_throughput(self):
        result, text = self.run_bench("throughput", "--num-prompts", "20")
        self.assertEqual((result["num_requests"], result["total_num_tokens"]), (20, 20 * 20))
        self.assertAlmostEqual(result["requests_per_second"], 20 / result["elapsed_time"])
        self.assertRegex(text, r"Throughput: \d+\.\d\d requests/s, \d+\.\d\d total tokens/s, "
                               r"\d+\.\d\d output tokens/s\n")
        self.assertIn("Total num output tokens:  240\n", text)

    def test_throughput_of_a_file(self):
        path = self.path / "rows.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"row number {i}", "output_tokens": 3 + i}) + "\n"
                                for i in range(6)))
        flags = ("--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "6")
        done = subprocess.run([BINARY, "bench", "throughput", "--model", str(self.model), *flags],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"Total num output tokens:  {sum(range(3, 9))}\n", done.stdout)
        tokens = int(re.search(r"Total num prompt tokens:  (\d+)\n", done.stdout)[1])
        self.assertGreaterEqual(tokens, 6 * 3)
        for wrong, text in ((flags[:2], "needs --dataset-path"), (flags[2:4], "reads no --dataset-path"),
                            (("--dataset-name", "hf"), "chose from random, sharegpt, custom")):
            done = subprocess.run([BINARY, "bench", "throughput", "--model", str(self.model), *wrong],
                                  capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn(text, done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
