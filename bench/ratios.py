#!/usr/bin/env python3
"""Ratios out of the measured tables, and whether any has become worse.

  bench/ratios.py RESULTS [--only NAME...]  reads RESULTS/*.md, writes RESULTS/*.csv, and exits 1 if a
                                            ratio is worse than its baseline by more than its table's
                                            margin (--margin: by more than that)
  bench/ratios.py RESULTS --accept [NAME]   the same, and what was measured becomes the baseline: of
                                            every table, or of NAME.csv alone
  bench/ratios.py --self-test

A ratio is a share of a bound, or a quotient of two figures, of one run on one machine. Unlike times it
can be compared between moments; between kinds of processors it cannot always (how much faster is a
copy than a multiplication?), so a baseline belongs to the processor and the number of threads that the
table names, and a machine without one makes its own. A baseline changes only by --accept, so slow decay
adds up and a failure stays one; a ratio that is new is its own baseline.
"""

import argparse
import csv
import io
import pathlib
import re
import subprocess
import sys
import tempfile

HIGHER, LOWER = "higher", "lower"


def of_operations(text):
    """Of reads and of multiply-adds: whichever bound the operation is nearer to."""
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
    """(wall clock, CPU) of Google Benchmark's console table, by name."""
    units = {"ns": 1e-3, "us": 1, "ms": 1e3}
    return {name: (float(wall) * units[unit], float(cpu) * units[cpu_unit])
            for name, wall, unit, cpu, cpu_unit in re.findall(
                r"^BM_(\S+?)(?:/iterations:\d+)? +([\d.]+) ([num]s) +([\d.]+) ([num]s)", text, re.M)}


WALL, CPU = 0, 1


def quotients(text, pairs, clock=CPU):
    times = microseconds(text)
    return [(name, times[a][clock] / times[b][clock] / fold, LOWER) for name, a, b, fold in pairs
            if a in times and b in times]


