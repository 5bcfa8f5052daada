"""Starts scripted_server for a test and talks to it over plain sockets and http.client."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import unittest

PROGRAM = os.environ.get("M2_SCRIPTED_SERVER", "")
DATA = os.environ.get("M2_DATA_DIR", "")
TIME_FACTOR = float(os.environ.get("M2_TIME_FACTOR", "1"))  # above 1 under a sanitizer

TOOL_CALL = (
    "<minimax:tool_call>\n"
    '<invoke name="get_weather">\n'
    '<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">3</parameter>\n'
    "</invoke>\n"
    "</minimax:tool_call>"
)

SCRIPTS = {
    "hello": {"text": "A greeting is due.\n</think>\n\nHello, world! 你好 🎉"},
    "tool": {"text": "I need the weather.\n</think>\n\nLooking it up.\n" + TOOL_CALL},
    "plain": {"text": "one two three STOP four five"},
    "long": {"text": "word ", "repeat": True},
    "words": {"text": " word", "repeat": True},  # one token, again and again
    "slow": {"text": "tick ", "repeat": True, "delay_ms": 50},
    "quiet": {"text": "tick ", "repeat": True, "delay_ms": 1500},
    "nan": {"text": "this goes well until it does not", "nan_at": 4},
}


def make_certificate(folder, name, ca=None):
    """NAME.pem and NAME.key in the folder: signed by itself, or by the certificate `ca`."""
    key, certificate = (os.path.join(folder, f"{name}.{end}") for end in ("key", "pem"))
    signer = ["-x509"] if ca is None else [
        "-x509", "-CA", os.path.join(folder, f"{ca}.pem"), "-CAkey",
        os.path.join(folder, f"{ca}.key")]
    subprocess.run(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj",
                    f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *signer],
                   check=True, capture_output=True)
    return certificate, key


class Server:
    """A running scripted_server. Config keys are those of scripted_server_main.cc; its log goes to
    the file `log` if one is given."""

    def __init__(self, wait_ready=True, log=None, **config):
        config.setdefault("scripts", SCRIPTS)
        self.process = subprocess.Popen(
            [PROGRAM, DATA, json.dumps(config)], stdout=subprocess.PIPE, stderr=log,
            text=True)
        self.port = int(self._line("PORT ").split()[1])
        self.tls = None  # an ssl.SSLContext where it speaks TLS
        if wait_ready:
            self.wait_ready()

    def _line(self, start):
        line = self.process.stdout.readline()
        if not line.startswith(start):
            raise RuntimeError(f"scripted_server said {line!r} instead of {start}")
        return line

    def wait_ready(self):
        self._line("READY")

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tls.wrap_socket(connection) if self.tls else connection

    def request(self, method, path, body=None, headers=None, timeout=30):
        """(status, headers, body text) of one request."""
        timeout *= TIME_FACTOR
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=timeout, context=self.tls
        ) if self.tls else http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = dict(headers or {})
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            if body is not None:
                headers.setdefault("Content-Type", "application/json")
            if isinstance(body, str):
                body = body.encode("utf-8", "surrogatepass")
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, \
                reply.read().decode()
        finally:
            connection.close()

    def post(self, path, body, **kwargs):
        status, _, text = self.request("POST", path, body, **kwargs)
        return status, json.loads(text) if text else None

    def chat(self, script, **fields):
        body = {"messages": [{"role": "user", "content": f"script:{script};"}], **fields}
        return self.post("/v1/chat/completions", body)

    def complete(self, script, **fields):
        return self.post("/v1/completions", {"prompt": f"script:{script};<fim_middle>", **fields})

    def stream(self, path, body):
        """The data objects of an SSE reply, [DONE] included as a string."""
        status, headers, text = self.request("POST", path, {**body, "stream": True})
        assert status == 200, text
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        frames = [f for f in text.split("\n\n") if f and not f.startswith(":")]
        assert all(f.startswith("data: ") for f in frames), text
        return [f[6:] if f[6:] == "[DONE]" else json.loads(f[6:]) for f in frames]

    def metric(self, name):
        """The sum over a metric's series."""
        _, _, text = self.request("GET", "/metrics")
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        return sum(float(v) for v in values)

    def naps(self, name):
        """How often each of the process's threads of that name went to sleep, by its id."""
        tasks = f"/proc/{self.process.pid}/task"
        read = lambda thread, file: open(f"{tasks}/{thread}/{file}").read()
        return {thread: int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", read(thread, "status"),
                                      re.M)[1])
                for thread in os.listdir(tasks) if read(thread, "comm").strip() == name}

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15 * TIME_FACTOR)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise RuntimeError("scripted_server did not end on SIGTERM")
        self.process.stdout.close()
        if self.process.returncode != 0:
            raise RuntimeError(f"scripted_server ended with {self.process.returncode}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class ServerCase(unittest.TestCase):
    """Tests that share one server, made with the class's CONFIG."""

    CONFIG = {}

    @classmethod
    def setUpClass(cls):
        cls.server = Server(**cls.CONFIG)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()


def main():
    if not os.path.exists(os.path.join(DATA, "tokenizer.json")):
        print(f"skipped: no tokenizer.json in {DATA!r}")
        sys.exit(77)
    unittest.main()
