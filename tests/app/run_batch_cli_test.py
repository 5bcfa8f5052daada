"""`m2 run-batch` on files in OpenAI's batch format: arguments BINARY SOURCE_DIR."""

import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BINARY, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])


def request(name, **body):
    chat = "messages" in body
    return json.dumps({"custom_id": name, "method": "POST", "body": body,
                       "url": "/v1/chat/completions" if chat else "/v1/completions"})


class Stub(http.server.BaseHTTPRequestHandler):
    """Counts what it is asked; overloaded at first, and gone after `last` answers."""

    asked, refusals, last = [], 0, 10**9

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        if cls.refusals > 0:
            cls.refusals -= 1
            self.send_response(429)
            self.end_headers()
            return
        if len(cls.asked) >= cls.last:
            self.connection.close()
            return
        cls.asked.append((body["prompt"], self.headers.get("Authorization")))
        text = json.dumps({"echo": body["prompt"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class RunBatch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.input, self.output = self.folder / "in.jsonl", self.folder / "out.jsonl"

    def run_batch(self, *words, status=0):
        done = subprocess.run([BINARY, "run-batch", "-i", self.input, "-o", self.output, *words],
                              capture_output=True, text=True, timeout=120,
                              env={**os.environ, "OPENAI_API_KEY": "k"})
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stderr

    def answers(self):
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        for line in lines:
            self.assertEqual(list(line), ["id", "custom_id", "response", "error"])
        return {line["custom_id"]: line for line in lines}

    def stub(self, refusals=0, last=10**9):
        kind = type("AStub", (Stub,), {"asked": [], "refusals": refusals, "last": last})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return kind, f"http://127.0.0.1:{server.server_port}"

    def test_with_a_model(self):
        subprocess.run([sys.executable, SOURCE / "tools/make_checkpoint.py", self.folder / "model"],
                       check=True, capture_output=True)
        self.input.write_text("\n".join([
            request("chat", messages=[{"role": "user", "content": "hi"}], max_tokens=4),
            request("text", prompt="one two", max_tokens=3, temperature=0, ignore_eos=True), "",
            request("refused", prompt="x", n=0), "{", '{"custom_id": "bare"}',
            request("streams", prompt="x", stream=True),
            '{"custom_id":"lost","method":"POST","url":"/v1/nothing","body":{}}']) + "\n")
        said = self.run_batch(str(self.folder / "model"))
        self.assertIn("7 requests: 2 answered, 5 failed, 0 were there", said)
        answers = self.answers()
        self.assertEqual(set(answers), {"chat", "text", "refused", None, "bare", "streams", "lost"})
        text = answers["text"]["response"]
        self.assertEqual((text["status_code"], text["body"]["usage"]["completion_tokens"]), (200, 3))
        self.assertIsNone(answers["text"]["error"])
        self.assertEqual(answers["chat"]["response"]["body"]["object"], "chat.completion")
        self.assertEqual(answers["refused"]["response"]["status_code"], 400)
        self.assertEqual(answers["refused"]["error"],
                         {"code": "400", "message": "n must be at least 1, got 0."})
        self.assertEqual(answers["lost"]["response"]["status_code"], 404)
        for name in (None, "bare", "streams"):
            self.assertIsNone(answers[name]["response"])
            self.assertEqual(answers[name]["error"]["code"], "invalid_request")

    def test_ctrl_c_ends_it_and_the_next_run_goes_on(self):
        subprocess.run([sys.executable, SOURCE / "tools/make_checkpoint.py", self.folder / "model"],
                       check=True, capture_output=True)
        self.input.write_text("".join(
            request(f"r{i}", prompt="a", max_tokens=1 if i < 2 else 500, ignore_eos=True) + "\n"
            for i in range(40)))
        run = subprocess.Popen([BINARY, "run-batch", self.folder / "model", "-i", self.input, "-o",
                                self.output, "--concurrency", "2"], stderr=subprocess.DEVNULL)
        while not self.output.exists() or self.output.read_text().count("\n") < 2:
            self.assertIsNone(run.poll())
            time.sleep(0.05)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(30), -signal.SIGINT)
        self.assertLess(time.monotonic() - began, 2)
        self.assertLess(self.output.read_text().count("\n"), 40)
        said = self.run_batch(self.folder / "model")
        self.assertRegex(said, r"40 requests: \d+ answered, 0 failed, [1-9]\d* were there")
        self.assertEqual(len(self.answers()), 40)

    def test_overload_is_waited_out(self):
        kind, url = self.stub(refusals=3)
        self.input.write_text("".join(request(f"r{i}", prompt=f"p{i}") + "\n" for i in range(50)))
        self.run_batch("--url", url, "--concurrency", "8")
        self.assertEqual(len(self.answers()), 50)
        self.assertEqual(sorted(p for p, _ in kind.asked), sorted(f"p{i}" for i in range(50)))
        self.assertEqual({key for _, key in kind.asked}, {"Bearer k"})

    def test_resume(self):
        self.input.write_text("".join(request(f"r{i}", prompt=f"p{i}") + "\n" for i in range(40)))
        kind, url = self.stub(last=15)
        said = self.run_batch("--url", url, "--concurrency", "4", status=1)
        self.assertIn("run again for the rest", said)
        done = self.answers()
        self.assertEqual(len(done), 15)
        with open(self.output, "a") as file:  # as if a write had been cut
            file.write('{"id":"x","custom_id":"r39","resp')
        kind, url = self.stub()
        said = self.run_batch("--url", url)
        self.assertIn("40 requests: 25 answered, 0 failed, 15 were there", said)
        self.assertEqual(len(kind.asked), 25)
        self.assertEqual(self.answers().keys(), {f"r{i}" for i in range(40)})
        kind, url = self.stub()
        self.run_batch("--url", url)
        self.assertEqual(kind.asked, [])
        self.run_batch("--url", url, "--no-resume")
        self.assertEqual(len(kind.asked), 40)

    def test_mistakes(self):
        self.assertIn("cannot read", self.run_batch("--url", "http://127.0.0.1:1", status=1))
        self.input.write_text(request("a", prompt="x") + "\n" + request("a", prompt="y") + "\n")
        self.assertIn("line 2: the custom_id a", self.run_batch("--url", "http://x", status=1))
        self.input.write_text(request("a", prompt="x") + "\n")
        self.output.write_text("precious\n")
        self.assertIn("--no-resume", self.run_batch("--url", "http://x", status=1))
        self.assertEqual(self.output.read_text(), "precious\n")
        self.input.unlink()
        self.input.mkdir()
        self.assertIn("it is no file", self.run_batch("--url", "http://x", status=1))
        done = subprocess.run([BINARY, "run-batch"], capture_output=True, text=True)
        self.assertIn("-i and -o", done.stderr)
        self.assertIn("--concurrency", subprocess.run(
            [BINARY, "run-batch", "--help=batch"], capture_output=True, text=True).stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