def of_engine(text):
    # By the wall clock too: a step that waits costs no CPU.
    return quotients(text, [
        ("a step of 64, wall clock, over touching its sequences", "DecodeStep/64", "Touch/64", 1),
        ("a step of 1024, wall clock, over touching its sequences", "DecodeStep/1024", "Touch/1024",
         1)], WALL) + quotients(text, [
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
    out = []
    for run in re.split(r"^(?=\d+x )", text, flags=re.M):
        def figure(label):
            found = re.search(rf"^ *{re.escape(label)} +([\d.]+) ", run, re.M)
            return float(found[1]) if found else None

        few = re.match(r"\d+x .*, (\d\d?) streams", run)
        send = figure("of that the kernel's send, measured alone")
        # Not the engine's step, which a neighbour's use of the caches makes twice as long: its own bench
        # has it. Nor, for few streams, the latency: so few sends are nothing beside a wake.
        rows = [("CPU a streamed token", figure("CPU a streamed token, engine and connections"), send),
                ("the clients' CPU an event", figure("the clients' CPU an event"), send)]
        if not few:
            rows.append(("added latency, median", figure("added latency, GPU to socket, median"),
                         figure("of it the kernel's sends alone, median")))
        out += [(f"{few[1] + ' streams, ' if few else ''}{what} over the kernel's send alone", value / floor,
                 LOWER) for what, value, floor in rows if value and floor]
    return out


# Table, how to read it, and the margin: what a shared machine makes of equal code.
SOURCES = {"ops-cpu": ("ops-cpu.md", of_operations, 0.25),
           "steps-cpu": ("steps-cpu.md", of_steps, 0.25),
           "engine-cpu": ("engine-cpu.md", of_engine, 0.25), "wire": ("wire.md", of_wire, 0.25),
           "tokenizer": ("tokenizer.md", of_tokenizer, 0.25),
           "grammar": ("grammar.md", of_grammars, 0.25), "sim": ("sim.md", of_simulation, 0.5)}


def machine_of(text):
    """As the table's head names it: "A processor, 2 threads"."""
    found = re.search(r"^(?:Commit \S+\. )?(.+?, \d+ threads)\b", text, re.M)
    return found[1] if found else "an unnamed machine"


def read_csv(text):
    """(baseline, which way is better) by machine and name."""
    return {(row["machine"], row["what"]): (float(row["baseline"]), row["better"])
            for row in csv.DictReader(io.StringIO(text))}


def write_csv(rows, baselines):
    """What was measured beside its baseline; then the baselines of what was not measured this time:
    other machines', or another instruction set's. Rows are keyed like baselines."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["machine", "what", "ratio", "baseline", "better"])
    for key, ratio, better in rows:
        baseline, _ = baselines.get(key, (ratio, better))
        table.writerow([*key, f"{ratio:.4g}", f"{baseline:.4g}", better])
    measured = {key for key, _, _ in rows}
    for key, (baseline, better) in baselines.items():
        if key not in measured:
            table.writerow([*key, "", f"{baseline:.4g}", better])
    return out.getvalue()


def regressions(rows, baselines, margin):
    for key, ratio, better in rows:
        if key not in baselines:
            continue
        old, _ = baselines[key]
        worse = ratio < old * (1 - margin) if better == HIGHER else ratio > old * (1 + margin)
        if worse:
            yield f"{key[1]}: baseline {old:.3g}, now {ratio:.3g} ({better} is better)"


def update(results, margin=None, accept=(), only=()):
    """The faults found, and how many ratios were read. `margin`: None for each table's own."""
    faults, count = [], 0
    for name, (source, read, own_margin) in SOURCES.items():
        path = results / source
        if (only and name not in only) or not path.exists():
            continue
        text = path.read_text().split("\n## ")[0]  # what follows was kept: of other machines, notes
        machine = machine_of(text)
        rows = [((machine, what), ratio, better) for what, ratio, better in read(text)]
        if not rows:
            faults.append(f"{source}: no ratio found in it")
            continue
        table = results / f"{name}.csv"
        baselines = read_csv(table.read_text()) if table.exists() else {}
        if name in accept:
            for key, _, _ in rows:
                baselines.pop(key, None)
        limit = own_margin if margin is None else margin
        faults += [f"{name}: {fault}" for fault in regressions(rows, baselines, limit)]
        table.write_text(write_csv(rows, baselines))
        count += len(rows)
    return faults, count


def self_test():
    tables = {
        "ops-cpu.md": "Commit abc. A machine, 2 threads, 2026-01-01, instructions amx.\n\n"
                      "| operation | us | median | GB/s | of reads | TFLOP/s | of multiply-adds |\n"
                      "| linear, 1 token | 567.1 | 570.0 | 44.4 | 87 % | 0.09 | 17 % |\n",
        "steps-cpu.md": "| instructions | decode | of read | prompt of 512 | times decode |\n"
                        "| amx | 69.1 | 61 % | 2017.2 | 29.2 |\n",
        "engine-cpu.md": "BM_DecodeStep/64/iterations:4000   26.4 us   10.0 us  4000 x=1\n"
                         "BM_Touch/64   1.1 us   1.0 us  9\n"
                         "BM_DecodeStep/1024/iterations:4000  634 us  320 us  4000 x=1\n",
        "wire.md": "BM_CopyFrame   11.0 ns   10.0 ns  4000\nBM_CompletionFrame  0.09 us  0.08 us  40\n",
        "tokenizer.md": "encode/english 4.6 ms 102.5 MB/s 4 bytes; tokenizers 3.7 MB/s, ratio 27.6\n",
        "grammar.md": "| a copy of a mask |  |  | 0.5 | 0.6 | 0.7 |\n| any JSON | 4.0 | 12 | 9.0 | 90.0 | 99.0 |\n",
        "sim.md": "A machine, 2 threads, 2026-01-01\n\n8x h200, 1000 streams, 1000 requests of 64 + 200 tokens\n"
                  "  CPU a streamed token, engine and connections     4.000 us\n"
                  "    of that the kernel's send, measured alone      2.0 us\n"
                  "8x h200, 64 streams, 64 requests of 64 + 200 tokens\n"
                  "  CPU a streamed token, engine and connections     3.000 us\n"
                  "    of that the kernel's send, measured alone      1.0 us\n",
    }
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder)
        for name, text in tables.items():
            (results / name).write_text(text)
        assert update(results, 0.25) == ([], 10), update(results, 0.25)
        unnamed, named = "an unnamed machine", "A machine, 2 threads"
        assert read_csv((results / "engine-cpu.csv").read_text()) == {
            (unnamed, "a step of 64, wall clock, over touching its sequences"): (24.0, LOWER),
            (unnamed, "a step's cost a sequence, 1024 over 64"): (2.0, LOWER)}
        assert read_csv((results / "wire.csv").read_text()) == {
            (unnamed, "a completion's frame over a copy of it"): (8.0, LOWER)}
        assert read_csv((results / "sim.csv").read_text()) == {
            (named, "CPU a streamed token over the kernel's send alone"): (2.0, LOWER),
            (named, "64 streams, CPU a streamed token over the kernel's send alone"): (3.0, LOWER)}
        assert update(results, 0.25)[0] == []
        # Within the margin nothing is said, and the baseline stays where it was: decay adds up.
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("87 %", "70 %"))
        assert update(results, 0.25)[0] == []
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("87 %", "64 %"))
        (results / "sim.md").write_text(tables["sim.md"].replace("4.000", "5.1"))
        for _ in range(2):  # a failure stays a failure
            faults, _ = update(results, 0.25)
            assert len(faults) == 2, faults
            assert "amx, linear, 1 token: baseline 0.87, now 0.64" in faults[0], faults
        assert "0.64,0.87,higher" in (results / "ops-cpu.csv").read_text()
        assert len(update(results, 0.25, ("ops-cpu",))[0]) == 1
        assert len(update(results, 0.25)[0]) == 1  # accepted, and the other is not
        # Another machine, or another instruction set, has its own rows; the first one's baselines wait.
        for old, new in (("amx", "avx512"), ("A machine", "Another")):
            (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace(old, new))
            assert len(update(results, 0.25)[0]) == 1
            assert '"amx, linear, 1 token",,0.64,higher\n' in (results / "ops-cpu.csv").read_text()
        assert not update(results, 0.25, only=("ops-cpu", "wire"))[0]
        # What stands behind the first heading was kept, and is not read.
        (results / "ops-cpu.md").write_text(tables["ops-cpu.md"].replace("87 %", "64 %") + "\n## Kept\n" +
                                            tables["ops-cpu.md"].replace("87 %", "3 %"))
        assert len(update(results, 0.25)[0]) == 1
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
    parser.add_argument("--margin", type=float)
    parser.add_argument("--only", nargs="*", choices=list(SOURCES), default=[], metavar="NAME")
    parser.add_argument("--accept", nargs="*", choices=list(SOURCES), metavar="NAME")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if not arguments.results:
        parser.error("which folder of results?")
    accept = () if arguments.accept is None else arguments.accept or list(SOURCES)
    faults, count = update(arguments.results, arguments.margin, accept, arguments.only)
    for fault in faults:
        print(f"worse: {fault}")
    print(f"ratios: {count} written, {len(faults)} worse than its margin allows")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
