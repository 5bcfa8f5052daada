#!/usr/bin/env python3
"""Ratios out of the measured tables, and whether any has become worse.

  bench/ratios.py RESULTS [--margin 0.25]   reads RESULTS/*.md and *.json, writes RESULTS/*.csv, and
                                            exits 1 if a ratio is worse than its baseline by more than
                                            the margin
  bench/ratios.py RESULTS --accept [NAME]   the same, and what was measured becomes the baseline: of
                                            every table, or of NAME.csv alone
  bench/ratios.py --self-test

A ratio is a share of a bound, or a quotient of two figures, of one run on one machine: unlike times,
it can be compared between machines and moments. A margin of a quarter is what a shared machine makes
of equal code. A baseline changes only by --accept, so slow decay adds up and a failure stays one;
a ratio that is new is its own baseline.
"""

import argparse
import csv
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile

HIGHER, LOWER = "higher", "lower"


def of_operations(text):
    """Of reads and of multiply-adds: whichever bound the operation is nearer to. The first table: what
    was kept of other machines stands below it."""
    text = text.split("\n## ")[0]
    used = re.search(r", instructions (\w+)\.$", text, re.M)
    used = f"{used[1]}, " if used else ""
    rows = re.findall(r"^\| (.+?) \| [\d.]+ \| [\d.]+ \| [\d.]+ \| (\d+) % \| [\d.]+ \| (\d+) % \|$",
                      text, re.M)
    return [(used + name, max(int(reads), int(sums)) / 100, HIGHER) for name, reads, sums in rows]


def of_steps(text):
    out = []
    for used, share, times in re.findall(
            r"^\| (\w+) \| [\d.]+ \| (\d+) % \| [\d.]+ \| ([\d.]+) \|$", text, re.M):
        out.append((f"{used}, decode of reads", int(share) / 100, HIGHER))
        out.append((f"{used}, prompt of 512 over decode", float(times), HIGHER))
    return out


def microseconds(text):
    """CPU times of Google Benchmark's console table, by name."""
    units = {"ns": 1e-3, "us": 1, "ms": 1e3}
    return {name: float(time) * units[unit] for name, time, unit in re.findall(
        r"^BM_(\S+?)(?:/iterations:\d+)? +[\d.]+ [num]s +([\d.]+) ([num]s)", text, re.M)}


def quotients(text, pairs):
    cpu = microseconds(text)
    return [(name, cpu[a] / cpu[b] / times, LOWER) for name, a, b, times in pairs
            if a in cpu and b in cpu]


def of_engine(text):
    return quotients(text, [
        ("a step's cost a sequence, 1024 over 64", "DecodeStep/1024", "DecodeStep/64", 16),
        ("a step's cost a sequence, 64 over 16", "DecodeStep/64", "DecodeStep/16", 4),
        ("planning, 10000 waiting over none", "Plan/1024/10000", "Plan/1024/0", 1),
        ("greedy over a copy of the row", "Greedy", "CopyRow", 1),
        ("top-k and top-p over a copy of the row", "TopK40TopP95", "CopyRow", 1),
        ("temperature over a copy of the row", "Temperature", "CopyRow", 1)])


def of_wire(text):
    return quotients(text, [
        ("a completion's frame over a copy of it", "CompletionFrame", "CopyFrame", 1),
        ("a chat frame over a copy of it", "ChatFrame", "CopyFrame", 1),
        ("reading a body's JSON over printing it", "ParseBody", "PrintJson", 1),
        ("reading an answer over stop strings", "ReadAnswer", "StopStrings", 1)])


def of_tokenizer(text):
    return [(f"{name.strip()} over tokenizers", float(ratio), HIGHER) for name, ratio in re.findall(
        r"^(encode/\w+) .*; tokenizers [\d.]+ MB/s, ratio ([\d.]+)", text, re.M)]


def of_grammars(text):
    """Masks, against a copy of one."""
    rows = re.findall(r"^\| (.+?) \| [\d.]* \| \d* \| ([\d.]+) \| ([\d.]+) \| [\d.]+ \|$", text, re.M)
    copy = next((float(median) for name, median, _ in rows if name == "a copy of a mask"), None)
    return [(f"mask over a copy of it, {name}", float(median) / copy, LOWER)
            for name, median, _ in rows if copy and name != "a copy of a mask"]


def of_simulation(text):
    numbers = json.loads(text)
    return [("CPU a streamed token over the client's CPU an event",
             numbers["token_cpu_us"] / numbers["client_event_us"], LOWER),
            ("engine's CPU a token over the connections'",
             numbers["token_engine_us"] / numbers["token_io_us"], LOWER),
            ("a step's host CPU over its GPU time",
             numbers["host_step_p50_us"] / numbers["gpu_step_ms"] / 1000, LOWER)]


SOURCES = {"ops-cpu": ("ops-cpu.md", of_operations), "steps-cpu": ("steps-cpu.md", of_steps),
           "engine-cpu": ("engine-cpu.md", of_engine), "wire": ("wire.md", of_wire),
           "tokenizer": ("tokenizer.md", of_tokenizer),
           "grammar": ("grammar.md", of_grammars), "sim": ("sim.json", of_simulation)}


def read_csv(text):
    """(baseline, which way is better) by name; a table from before there were baselines has its ratios
    for them."""
    return {row["what"]: (float(row.get("baseline") or row["ratio"]), row["better"])
            for row in csv.DictReader(io.StringIO(text))}


