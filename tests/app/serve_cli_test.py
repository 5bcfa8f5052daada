"""`m2 serve` and `m2 chat` as a person starts them: arguments BINARY SOURCE_DIR."""

import http.client
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest

BINARY, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])


sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from serve_process import Server, make_checkpoint, refused  # noqa: E402


class WithCheckpoint(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = pathlib.Path(cls.folder.name) / "model"
        make_checkpoint(cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()


class Serve(WithCheckpoint):
    def test_answers_and_ends(self):
        with Server(self.model, "--served-model-name", "small", "other") as server:
            log = "".join(server.log)
            for line in ("Model loading took ", "GPU KV cache size: ", "Maximum concurrency for ",
                         "Supported tasks: ['generate']", "Available routes are:",
                         "Route: /v1/chat/completions, Methods: POST",
                         "Started server process [", "Waiting for application startup."):
                self.assertIn(line, log)
            self.assertRegex(log, r"non-default args: \{.*\"served-model-name\":\[\"small\",\"other\"\]")
            status, models = server.request("GET", "/v1/models")
            self.assertEqual([m["id"] for m in models["data"]], ["small", "other"])
            self.assertEqual(server.complete(prompt="one two"),
                             server.complete(prompt="one two", model="other"))
            status, reply = server.request("POST", "/v1/completions",
                                           {"model": "absent", "prompt": "x"})
            self.assertEqual((status, reply["error"]["type"]), (404, "NotFoundError"))
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(timeout=10), 0)

    def test_same_bytes_with_any_threads_chunks_and_cache(self):
        prompt = "the quick brown fox " * 30
        seen = set()
        for flags in (["--threads", 1], ["--threads", 3, "--max-num-batched-tokens", 16],
                      ["--no-enable-prefix-caching", "--max-num-seqs", 1]):
            with Server(self.model, *flags) as server:
                for _ in range(2):
                    seen.add(server.complete(prompt=prompt, max_tokens=32))
                    seen.add(server.complete(prompt=prompt, max_tokens=32, temperature=1, seed=5))
        self.assertEqual(len(seen), 2, seen)

    def test_fp8_kv_cache(self):
        tokens, answers = {}, {}
        for kind in ("auto", "fp8", "fp8_e4m3"):
            with Server(self.model, "--kv-cache-dtype", kind, "--kv-cache-memory-bytes", "4M",
                        "--calculate-kv-scales", "--max-model-len", 1024) as server:
                log = "".join(server.log)
                tokens[kind] = int(re.search(r"GPU KV cache size: ([\d,]+) tokens", log).group(1)
                                   .replace(",", ""))
                for line in ("Using fp8 data type to store kv cache.",
                             "Using KV cache scaling factor 1.0 for fp8_e4m3."):
                    self.assertEqual(line in log, kind != "auto", line)
                self.assertIn("--calculate-kv-scales has no effect", log)
                self.assertIn(f'cache_dtype="{kind}"', server.request("GET", "/metrics")[1])
                answers[kind] = [server.complete(prompt="a b c " * 40, max_tokens=24)
                                 for _ in range(2)]  # computed, and found in the cache
        self.assertEqual(tokens["fp8"], 2 * tokens["auto"])
        self.assertEqual(tokens["fp8_e4m3"], tokens["fp8"])
        self.assertEqual(len({*answers["fp8"], *answers["fp8_e4m3"]}), 1, answers)

    def test_scales_of_powers_of_two(self):
        answers = []
        for flags, variable in ((["--e8m0-scales"], "0"), ([], "1"), ([], "0")):
            with Server(self.model, *flags, env={"VLLM_USE_DEEP_GEMM_E8M0": variable}) as server:
                log = "".join(server.log)
                self.assertEqual("FP8 scales are powers of two (E8M0): weights were requantised" in log,
                                 bool(flags) or variable == "1")
                self.assertNotIn("VLLM_USE_DEEP_GEMM_E8M0 has no effect", log)
                answers.append(server.complete(prompt="a b c " * 40, max_tokens=24))
        self.assertEqual(answers[0], answers[1])
        self.assertNotEqual(answers[0], answers[2])

    def test_statistics_line(self):
        for flags, lines in (([], True), (["--disable-log-stats"], False)):
            with Server(self.model, *flags, env={"VLLM_LOG_STATS_INTERVAL": "0.05"}) as server:
                server.complete(prompt="x", max_tokens=3000, ignore_eos=True)
            self.assertEqual("Avg generation throughput: " in "".join(server.log), lines)

    def test_key(self):
        with Server(self.model, env={"VLLM_API_KEY": "secret"}) as server:
            self.assertEqual(server.request("GET", "/v1/models")[0], 401)
            self.assertEqual(server.request("GET", "/v1/models", headers={
                "Authorization": "Bearer secret"})[0], 200)
            self.assertEqual(server.request("GET", "/health")[0], 200)

    def test_https(self):
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = os.path.join(folder, "c.pem"), os.path.join(folder, "k.pem")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                            "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", certificate,
                            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
                           check=True, capture_output=True)
            with Server(self.model, "--ssl-certfile", certificate, "--ssl-keyfile", key,
                        "--root-path", "/llm/", "--allowed-origins", '["https://a"]') as server:
                connection = http.client.HTTPSConnection(
                    "127.0.0.1", server.port, timeout=20,
                    context=ssl.create_default_context(cafile=certificate))
                connection.request("GET", "/llm/v1/models", headers={"Origin": "https://a"})
                reply = connection.getresponse()
                self.assertEqual(reply.status, 200)
                self.assertEqual(reply.headers["Access-Control-Allow-Origin"], "https://a")
                connection.close()
            self.assertIn(certificate, refused(self.model, "--ssl-certfile", certificate + "x")[1])
            self.assertIn("--ssl-certfile", refused(self.model, "--ssl-keyfile", key)[1])

    def test_dummy_weights_need_config_json_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(self.model / "config.json", folder)
            with Server(folder, "--load-format", "dummy") as server:
                status, reply = server.request("POST", "/v1/completions", {
                    "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True})
                self.assertEqual((status, reply["usage"]["completion_tokens"]), (200, 4))

    def test_overrides(self):
        with Server(self.model, "--hf-overrides", '{"num_hidden_layers": 1}',
                    "--override-generation-config.temperature", "0") as server:
            status, reply = server.request("POST", "/v1/completions", {"prompt": "x"})
            again = server.request("POST", "/v1/completions", {"prompt": "x"})[1]
            self.assertEqual(reply["choices"][0]["text"], again["choices"][0]["text"])

    def test_hub_name(self):
        with tempfile.TemporaryDirectory() as cache:
            entry = pathlib.Path(cache) / "hub" / "models--Some--Model"
            (entry / "refs").mkdir(parents=True)
            (entry / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
            (entry / "snapshots").mkdir()
            shutil.copytree(self.model, entry / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
            with Server("Some/Model", env={"HF_HOME": cache}) as server:
                self.assertEqual(server.request("GET", "/v1/models")[1]["data"][0]["id"],
                                 "Some/Model")
        seconds, said = refused("Some/Model")
        self.assertIn("Some/Model", said)
        self.assertLess(seconds, 2)


class Refusals(WithCheckpoint):
    """A damaged checkpoint is refused within 2 s, by name, and never served."""

    def damaged(self, damage):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        model = pathlib.Path(folder.name) / "model"
        shutil.copytree(self.model, model)
        damage(model)
        seconds, said = refused(model)
        self.assertLess(seconds, 2)
        self.assertNotIn("check failed", said)
        self.assertNotIn("Application startup complete", said)
        return said

    def shards(self, model):
        return sorted(model.glob("*.safetensors"))

    def test_cut_shard(self):
        for keep in (0, 4, 9, 3000, -1):
            def cut(model):
                shard = self.shards(model)[0]
                data = shard.read_bytes()
                shard.write_bytes(data[:keep])
            said = self.damaged(cut)
            self.assertIn("model-00000", said)

    def test_missing_shard(self):
        said = self.damaged(lambda model: self.shards(model)[1].unlink())
        self.assertIn("model-00001", said)

    def test_index_names_an_absent_tensor_s_shard(self):
        def lose(model):
            index = model / "model.safetensors.index.json"
            content = json.loads(index.read_text())
            del content["weight_map"]["model.norm.weight"]
            index.write_text(json.dumps(content))
        self.assertIn("model.norm.weight", self.damaged(lose))

    def test_other_shape(self):
        def widen(model):
            config = json.loads((model / "config.json").read_text())
            config["hidden_size"] *= 2
            (model / "config.json").write_text(json.dumps(config))
        self.assertRegex(self.damaged(widen), r"model\.\S+weight")

    def test_not_this_family(self):
        def other(model):
            (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        self.assertIn("LlamaForCausalLM", self.damaged(other))

    def test_no_tokenizer(self):
        self.assertIn("tokenizer.json",
                      self.damaged(lambda model: (model / "tokenizer.json").unlink()))

    def test_a_pipe_is_not_waited_for(self):
        def pipe(model):
            (model / "tokenizer.json").unlink()
            os.mkfifo(model / "tokenizer.json")
        self.assertIn("tokenizer.json is no file", self.damaged(pipe))

    def test_bad_template(self):
        self.assertIn("line 1", self.damaged(
            lambda model: (model / "chat_template.jinja").write_text("{% if %}")))

    def test_no_template(self):
        def lose(model):
            (model / "chat_template.jinja").unlink(missing_ok=True)
            (model / "tokenizer_config.json").write_text("{}")
        self.assertRegex(self.damaged(lose), "tokenizer_config.json has no chat_template, and there "
                                             "is no chat_template.jinja beside it; .*--chat-template")


class Flags(WithCheckpoint):
    def test_refused_by_name(self):
        for flags, word in ((["--frobnicate"], "--frobnicate"),
                            (["--tensor-parallel-size", "3"], "tensor parallel size (3)"),
                            (["--reasoning-parser", "x"], "minimax_m2_append_think"),
                            (["--max-model-len", "10M"], "max-model-len"),
                            (["--num-gpu-blocks-override", "1"], "max seq len"),
                            (["--num-gpu-blocks-override", "134217728"],
                             "--num-gpu-blocks-override must be from 1 to 134217727"),
                            (["--gpu-memory-utilization", "7"], "gpu-memory-utilization"),
                            (["--kv-cache-dtype", "fp8_e5m2"], "chose from { auto,bfloat16,fp8,fp8_e4m3 }"),
                            (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
                            (["--enable-log-outputs"], "Error: --enable-log-outputs requires "
                             "--enable-log-requests"),
                            (["--tool-call-parser", "x"], "invalid tool call parser: x (chose from {"),
                            (["--reasoning-parser", "x"], "invalid reasoning parser: x (chose from {"),
                            (["--ssl-cert-reqs", "3"], "--ssl-cert-reqs must be from 0 to 2"),
                            (["--api-key", ""], "--api-key: a value is empty"),
                            (["--served-model-name", ""], "--served-model-name: a value is empty"),
                            (["--kv-cache-memory-bytes", "1T"], "asked for, 1024.00 GiB, does not fit"),
                            (["--compilation-config", '{"cudagraph_mode": "PIECEWSE"}'],
                             '"PIECEWSE" is none of NONE, PIECEWISE, FULL'),
                            (["-O7"], "--optimization-level must be from 0 to 3"),
                            (["--uvicorn-log-level", "loud"],
                             "--uvicorn-log-level loud: it is none of debug, info, warning, error"),
                            (["--tokenizer", "Some/Tokenizer"],
                             "--tokenizer: model Some/Tokenizer (revision main) was not found"),
                            (["--load-format", "gguf"], "chose from { auto,safetensors,"),
                            (["--config", "/"], "--config /: ")):
            said = refused(self.model, *flags)[1]
            self.assertIn(word, said, flags)
            self.assertNotIn("check failed", said)

    def test_no_model_at_all_is_not_the_small_one(self):
        """An unset variable of a shell must not make it serve another model."""
        self.assertIn("an argument is empty", refused("")[1])
        self.assertIn("--model: a value is empty", subprocess.run(
            [BINARY, "serve", "--model", "", "--port", "0"], capture_output=True, text=True,
            timeout=30).stderr)

    def test_the_small_model_by_its_name(self):
        with Server("m2-micro") as server:
            self.assertEqual(server.request("GET", "/v1/models/m2-micro")[1]["id"], "m2-micro")
            done = subprocess.run([BINARY, "bench", "serve", "--port", str(server.port),
                                   "--random-input", "8", "--random-output", "2", "--num-prompts",
                                   "3"], capture_output=True, text=True, timeout=60)
        self.assertRegex(done.stdout, r"Successful requests: +3 ", done.stderr)

    def test_ipv6(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            self.skipTest("no IPv6 here")
        server = subprocess.Popen([BINARY, "serve", self.model, "--host", "::1", "--port", "0"],
                                  stderr=subprocess.PIPE, text=True)
        for line in server.stderr:
            if found := re.search(r"(http://\S+)$", line):
                break
        self.assertRegex(found.group(1), r"^http://\[::1\]:\d+$")
        server.send_signal(signal.SIGTERM)
        server.stderr.read()
        server.stderr.close()
        self.assertEqual(server.wait(30), 0)

    def test_port_in_use(self):
        with Server(self.model) as server:
            done = subprocess.run([BINARY, "serve", self.model, "--host", "127.0.0.1", "--port",
                                   str(server.port)], capture_output=True, text=True, timeout=30)
            self.assertEqual(done.returncode, 1)
            self.assertIn(str(server.port), done.stderr)

    def test_help(self):
        text = subprocess.run([BINARY, "serve", "--help"], capture_output=True, text=True).stdout
        self.assertIn("--tensor-parallel-size, -tp", text)
        self.assertIn("usage: m2 serve [MODEL]", text)
        for words in ([], ["--help"]):
            done = subprocess.run([BINARY, *words], capture_output=True, text=True)
            self.assertIn("m2 serve", done.stdout)
        self.assertEqual(subprocess.run([BINARY, "dance"], capture_output=True).returncode, 1)


class Chat(WithCheckpoint):
    def chat(self, where, lines, *flags):
        done = subprocess.run([BINARY, "chat", str(where), "--temperature", "0", "--max-tokens", "8",
                               *flags], input=lines, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_with_a_server_and_with_a_model(self):
        with Server(self.model) as server:
            remote = self.chat(f"http://127.0.0.1:{server.port}", "hello\n")
            self.assertTrue(remote.strip())
            twice = self.chat(f"http://127.0.0.1:{server.port}/v1", "hello\n/clear\nhello\n")
            self.assertEqual(twice, remote * 2)
        self.assertEqual(self.chat(self.model, "hello\n/quit\n"), remote)

    def test_ctrl_c_ends_the_answer_then_the_program(self):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(BINARY, [BINARY, "chat", str(self.model), "--temperature", "0"])
        shown = ""

        def until(pattern):
            nonlocal shown
            deadline = time.monotonic() + 30
            while not (found := re.search(pattern, shown)):
                self.assertLess(time.monotonic(), deadline, shown)
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 65536).decode(errors="replace")
            shown = shown[found.end():]

        until("> $")
        os.write(terminal, b"hello\n")
        until(r"hello\r\n[\s\S]{200}")  # of an answer that goes on for the whole context
        began = time.monotonic()
        os.write(terminal, b"\x03")
        until(r"\n> $")
        self.assertLess(time.monotonic() - began, 2)
        os.write(terminal, b"\x03")
        deadline = time.monotonic() + 5
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        os.close(terminal)
        self.assertEqual(os.WTERMSIG(ended[1]), signal.SIGINT)

    def test_no_server(self):
        done = subprocess.run([BINARY, "chat", "http://127.0.0.1:1"], input="", text=True,
                              capture_output=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("127.0.0.1:1", done.stderr)


class Size(unittest.TestCase):
    """Ready within 2 s, and no more memory than weights, KV and 300 MB, at 200 MB of weights."""

    def test_start_and_memory(self):
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(folder, "--hidden", "1024", "--intermediate", "512", "--experts", "40",
                            "--top-k", "4", "--layers", "3", "--heads", "16", "--kv-heads", "4",
                            "--head-dim", "64", "--rotary-dim", "32")
            weights = sum(p.stat().st_size for p in pathlib.Path(folder).glob("*.safetensors"))
            self.assertGreater(weights, 180e6)
            factor = float(os.environ.get("M2_TIME_FACTOR", "1"))  # above 1 under a sanitizer
            with Server(folder, "--kv-cache-memory-bytes", "256M") as server:
                self.assertLess(server.ready_seconds, 2.0 * factor)
                server.complete(prompt="a b c " * 200, max_tokens=64)
                status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
                resident = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024
                print(f"{weights / 1e6:.0f} MB of weights: ready in {server.ready_seconds:.2f} s, "
                      f"RSS {resident / 1e6:.0f} MB", file=sys.stderr)
                if factor == 1:  # sanitizers keep memory of their own
                    self.assertLess(resident, weights + 256 * 2**20 + 300e6)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
