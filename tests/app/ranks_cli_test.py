"""`m2 serve` on many ranks, as a person starts them: arguments BINARY SOURCE_DIR.

What one rank writes greedily, every other arrangement must write too."""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from serve_process import BINARY, Server, make_checkpoint, refused  # noqa: E402

GUIDE = ["--tool-call-parser", "minimax_m2", "--reasoning-parser", "minimax_m2_append_think",
         "--enable-auto-tool-choice"]
# The guide's launches, and the one it says is impossible. Left: what they are; right: their flags.
LAUNCHES = {
    "TP4": ["--tensor-parallel-size", "4", *GUIDE],
    "DP8+EP": ["--data-parallel-size", "8", "--enable-expert-parallel", *GUIDE],
    "TP8+EP": ["--tensor-parallel-size", "8", "--enable-expert-parallel", *GUIDE],
    "TP4 piecewise": ["--tensor-parallel-size", "4", *GUIDE, "--compilation-config",
                      '{"cudagraph_mode": "PIECEWISE"}'],
    "TP8": ["--tensor-parallel-size", "8", *GUIDE],
}
PROMPTS = ["the quick brown fox", "one two three four five six seven eight nine ten",
           "def main():", "x"]


def texts(server, **fields):
    """The prompts' greedy continuations, asked for all at once."""
    out = [None] * len(PROMPTS)

    def ask(i):
        out[i] = server.complete(prompt=PROMPTS[i], max_tokens=10, **fields)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


class WithModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = pathlib.Path(cls.folder.name) / "model"
        # Heads for 8 ranks, kv heads for 4; experts 200 wide: 25 of 8 ranks, 50 of 4.
        make_checkpoint(cls.model, "--heads", 8, "--kv-heads", 4, "--intermediate", 200,
                        "--experts", 8, "--hidden", 128, "--head-dim", 16, "--rotary-dim", 8)
        with Server(cls.model) as server:
            cls.expected = texts(server)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()


class Ranks(WithModel):
    """Ranks as threads of one process."""

    def test_the_guides_launches_write_what_one_rank_writes(self):
        for name, flags in LAUNCHES.items():
            with self.subTest(name), Server(self.model, *flags) as server:
                self.assertEqual(texts(server), self.expected)
                status, reply = server.request("POST", "/v1/chat/completions", {
                    "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})
                self.assertEqual(status, 200, reply)
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(timeout=10), 0)

    def test_engines_cut_and_whole_experts_both_ways(self):
        for flags in (["-dp", 2], ["-dp", 2, "-tp", 2, "-ep"],
                      ["-dp", 2, "-tp", 2, "-ep", "--all2all-backend", "all_to_all"],
                      ["-dp", 3, "-ep", "--expert-placement-strategy", "round_robin"]):
            with self.subTest(flags), Server(self.model, *flags) as server:
                self.assertEqual(texts(server), self.expected)

    def test_engines_are_chosen_balanced_and_labelled(self):
        with Server(self.model, "-dp", 4, "-ep", "--max-num-seqs", 4) as server:
            self.assertIn("[EP Rank 0/4] Expert parallelism is enabled. Expert placement strategy: "
                          "linear. Local/global number of experts: 2/8. Experts local to global "
                          "index map: 0->0, 1->1.", "".join(server.log))
            # A named engine; its cache then knows the prompt.
            long_prompt = "a b c d e f g h " * 40
            for _ in range(2):
                status, reply = server.request(
                    "POST", "/v1/completions",
                    {"prompt": long_prompt, "max_tokens": 2, "temperature": 0},
                    {"X-data-parallel-rank": "2"})
                self.assertEqual(status, 200, reply)
            # Without the header the conversation goes back to it.
            for _ in range(3):
                server.complete(prompt=long_prompt + " i j", max_tokens=2)
            finished = self.finished_by_engine(server)
            self.assertEqual(finished, {"0": 0, "1": 0, "2": 5, "3": 0})
            # Strangers are spread.
            threads = [threading.Thread(target=server.complete,
                                        kwargs={"prompt": f"stranger {i}", "max_tokens": 30})
                       for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            finished = self.finished_by_engine(server)
            self.assertTrue(all(count >= 1 for count in finished.values()), finished)
            for rank, text in (("4", "data_parallel_rank 4 is out of range [0, 4)."),
                               ("-1", "X-data-parallel-rank must be a rank, 0 or more"),
                               ("x", "X-data-parallel-rank must be a rank, 0 or more")):
                status, reply = server.request("POST", "/v1/completions", {"prompt": "x"},
                                               {"X-data-parallel-rank": rank})
                self.assertEqual((status, reply["error"]["message"]), (400, text))

    @staticmethod
    def finished_by_engine(server):
        metrics = server.request("GET", "/metrics")[1]
        out = {}
        for engine, count in re.findall(
                r'vllm:request_success_total\{[^}]*engine="(\d)",finished_reason="length"\} (\S+)',
                metrics):
            out[engine] = int(float(count))
        return out

    def test_impossible_splits_are_refused_in_words(self):
        for flags, text in (
                (["-tp", "3"], "Total number of attention heads (8) must be divisible by tensor "
                               "parallel size (3)."),
                (["-dp", "16", "-ep"], "Tensor parallel size 16 is greater than the number of "
                                       "experts 8."),
                (["-tp", "0"], "--tensor-parallel-size must be from 1 to 1024, got 0"),
                (["-pp", "2"], "layers are not split over ranks"),
                (["-dp", "2", "--all2all-backend", "all_to_all"], "add --enable-expert-parallel"),
                (["-ep", "-tp", "2", "--expert-placement-strategy", "random"],
                 "linear,round_robin")):
            with self.subTest(flags):
                self.assertIn(text, refused(self.model, *flags)[1])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(process):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Followers:
    """Processes of node rank 1 and up, started before node rank 0; ended with the `with` block."""

    def __init__(self, model, flags, count=2, port=None, prefix=()):
        self.flags = ["--nnodes", count, "--master-port", port or free_port(), *flags]
        self.processes = [subprocess.Popen(
            [*prefix, BINARY, "serve", str(model), "--node-rank", str(rank), *map(str, self.flags)],
            stderr=subprocess.PIPE, text=True) for rank in range(1, count)]
        self.logs = ["" for _ in self.processes]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        self.ends(10)

    def ends(self, seconds):
        """Exit codes, once all have ended within the time."""
        until = time.monotonic() + seconds
        codes = [process.wait(timeout=max(0.1, until - time.monotonic()))
                 for process in self.processes]
        for i, process in enumerate(self.processes):
            if not process.stderr.closed:
                self.logs[i] = process.stderr.read()
                process.stderr.close()
        return codes


class Stream(threading.Thread):
    """A long streamed completion; its events, and when the last came."""

    def __init__(self, server):
        super().__init__()
        self.server, self.events, self.ended = server, [], None
        self.begun = threading.Event()
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "a long story", "max_tokens": 4000, "ignore_eos": True, "stream": True,
             "temperature": 0}), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        try:
            for line in reply:
                if line.startswith(b"data: "):
                    self.events.append(line[6:].strip().decode())
                    self.begun.set()
        except (OSError, http.client.HTTPException):
            pass
        self.ended = time.monotonic()
        connection.close()


