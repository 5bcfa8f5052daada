"""Coding agents as people run them, each through one tool round trip with the scripted model: a
shell command that reads a file in a folder of its own. Nothing but loopback can be reached."""

import ctypes
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

from scripted import Server, main

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SECONDS = 120


def call(tool, **parameters):
    lines = "".join(f'<parameter name="{k}">{v}</parameter>\n' for k, v in parameters.items())
    return ("The note should be read.\n</think>\n\n<minimax:tool_call>\n"
            f'<invoke name="{tool}">\n{lines}</invoke>\n</minimax:tool_call>')


SCRIPTS = {
    "codex": {"text": call("exec_command", cmd="cat note.txt")},
    "claude": {"text": call("Bash", command="cat note.txt", description="Reads the note")},
    "opencode": {"text": call("bash", command="cat note.txt")},
    "done": {"text": "It is read.\n</think>\n\nThe note says pelican."},
}


def leave_the_network():
    """Moves this process, and those it starts, where only loopback is; False if it may not."""
    clone_newuser, clone_newnet = 0x10000000, 0x40000000
    flags = clone_newnet if os.geteuid() == 0 else clone_newnet | clone_newuser
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        siocsifflags, up, running = 0x8914, 0x1, 0x40
        fcntl.ioctl(control, siocsifflags, struct.pack("16sh14x", b"lo", up | running))
    return True


class Tap:
    """Passes connections on to the server and keeps the bodies that clients sent."""

    def __init__(self, port):
        self.target = port
        self.sent = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            kept = bytearray()
            self.sent.append(kept)
            for source, sink, keep in ((client, server, kept), (server, client, None)):
                threading.Thread(target=self.pump, args=(source, sink, keep), daemon=True).start()

    @staticmethod
    def pump(source, sink, keep):
        try:
            while data := source.recv(1 << 16):
                if keep is not None:
                    keep += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def requests(self):
        """(path, body) of every request with a Content-Length."""
        out = []
        for stream in self.sent:
            rest = bytes(stream)
            while match := re.match(rb"(\S+) (\S+) HTTP/1.1\r\n(.*?)\r\n\r\n", rest, re.S):
                length = re.search(rb"(?im)^content-length: *(\d+)", match[3])
                size = int(length[1]) if length else 0
                body = rest[match.end():match.end() + size]
                rest = rest[match.end() + size:]
                out.append((match[2].decode(), json.loads(body) if body else None))
        return out

    def close(self):
        self.listener.close()


class Agents(unittest.TestCase):
    def setUp(self):
        self.log = tempfile.TemporaryFile("w+")
        self.server = Server(log=self.log, scripts=SCRIPTS, max_model_len=65536, num_blocks=16384,
                             script_window=8000, prompt_tokens_details=True,
                             model_names=["scripted"])
        self.tap = Tap(self.server.port)
        self.url = f"http://127.0.0.1:{self.tap.port}"
        self.home = tempfile.mkdtemp()
        self.work = os.path.join(self.home, "work")
        os.mkdir(self.work)
        self.write("note.txt", "pelican script:done;\n")

    def tearDown(self):
        self.tap.close()
        self.server.stop()
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def write(self, name, text):
        path = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def run_agent(self, program, *arguments, **environment):
        path = os.path.join(HERE, "agents", "node_modules", ".bin", program)
        if not os.path.exists(path):
            self.skipTest(f"{program} is not installed: tools/setup agents")
        environment = {"HOME": self.home, "PATH": os.environ["PATH"], "LANG": "C.UTF-8",
                       "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9",
                       "NO_PROXY": "127.0.0.1", **environment}
        done = subprocess.run([path, *arguments], cwd=self.work, env=environment, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.strip().splitlines()[-1], "The note says pelican.",
                         done.stderr)
        self.assert_tools_were_constrained()
        return done

    def bodies(self, path):
        return [body for target, body in self.tap.requests() if target.split("?")[0] == path]

    def assert_tools_were_constrained(self):
        """Every schema of the agent's tools has a grammar, and all of it is in force."""
        for complaint in ("are not constrained", "what no grammar holds"):
            self.assertNotIn(complaint, self.warnings())

    def warnings(self):
        self.log.seek(0)
        return self.log.read()

    def assert_second_prompt_was_cached(self):
        """Of two prompts, the second all but for what is new in it."""
        asked = self.server.metric("vllm:prefix_cache_queries_total")
        self.assertGreater(self.server.metric("vllm:prefix_cache_hits_total"), 0.48 * asked)

    def test_codex(self):
        self.write("../.codex/config.toml", f"""
model = "scripted"
model_provider = "local"
check_for_update_on_startup = false
[model_providers.local]
name = "local"
base_url = "{self.url}/v1"
wire_api = "responses"
[analytics]
enabled = false
""")
        self.run_agent("codex", "exec", "--skip-git-repo-check", "-s", "danger-full-access",
                       "script:codex; read the note")
        bodies = self.bodies("/v1/responses")
        self.assertEqual(len(bodies), 2)
        kinds = [item["type"] for item in bodies[1]["input"][len(bodies[0]["input"]):]]
        self.assertEqual(kinds, ["reasoning", "function_call", "function_call_output"])
        self.assertIn("'tool:web_search'", self.warnings())
        self.assert_second_prompt_was_cached()

    def test_claude_code(self):
        self.run_agent("claude", "-p", "script:claude; read the note", "--allowedTools", "Bash",
                       ANTHROPIC_BASE_URL=self.url, ANTHROPIC_AUTH_TOKEN="x",
                       ANTHROPIC_MODEL="scripted", ANTHROPIC_SMALL_FAST_MODEL="scripted",
                       CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_TELEMETRY="1",
                       DISABLE_ERROR_REPORTING="1", DISABLE_AUTOUPDATER="1")
        bodies = self.bodies("/v1/messages")
        self.assertEqual(len(bodies), 2)
        blocks = [b["type"] for b in bodies[1]["messages"][-2]["content"]]
        self.assertEqual(blocks, ["thinking", "tool_use"])
        self.assertTrue(bodies[0]["system"][0]["text"].startswith("x-anthropic-billing-header"))
        self.assert_second_prompt_was_cached()

    def test_opencode(self):
        model = {"name": "scripted", "limit": {"context": 65536, "output": 8192}}
        self.write("opencode.json", json.dumps({
            "autoupdate": False, "share": "disabled", "model": "local/scripted",
            "small_model": "local/scripted",
            "provider": {"local": {
                "npm": "@ai-sdk/openai-compatible", "name": "local",
                "options": {"baseURL": self.url + "/v1", "apiKey": "x"},
                "models": {"scripted": model}}}}))
        self.run_agent("opencode", "run", "script:opencode; read the note",
                       OPENCODE_DISABLE_AUTOUPDATE="1", OPENCODE_DISABLE_MODELS_FETCH="1",
                       OPENCODE_DISABLE_DEFAULT_PLUGINS="1", OPENCODE_DISABLE_LSP_DOWNLOAD="1")
        bodies = self.bodies("/v1/chat/completions")
        turn = [m for m in bodies[-1]["messages"] if m["role"] == "assistant"][-1]
        self.assertEqual(turn["reasoning_content"], "The note should be read.")


if __name__ == "__main__":
    if not leave_the_network():
        print("skipped: no network namespace of its own may be made here")
        sys.exit(77)
    main()
