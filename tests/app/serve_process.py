"""What tests of the program share: checkpoints, and `m2 serve` as a process. BINARY and SOURCE are the
test's first two arguments."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

BINARY, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])


def make_checkpoint(folder, *options):
    subprocess.run([sys.executable, SOURCE / "tools/make_checkpoint.py", folder, *map(str, options)],
                   check=True, capture_output=True)


class Server:
    """One `m2 serve` on a free port, ready when constructed; ended by the `with` block's end."""

    def __init__(self, model, *flags, env=None, prefix=()):
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, BINARY, "serve", str(model), "--host", "127.0.0.1", "--port", "0", *map(str, flags)],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise RuntimeError("".join(self.log))
        self.ready_seconds = time.monotonic() - self.started
        self.port = int(re.search(r"https?://127\.0\.0\.1:(\d+)", "".join(self.log)).group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.log.append(self.process.stderr.read())
        self.process.stderr.close()
        self.process.wait(timeout=30)

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, json.loads(text) if text[:1] in "{[" and text else text

    def complete(self, **fields):
        status, reply = self.request("POST", "/v1/completions",
                                     {"max_tokens": 12, "temperature": 0, **fields})
        assert status == 200, reply
        return reply["choices"][0]["text"]


def refused(model, *flags):
    """How a server that must not start says so: (seconds, stderr)."""
    start = time.monotonic()
    done = subprocess.run([BINARY, "serve", str(model), "--host", "127.0.0.1", "--port", "0", *flags],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, (done.returncode, done.stderr)
    return time.monotonic() - start, done.stderr