def write_csv(rows, baselines):
    """What was measured beside its baseline; then the baselines of what was not measured this time:
    another machine's instruction set, say."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["what", "ratio", "baseline", "better"])
    for what, ratio, better in rows:
        baseline, _ = baselines.pop(what, (ratio, better))
        table.writerow([what, f"{ratio:.4g}", f"{baseline:.4g}", better])
    for what, (baseline, better) in baselines.items():
        table.writerow([what, "", f"{baseline:.4g}", better])
    return out.getvalue()


def regressions(rows, baselines, margin):
    for what, ratio, better in rows:
        if what not in baselines:
            continue
        old, _ = baselines[what]
        worse = ratio < old * (1 - margin) if better == HIGHER else ratio > old * (1 + margin)
        if worse:
            yield f"{what}: baseline {old:.3g}, now {ratio:.3g} ({better} is better)"


def update(results, margin, accept=()):
    faults, count = [], 0
    for name, (source, read) in SOURCES.items():
        path = results / source
        if not path.exists():
            continue
        rows = read(path.read_text())
        if not rows:
            faults.append(f"{source}: no ratio found in it")
            continue
        table = results / f"{name}.csv"
        baselines = read_csv(table.read_text()) if table.exists() else {}
        if name in accept:
            baselines = {}
        faults += [f"{name}: {fault}" for fault in regressions(rows, baselines, margin)]
        table.write_text(write_csv(rows, baselines))
        count += len(rows)
    return faults, count


def self_test():
    tables = {
        "ops-cpu.md": "A machine, 2026-01-01, instructions amx.\n\n"
                      "| operation | us | median | GB/s | of reads | TFLOP/s | of multiply-adds |\n"
                      "| linear, 1 token | 567.1 | 570.0 | 44.4 | 87 % | 0.09 | 17 % |\n",
        "steps-cpu.md": "| instructions | decode | of read | prompt of 512 | times decode |\n"
                        "| amx | 69.1 | 61 % | 2017.2 | 29.2 |\n",
        "engine-cpu.md": "BM_DecodeStep/64/iterations:4000   26.4 us   10.0 us  4000 x=1\n"
                         "BM_DecodeStep/1024/iterations:4000  634 us  320 us  4000 x=1\n",
        "wire.md": "BM_CopyFrame   11.0 ns   10.0 ns  4000\nBM_CompletionFrame  0.09 us  0.08 us  40\n",
        "tokenizer.md": "encode/english 4.6 ms 102.5 MB/s 4 bytes; tokenizers 3.7 MB/s, ratio 27.6\n",
        "grammar.md": "| a copy of a mask |  |  | 0.5 | 0.6 | 0.7 |\n| any JSON | 4.0 | 12 | 9.0 | 90.0 | 99.0 |\n",
        "sim.json": json.dumps({"token_cpu_us": 4, "client_event_us": 2, "token_engine_us": 1,
                                "token_io_us": 2, "host_step_p50_us": 50, "gpu_step_ms": 5}),
    }
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder)
        for name, text in tables.items():
            (results / name).write_text(text)
        assert update(results, 0.25) == ([], 10), update(results, 0.25)
        assert read_csv((results / "engine-cpu.csv").read_text()) == {
            "a step's cost a sequence, 1024 over 64": (2.0, LOWER)}
        assert read_csv((results / "wire.csv").read_text()) == {
            "a completion's frame over a copy of it": (8.0, LOWER)}
        assert update(results, 0.25)[0] == []
        # Within the margin nothing is said, and the baseline stays where it was: decay adds up.
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("87 %", "70 %"))
        assert update(results, 0.25)[0] == []
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("87 %", "64 %"))
        (results / "sim.json").write_text(tables["sim.json"].replace(": 4", ": 5.1"))
        for _ in range(2):  # a failure stays a failure
            faults, _ = update(results, 0.25)
            assert len(faults) == 2, faults
            assert "amx, linear, 1 token: baseline 0.87, now 0.64" in faults[0], faults
        assert "0.64,0.87,higher" in (results / "ops-cpu.csv").read_text()
        assert len(update(results, 0.25, ("ops-cpu",))[0]) == 1
        assert len(update(results, 0.25)[0]) == 1  # accepted, and the other is not
        # Another machine has other rows; the first one's baselines wait for it.
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("amx", "avx512"))
        assert len(update(results, 0.25)[0]) == 1
        assert (results / "ops-cpu.csv").read_text().endswith('"amx, linear, 1 token",,0.64,higher\n')
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("87 %", "40 %"))
        assert "baseline 0.64, now 0.4" in update(results, 0.25)[0][0]
        (results / "ops-cpu.md").write_text("nothing")
        assert "no ratio found" in update(results, 0.25)[0][0]
        # What `make bench` ends with: fails on a baseline that was doctored to be better by half.
        for name, text in tables.items():
            (results / name).write_text(text)
        command = [sys.executable, __file__, folder]
        assert subprocess.run([*command, "--accept"], capture_output=True).returncode == 0
        assert subprocess.run(command, capture_output=True).returncode == 0
        doctored = (results / "wire.csv").read_text().replace(",8,8,lower", ",8,4,lower")
        (results / "wire.csv").write_text(doctored)
        failed = subprocess.run(command, capture_output=True, text=True)
        assert failed.returncode == 1 and "baseline 4, now 8 (lower is better)" in failed.stdout
    print("ratios: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=pathlib.Path)
    parser.add_argument("--margin", type=float, default=0.25)
    parser.add_argument("--accept", nargs="*", choices=list(SOURCES), metavar="NAME")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if not arguments.results:
        parser.error("which folder of results?")
    accept = () if arguments.accept is None else arguments.accept or list(SOURCES)
    faults, count = update(arguments.results, arguments.margin, accept)
    for fault in faults:
        print(f"worse: {fault}")
    print(f"ratios: {count} written, {len(faults)} worse by more than {arguments.margin:.0%}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