class Processes(WithModel):
    """The ranks of one engine in several processes."""

    def test_two_processes_write_what_one_rank_writes(self):
        for flags in (["-tp", 2], ["-tp", 8], ["-tp", 8, "-ep"]):
            with self.subTest(flags), Followers(self.model, flags) as others:
                with Server(self.model, *others.flags) as server:
                    self.assertEqual(texts(server), self.expected)
                    server.process.send_signal(signal.SIGTERM)
                    self.assertEqual(server.process.wait(timeout=10), 0)
                self.assertEqual(others.ends(10), [0], others.logs)

    def lose(self, how, deadline_seconds, within, words):
        """Sends `how` to the second of three processes in the middle of a stream."""
        flags = ["-tp", 4, "-ep", "--rank-deadline-seconds", deadline_seconds]
        with Followers(self.model, flags, count=4) as others:
            with Server(self.model, *others.flags) as server:
                stream = Stream(server)
                self.assertTrue(stream.begun.wait(20))
                others.processes[1].send_signal(how)
                start = time.monotonic()
                while server.request("GET", "/health")[0] == 200:
                    self.assertLess(time.monotonic() - start, within, "health")
                    time.sleep(0.05)
                self.assertLess(time.monotonic() - start, within)
                stream.join(within + 1)
                self.assertIsNotNone(stream.ended)
                self.assertLess(stream.ended - start, within)
                error = json.loads(stream.events[-2])
                self.assertIn("process 2 (127.0.0.1)", error["error"]["message"])
                self.assertRegex(error["error"]["message"], words)
                self.assertEqual(stream.events[-1], "[DONE]")
                self.assertEqual(server.process.wait(timeout=10), 1)
            others.processes[1].kill()
            codes = others.ends(10)
            self.assertEqual((codes[0], codes[2]), (1, 1), others.logs)

    def test_a_killed_process_is_told_to_every_client(self):
        self.lose(signal.SIGKILL, 30, 2, "is gone: its connection ended during [a-z_]+ [0-9]+")

    def test_a_stopped_process_is_named_with_its_collective(self):
        self.lose(signal.SIGSTOP, 2, 5, "did not answer [a-z_]+ [0-9]+ within 2 s")

    def test_an_idle_server_notices_a_killed_process(self):
        with Followers(self.model, ["-tp", 2]) as others:
            with Server(self.model, *others.flags) as server:
                self.assertEqual(server.request("GET", "/health")[0], 200)
                others.processes[0].kill()
                time.sleep(2)
                self.assertEqual(server.request("GET", "/health")[0], 503)
                self.assertEqual(server.process.wait(timeout=10), 1)

    def test_followers_end_with_a_killed_first_process(self):
        with Followers(self.model, ["-tp", 2]) as others:
            with Server(self.model, *others.flags) as server:
                server.process.kill()
                server.process.wait()
            self.assertEqual(others.ends(10), [1])
            self.assertIn("is gone", others.logs[0])

    def test_wrong_pairings_are_refused_in_words_on_both_sides(self):
        for mine, theirs, name in ((["-tp", 2], ["-tp", 4], "tensor-parallel-size differs"),
                                   (["-tp", 2], ["-tp", 2, "--max-model-len", 128],
                                    "max-model-len differs"),
                                   (["-tp", 2], ["-tp", 2, "--hf-overrides", '{"rope_theta": 9}'],
                                    "config.json differs")):
            port = free_port()
            with self.subTest(name), Followers(self.model, theirs, port=port) as others:
                _, log = refused(self.model, "--nnodes", "2", "--master-port", str(port),
                                 *map(str, mine))
                self.assertIn(name, log)
                self.assertEqual(others.ends(10), [1])
                self.assertIn(name, others.logs[0])
        for flags, words in ((["-tp", "3", "--nnodes", "2"], "attention heads"),
                             (["-tp", "1", "--nnodes", "2"], "cannot be shared evenly"),
                             (["-tp", "2", "--nnodes", "2", "--node-rank", "2"], "--node-rank 2"),
                             (["-tp", "2", "--nnodes", "2", "--rank-start-seconds", "1",
                               "--master-port", str(free_port())], "not all 2 processes came"),
                             (["-dp", "2", "-ep", "-dpn", "1"], "not supported yet")):
            with self.subTest(flags):
                self.assertIn(words, refused(self.model, *flags)[1])

    def test_two_hosts(self):
        """Node rank 1 in a network of its own, as another machine would be."""
        name = f"m2-{os.getpid()}"
        address = f"10.213.{os.getpid() % 200}"
        setup = [["ip", "netns", "add", name],
                 ["ip", "link", "add", f"v{os.getpid()}", "type", "veth", "peer", "name", "far",
                  "netns", name],
                 ["ip", "addr", "add", f"{address}.1/24", "dev", f"v{os.getpid()}"],
                 ["ip", "link", "set", f"v{os.getpid()}", "up"],
                 ["ip", "-n", name, "addr", "add", f"{address}.2/24", "dev", "far"],
                 ["ip", "-n", name, "link", "set", "far", "up"]]
        try:
            for command in setup:
                try:
                    subprocess.run(command, check=True, capture_output=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    self.skipTest(f"no privileges for network namespaces: {error}")
            flags = ["-tp", 4, "--master-addr", f"{address}.1"]
            with Followers(self.model, flags, prefix=["ip", "netns", "exec", name]) as others:
                with Server(self.model, *others.flags) as server:
                    self.assertEqual(texts(server), self.expected)
                self.assertEqual(others.ends(10), [0], others.logs)
        finally:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            subprocess.run(["ip", "link", "del", f"v{os.getpid()}"], capture_output=True)

    @unittest.skipUnless(shutil.which("mpirun"), "mpirun is not installed")
    def test_mpirun(self):
        mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe"]
        for processes, flags in ((2, ["-tp", 2]), (4, ["-tp", 4]), (2, ["-tp", 8, "-ep"])):
            with self.subTest(flags):
                prefix = [*mpirun, "-np", str(processes)]
                with Server(self.model, *flags, prefix=prefix) as server:
                    self.assertEqual(texts(server), self.expected)
                    server.process.send_signal(signal.SIGTERM)
                    server.process.wait(timeout=15)
        # Programs of different terms.
        done = subprocess.run(
            [*mpirun, "-np", "1", BINARY, "serve", self.model, "-tp", "2", "--port", "0", ":",
             "-np", "1", BINARY, "serve", self.model, "-tp", "2", "--max-model-len", "64"],
            capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("differs in max-model-len", done.stderr)

    @unittest.skipUnless(shutil.which("mpirun"), "mpirun is not installed")
    def test_mpirun_with_a_killed_process(self):
        prefix = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
        with Server(self.model, "-tp", 2, prefix=prefix) as server:
            stream = Stream(server)
            self.assertTrue(stream.begun.wait(20))
            children = subprocess.run(["pgrep", "-P", str(server.process.pid), "m2"],
                                      capture_output=True, text=True).stdout.split()
            self.assertEqual(len(children), 2)
            start = time.monotonic()
            os.kill(max(map(int, children)), signal.SIGKILL)
            stream.join(5)
            self.assertIsNotNone(stream.ended)
            self.assertLess(stream.ended - start, 5)
            self.assertIn("error", json.loads(stream.events[-2]))
            self.assertNotEqual(server.process.wait(timeout=10), 0)
            until = time.monotonic() + 10
            while any(map(alive, children)):
                self.assertLess(time.monotonic(), until, "orphans")
                time.sleep(0.1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
