#!/usr/bin/env python3
"""Where a server's CPU time goes under 1, 32, 256 and 1,000 streams, by thread: `m2 serve` on a small
model, `m2 bench serve` as its clients, times from the kernel.

    profile_server.py M2 MODEL [FLAG...]      FLAGs are for the server; prints a Markdown table
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

RUNS = [(1, 200), (32, 64), (256, 32), (1000, 16)]  # streams, output tokens of each
KINDS = {"m2-engine": "engine", "m2-io": "connections"}  # others: the pool, tokenizer and JSON workers


def cpu_seconds(pid):
    """By kind of thread."""
    out = {"engine": 0.0, "connections": 0.0, "others": 0.0}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        kind = KINDS.get((task / "comm").read_text().strip(), "others")
        out[kind] += int((task / "schedstat").read_text().split()[0]) * 1e-9
    return out


def start(m2, model, flags):
    server = subprocess.Popen([m2, "serve", model, "--host", "127.0.0.1", "--port", "0",
                               "--disable-uvicorn-access-log", *flags], stderr=subprocess.PIPE,
                              text=True)
    port = None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            port = found[1]
        if "Application startup complete" in line:
            return server, port
    sys.exit("the server did not start")


def measure(m2, model, server, port, streams, length):
    with tempfile.TemporaryDirectory() as folder:
        before = cpu_seconds(server.pid)
        done = subprocess.run(
            [m2, "bench", "serve", "--port", port, "--tokenizer", model, "--random-input-len", "16",
             "--random-output-len", str(length), "--num-prompts", str(streams), "--disable-tqdm",
             "--save-result", "--result-dir", folder, "--result-filename", "r.json"],
            check=True, capture_output=True, text=True)
        after = cpu_seconds(server.pid)
        result = json.loads((pathlib.Path(folder) / "r.json").read_text())
    if result["failed"]:
        sys.exit(f"{result['failed']} of {streams} requests failed")
    tokens = result["total_output_tokens"]
    client = float(re.search(r"([\d.]+) us of CPU per event", done.stderr)[1])
    each = {kind: (after[kind] - before[kind]) / tokens * 1e6 for kind in before}
    print(f"| {streams} | {tokens} | {tokens / result['duration']:.0f} | {each['engine']:.1f} "
          f"| {each['connections']:.1f} | {each['others']:.1f} | {client:.1f} "
          f"| {result['mean_ttft_ms']:.1f} | {result['median_itl_ms']:.2f} |", flush=True)


def main():
    m2, model, *flags = sys.argv[1:]
    server, port = start(m2, model, ["--max-num-seqs", "1024", *flags])
    try:
        print("CPU in us a token, by thread.\n\n"
              "| streams | tokens | tokens/s | engine | connections | other threads | client "
              "| TTFT, ms | ITL, ms |\n|" + " --: |" * 9)
        for streams, length in RUNS:
            measure(m2, model, server, port, streams, length)
    finally:
        server.terminate()
        server.stderr.close()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
