"""The programs that ask a server (run-batch, eval, chat), asking one that answers what no program
expects: arguments BINARY."""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

BINARY = sys.argv[1]


class Stub(http.server.BaseHTTPRequestHandler):
    status, answer = 200, None

    def reply(self):
        text = json.dumps(self.answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = reply

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply()

    def log_message(self, *_):
        pass


class OddServers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def stub(self, answer, status=200):
        kind = type("AStub", (Stub,), {"answer": answer, "status": status})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}"

    def run_m2(self, *words):
        return subprocess.run([BINARY, *map(str, words)], input="", capture_output=True, text=True,
                              timeout=120, env={**os.environ, "OPENAI_API_KEY": "k"})

    def test_errors_without_words(self):
        asked, answers = self.folder / "in.jsonl", self.folder / "out.jsonl"
        asked.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions",
                                     "body": {"prompt": "x"}}) + "\n")
        for error, said in (({"message": None}, "the server answered 400"),
                            ({"message": {"en": "no"}}, "the server answered 400"),
                            ({}, "the server answered 400"), ({"message": "no"}, "no"),
                            ("no", "the server answered 400")):
            url = self.stub({"error": error}, 400)
            done = self.run_m2("run-batch", "-i", asked, "-o", answers, "--no-resume", "--url", url)
            self.assertEqual(done.returncode, 0, done.stderr)
            line = json.loads(answers.read_text())
            self.assertEqual(line["error"], {"code": "400", "message": said})
            self.assertEqual(line["response"]["body"], {"error": error})

    def test_calls_without_ids(self):
        items = self.folder / "set.jsonl"
        tools = [{"type": "function", "function": {"name": "f"}}]
        items.write_text(json.dumps({"input": "x", "answer": "y", "tools": tools, "steps": [
            {"calls": [{"name": "f", "arguments": {}}], "results": ["r"]}]}) + "\n")
        for call_id in (None, 7):
            url = self.stub({"usage": {"completion_tokens": 1}, "data": [{"id": "m"}], "choices": [
                {"finish_reason": "stop", "message": {"content": None, "tool_calls": [
                    {"id": call_id, "type": "function",
                     "function": {"name": "f", "arguments": "{}"}}]}}]})
            done = self.run_m2("eval", url, items)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("set", done.stdout)

    def test_models_without_names(self):
        for data in ([{}], [], [{"id": None}], {}, [7]):
            done = self.run_m2("chat", self.stub({"data": data}))
            self.assertEqual(done.returncode, 1)
            self.assertIn("the server names no model; give one with --model", done.stderr)

    def test_chat_takes_vllms_words(self):
        url = self.stub({"data": [{"id": None}]})
        self.assertEqual(self.run_m2("chat", "--url", url + "/v1", "--model-name", "m").returncode, 0)
        for words in (("--url", url), (url,)):
            self.assertIn("the server names no model", self.run_m2("chat", *words).stderr)
        self.assertIn("usage: m2 chat", self.run_m2("chat", url, "--url", url).stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
