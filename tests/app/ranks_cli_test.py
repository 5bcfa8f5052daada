"""`m2 serve` on many ranks, as a person starts them: arguments BINARY SOURCE_DIR DATA_DIR [TEST].

What one rank writes greedily, every other arrangement must write too."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from serve_process import BINARY, SOURCE, Server, make_checkpoint, refused  # noqa: E402

DATA = pathlib.Path(sys.argv[3])
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


def logprobs(server):
    """Of every token of a prompt and its continuation."""
    reply = server.request("POST", "/v1/completions", {
        "prompt": PROMPTS[1], "max_tokens": 8, "temperature": 0, "logprobs": 3, "echo": True})[1]
    return reply["choices"][0]["logprobs"]["token_logprobs"][1:]


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
            cls.logprobs = logprobs(server)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def same_logprobs(self, server):
        """Within what sums in another order move (exchange_test.cc has the logits themselves)."""
        for one, expected in zip(logprobs(server), self.logprobs, strict=True):
            self.assertAlmostEqual(one, expected, delta=0.02)


def guide_lines():
    """The guide's launches: the words of every `vllm serve` line, continuation lines joined."""
    guide = (DATA / "../docs/guide.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in guide.splitlines() if line.startswith("vllm serve")]


class Micro(unittest.TestCase):
    """The trained model answers the golden words however it is spread."""

    model = SOURCE / "models/m2-micro"
    goldens = json.loads((SOURCE / "tests/golden/micro/answers.json").read_text())[:3]

    def check(self, server):
        answers = [None] * len(self.goldens)

        def ask(i):
            reply = server.request("POST", "/v1/chat/completions", {
                "messages": self.goldens[i]["messages"], "temperature": 0})[1]
            answers[i] = reply["choices"][0]["message"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(self.goldens))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for golden, message in zip(self.goldens, answers):
            answer = golden["answer"]
            if message["reasoning"] is None:  # minimax_m2_append_think: all of it is content
                self.assertEqual(message["content"], f"<think>{answer['reasoning']}\n</think>\n\n"
                                                     f"{answer['content']}")
            else:
                self.assertEqual((message["reasoning"], message["content"]),
                                 (answer["reasoning"], answer["content"]))

    def test_the_guides_lines_verbatim(self):
        """Word for word, but for the program's name, the model's, and a port that is free."""
        if not (DATA / "../docs/guide.md").exists():
            self.skipTest("the guide is not here")
        lines = guide_lines()
        self.assertEqual(len(lines), 5)
        for words in lines:
            self.assertEqual(words[:3], ["vllm", "serve", "MiniMaxAI/MiniMax-M2.5"])
            with self.subTest(words), Server(self.model, *words[3:]) as server:
                self.check(server)
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(timeout=10), 0)

    def test_other_spreads(self):
        for flags in (["-tp", 2], ["-tp", 8], ["-tp", 2, "-ep"], ["-dp", 2], ["-dp", 2, "-ep"],
                      ["-dp", 2, "-tp", 2, "-ep", "--all2all-backend", "all_to_all"]):
            with self.subTest(flags), Server(self.model, *flags) as server:
                self.check(server)


class Plan(unittest.TestCase):
    def test_a_plan_takes_less_than_a_second(self):
        """Without a look at weights: the best of three, for a busy machine's sake."""
        config = DATA / "config.m2.5.assembled.json"
        if not config.exists():
            self.skipTest(f"no {config}")
        times = []
        for _ in range(3):
            start = time.monotonic()
            done = subprocess.run([BINARY, "plan", config, "--gpus", "4x96G", "8x144G"],
                                  capture_output=True, text=True)
            times.append(time.monotonic() - start)
            self.assertEqual(done.returncode, 0, done.stderr)
            for words in ("weights 230.12 GB", "int4/fp8", "fp8/fp8", "4x96G: m2 serve",
                          "8x144G: m2 serve"):
                self.assertIn(words, done.stdout)
        self.assertLess(min(times), 1)


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


def listening(process):
    """Where a process listens: (address, port) of every TCP socket, IPv6 as its hexadecimal digits."""
    owned = set()
    for fd in pathlib.Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            owned.add(os.readlink(fd))
    out = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            local, _, state, *rest = line.split()[1:]
            if state == "0A" and f"socket:[{rest[5]}]" in owned:
                address, port = local.split(":")
                if table == "tcp":
                    address = ".".join(str(b) for b in reversed(bytes.fromhex(address)))
                out.add((address, int(port, 16)))
    return out


# Of openmpi-bin, which tools/setup test installs.
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe"]


class FarHost:
    """A network namespace that stands for another machine; skips the test if none may be made."""

    def __init__(self, test):
        self.name = f"m2-{os.getpid()}"
        self.link = f"v{os.getpid()}"
        net = f"10.213.{os.getpid() % 200}"
        self.address = f"{net}.1"  # of this machine, seen from there
        self.prefix = ["ip", "netns", "exec", self.name]
        self.setup = [["ip", "netns", "add", self.name],
                      ["ip", "link", "add", self.link, "type", "veth", "peer", "name", "far",
                       "netns", self.name],
                      ["ip", "addr", "add", f"{net}.1/24", "dev", self.link],
                      ["ip", "link", "set", self.link, "up"],
                      ["ip", "-n", self.name, "addr", "add", f"{net}.2/24", "dev", "far"],
                      ["ip", "-n", self.name, "link", "set", "far", "up"],
                      ["ip", "-n", self.name, "link", "set", "lo", "up"]]
        self.test = test

    def __enter__(self):
        for command in self.setup:
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                self.__exit__()
                said = getattr(error, "stderr", b"").decode()
                if os.geteuid() == 0 and "not permitted" not in said:
                    raise
                self.test.skipTest(f"network namespaces need root and its privileges: {said}")
        return self

    def __exit__(self, *_):
        for command in (["ip", "netns", "del", self.name], ["ip", "link", "del", self.link]):
            try:
                subprocess.run(command, capture_output=True)
            except OSError:
                pass

    def processes(self, name):
        """Process ids over there that run a program of this name."""
        ids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True,
                             text=True).stdout.split()
        comm = {i: pathlib.Path(f"/proc/{i}/comm").read_text().strip() for i in ids if alive(i)}
        return [i for i, program in comm.items() if program == name]


class Followers:
    """Processes of node rank 1 and up, started before node rank 0; ended with the `with` block."""

    def __init__(self, model, flags, count=2, port=None, prefix=(), own=()):
        self.flags = ["--nnodes", count, "--master-port", port or free_port(), *flags]
        self.start(model, [["--node-rank", rank, *own, *self.flags] for rank in range(1, count)], prefix)

    def start(self, model, flags_of, prefix):
        self.processes = [subprocess.Popen(
            [*prefix, BINARY, "serve", str(model), *map(str, flags)], stderr=subprocess.PIPE, text=True)
            for flags in flags_of]
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


class Headless(Followers):
    """Processes of engines that another one serves; `shares` are their numbers, the first's ahead."""

    def __init__(self, model, shares, flags):
        common = ["-dp", sum(shares), "--data-parallel-rpc-port", free_port(), *flags]
        self.flags = [*common, "-dpl", shares[0]]
        firsts = [sum(shares[:i]) for i in range(len(shares))]
        self.start(model, [["--headless", "-dpr", first, "-dpl", share, *common]
                           for first, share in zip(firsts[1:], shares[1:])], ())


class Servers:
    """Processes that serve engines of their own, each on its port: flags_of[i] are process i's."""

    def __init__(self, model, flags_of):
        self.servers = [None] * len(flags_of)
        self.failed = []

        def start(i):
            try:
                self.servers[i] = Server(model, *flags_of[i])
            except RuntimeError as error:
                self.failed.append(str(error))

        threads = [threading.Thread(target=start, args=(i,)) for i in range(len(flags_of))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.failed, self.failed

    def __enter__(self):
        return self.servers

    def __exit__(self, *_):
        for server in self.servers:  # all first: they end together
            if server and server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
        for server in self.servers:
            if server:
                server.__exit__()


class Stream(threading.Thread):
    """A long streamed completion; its events, and when the last came."""

    def __init__(self, server, headers=None):
        super().__init__()
        self.server, self.events, self.ended = server, [], None
        self.headers = {"Content-Type": "application/json", **(headers or {})}
        self.begun = threading.Event()
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "a long story", "max_tokens": 4000, "ignore_eos": True, "stream": True,
             "temperature": 0}), self.headers)
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


GONE = "is gone: its connection ended during [a-z_]+ [0-9]+"


class Processes(WithModel):
    """The ranks of one engine in several processes."""

    def test_two_processes_write_what_one_rank_writes(self):
        for flags, own in ((["-tp", 2], ["--headless"]), (["-tp", 8], []), (["-tp", 8, "-ep"], [])):
            with self.subTest(flags), Followers(self.model, flags, own=own) as others:
                with Server(self.model, *others.flags) as server:
                    self.assertEqual(texts(server), self.expected)
                    server.process.send_signal(signal.SIGTERM)
                    self.assertEqual(server.process.wait(timeout=10), 0)
                self.assertEqual(others.ends(10), [0], others.logs)

    def test_ports_listen_only_where_told_and_only_until_all_have_come(self):
        port = free_port()
        flags = ["-tp", "2", "--nnodes", "2", "--master-port", str(port)]
        waiting = subprocess.Popen([BINARY, "serve", self.model, "--host", "127.0.0.1", "--port", "0",
                                    *flags], stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while ("127.0.0.1", port) not in listening(waiting.pid):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.05)
        found = listening(waiting.pid)
        self.assertEqual((len(found), {address for address, _ in found}), (2, {"127.0.0.1"}))
        waiting.kill()
        waiting.wait()
        with Followers(self.model, ["-tp", 4], count=4) as others:
            with Server(self.model, *others.flags) as server:
                self.assertEqual(listening(server.process.pid), {("127.0.0.1", server.port)})
                for other in others.processes:
                    self.assertEqual(listening(other.pid), set())

    def lose(self, how, deadline_seconds, within, words, clients=1):
        """Sends `how` to the second of three processes in the middle of streams."""
        flags = ["-tp", 4, "-ep", "--rank-deadline-seconds", deadline_seconds]
        with Followers(self.model, flags, count=4) as others:
            with Server(self.model, *others.flags) as server:
                streams = [Stream(server) for _ in range(clients)]
                for stream in streams:
                    self.assertTrue(stream.begun.wait(20))
                others.processes[1].send_signal(how)
                start = time.monotonic()
                while server.request("GET", "/health")[0] == 200:
                    self.assertLess(time.monotonic() - start, within, "health")
                    time.sleep(0.05)
                health = time.monotonic() - start
                self.assertLess(health, within)
                for stream in streams:
                    stream.join(within + 1)
                    self.assertIsNotNone(stream.ended)
                    self.assertLess(stream.ended - start, within)
                    error = json.loads(stream.events[-2])
                    self.assertIn("process 2 (127.0.0.1)", error["error"]["message"])
                    self.assertRegex(error["error"]["message"], words)
                    self.assertEqual(stream.events[-1], "[DONE]")
                self.assertEqual(server.process.wait(timeout=10), 1)
            if how == signal.SIGSTOP:
                others.processes[1].send_signal(signal.SIGCONT)
            codes = others.ends(10 - (time.monotonic() - start))
            self.assertEqual((codes[0], codes[2]), (1, 1), others.logs)
            self.assertNotEqual(codes[1], 0)
            return health, max(stream.ended for stream in streams) - start

    def test_a_killed_process_is_told_to_every_client(self):
        self.lose(signal.SIGKILL, 30, 2, GONE, clients=4)

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
                               "--master-port", str(free_port())], "not all 2 ranks came")):
            with self.subTest(flags):
                self.assertIn(words, refused(self.model, *flags)[1])

    def test_two_hosts(self):
        """Node rank 1 in a network of its own, as another machine would be."""
        with FarHost(self) as far:
            flags = ["-tp", 4, "--master-addr", far.address]
            with Followers(self.model, flags, prefix=far.prefix) as others:
                with Server(self.model, *others.flags) as server:
                    self.assertEqual(texts(server), self.expected)
                self.assertEqual(others.ends(10), [0], others.logs)

    def test_two_hosts_with_mpirun(self):
        """mpirun starts the second process where it takes the other host to be, without ssh."""
        with FarHost(self) as far, tempfile.TemporaryDirectory() as folder:
            agent = pathlib.Path(folder) / "agent"
            agent.write_text(f'#!/bin/sh\nshift\nexec {" ".join(far.prefix)} unshare --uts '
                             'sh -c "hostname far; $*"\n')
            agent.chmod(0o755)
            network = far.address.rsplit(".", 1)[0] + ".0/24"
            prefix = [*MPIRUN, "-np", "2", "--host", f"{socket.gethostname()}:1,far:1",
                      "--mca", "plm_rsh_agent", str(agent), "--mca", "oob_tcp_if_include", network,
                      "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", network]
            for flags in (["-tp", 4], ["-dp", 2, "-tp", 2, "-ep"]):
                with self.subTest(flags), Server(self.model, *flags, prefix=prefix) as server:
                    self.assertEqual(texts(server), self.expected)
                    self.assertEqual(len(far.processes("m2")), 1)
                    server.process.send_signal(signal.SIGTERM)
                    server.process.wait(timeout=15)

    def test_mpirun(self):
        for processes, flags in ((2, ["-tp", 2]), (4, ["-tp", 4]), (2, ["-tp", 8, "-ep"]),
                                 (4, ["-dp", 2, "-tp", 2, "-ep"]), (3, ["-dp", 3])):
            with self.subTest((processes, flags)):
                prefix = [*MPIRUN, "-np", str(processes)]
                with Server(self.model, *flags, prefix=prefix) as server:
                    self.assertEqual(texts(server), self.expected)
                    self.same_logprobs(server)
                    server.process.send_signal(signal.SIGTERM)
                    server.process.wait(timeout=15)
        # Programs of different terms.
        done = subprocess.run(
            [*MPIRUN, "-np", "1", BINARY, "serve", self.model, "-tp", "2", "--port", "0", ":",
             "-np", "1", BINARY, "serve", self.model, "-tp", "2", "--max-model-len", "64"],
            capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("differs in max-model-len", done.stderr)

    def test_mpirun_with_a_killed_process(self):
        prefix = [*MPIRUN, "-np", "2"]
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


class Faults(Processes):
    """The label `long`: faults again and again, at whatever moment they come."""

    def test_killed_and_stopped_ten_times_each(self):
        for round_ in range(10):
            with self.subTest(round_):
                killed = self.lose(signal.SIGKILL, 30, 2, GONE, clients=5)
                stopped = self.lose(signal.SIGSTOP, 2, 5, "did not answer [a-z_]+ [0-9]+ within 2 s",
                                    clients=5)
                print("killed: health %.2f s, clients %.2f s; stopped: %.2f s, %.2f s" %
                      (*killed, *stopped), flush=True)


class EngineProcesses(WithModel):
    """Engines that share experts, in several processes."""

    def on_every_engine(self, server, engines):
        for engine in range(engines):
            reply = server.request("POST", "/v1/completions", {
                "prompt": PROMPTS[0], "max_tokens": 10, "temperature": 0},
                {"X-data-parallel-rank": str(engine)})
            self.assertEqual(reply[1]["choices"][0]["text"], self.expected[0], engine)

    def test_headless_processes_are_served_by_the_first(self):
        for shares, flags in (([2, 2], ["-ep"]), ([1, 1], ["-tp", 2, "-ep"]), ([1, 1, 1], []),
                              ([1, 1], ["-ep", "--all2all-backend", "pplx"]),
                              ([1, 2], ["-ep"]), ([2, 1, 3], []),  # uneven
                              ([0, 2, 1], ["-ep"]), ([0, 2], ["-tp", 2])):  # a front alone
            engines = sum(shares)
            with self.subTest((shares, flags)), Headless(self.model, shares, flags) as others:
                with Server(self.model, *others.flags) as server:
                    self.assertEqual(texts(server), self.expected)
                    self.same_logprobs(server)
                    self.on_every_engine(server, engines)
                    metrics = server.request("GET", "/metrics")[1]
                    for engine in range(engines):
                        self.assertTrue(f'vllm:num_requests_running{{model_name="{self.model}",'
                                        f'engine="{engine}"}} ' in metrics)
                    server.process.send_signal(signal.SIGTERM)
                    self.assertEqual(server.process.wait(timeout=10), 0)
                self.assertEqual(others.ends(10), [0] * (len(shares) - 1), others.logs)

    def test_nodes_share_engines_and_their_ranks(self):
        """One process a rank: engine 1's first rank is the third process."""
        with Followers(self.model, ["-dp", 2, "-tp", 2, "-ep"], count=4) as others:
            with Server(self.model, *others.flags) as server:
                self.assertEqual(texts(server), self.expected)
                self.on_every_engine(server, 2)
            self.assertEqual(others.ends(10), [0, 0, 0], others.logs)

    def test_every_process_with_a_port_of_its_own(self):
        port = ["--data-parallel-rpc-port", free_port(), "-dp", 3, "-ep"]
        with Servers(self.model, [[*port, "--data-parallel-rank", i] for i in range(3)]) as servers:
            for i, server in enumerate(servers):  # one works, the others step along
                self.assertEqual(texts(server), self.expected)
                status, reply = server.request("POST", "/v1/completions", {"prompt": "x"},
                                               {"X-data-parallel-rank": str((i + 1) % 3)})
                self.assertEqual((status, reply["error"]["message"]),
                                 (400, f"data_parallel_rank {(i + 1) % 3} is out of range "
                                       f"[{i}, {i + 1})."))
                self.assertIn(f'engine="{i}"', server.request("GET", "/metrics")[1])
            # All work at once.
            out = [None] * 3
            threads = [threading.Thread(target=lambda i=i: out.__setitem__(i, texts(servers[i])))
                       for i in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(out, [self.expected] * 3)
            # One that is told to end works on for the others until they end too.
            servers[0].process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            self.assertEqual(texts(servers[1]), self.expected)
            for server in servers[1:]:
                server.process.send_signal(signal.SIGTERM)
            self.assertEqual([server.process.wait(timeout=10) for server in servers], [0] * 3)

    def test_some_engines_behind_each_port(self):
        for shares in ([2, 2], [1, 3]):
            common = ["-dph", "-dp", 4, "-dpp", free_port()]
            firsts = [0, shares[0]]
            with self.subTest(shares), Servers(self.model, [
                    [*common, "-dpr", first, "-dpl", share]
                    for first, share in zip(firsts, shares)]) as servers:
                for first, share, server in zip(firsts, shares, servers):
                    self.assertEqual(texts(server), self.expected)
                    metrics = server.request("GET", "/metrics")[1]
                    self.assertEqual(sorted(set(re.findall(r'engine="(\d)"', metrics))),
                                     [str(first + i) for i in range(share)])
                    status, _ = server.request("POST", "/v1/completions", {"prompt": "x"},
                                               {"X-data-parallel-rank": str(first + share - 1)})
                    self.assertEqual(status, 200)

    def test_a_lost_engine_is_told_everywhere(self):
        for how, words in ((signal.SIGKILL, GONE),
                           (signal.SIGSTOP, "did not answer [a-z_]+ [0-9]+ within 2 s")):
            self.lose(how, words, [1, 1])

    def test_a_front_alone_tells_of_lost_engines(self):
        """Nobody steps together with them but they themselves."""
        self.lose(signal.SIGKILL, GONE, [0, 2])
        self.lose(signal.SIGSTOP, "did not answer [a-z_]+ [0-9]+ within 2 s", [0, 2])

    def test_engines_end_with_a_killed_front(self):
        for shares in ([1, 1], [0, 1, 1]):
            with self.subTest(shares), Headless(self.model, shares, ["-ep"]) as others:
                with Server(self.model, *others.flags) as server:
                    server.process.kill()
                    server.process.wait()
                self.assertEqual(others.ends(10), [1] * (len(shares) - 1))

    def lose(self, how, words, shares):
        flags = ["-ep", "--rank-deadline-seconds", 2]
        with self.subTest((how, shares)), Headless(self.model, shares, flags) as others:
            with Server(self.model, *others.flags) as server:
                streams = [Stream(server, {"X-data-parallel-rank": str(i)}) for i in range(2)]
                for stream in streams:
                    self.assertTrue(stream.begun.wait(20))
                start = time.monotonic()
                others.processes[0].send_signal(how)
                for stream in streams:
                    stream.join(6)
                    self.assertIsNotNone(stream.ended)
                    self.assertLess(stream.ended - start, 5)
                    self.assertRegex(json.loads(stream.events[-2])["error"]["message"],
                                     r"process 1 \(127.0.0.1\) " + words)
                self.assertEqual(server.request("GET", "/health")[0], 503)
                self.assertEqual(server.process.wait(timeout=10), 1)
            others.processes[0].send_signal(signal.SIGCONT)
            others.ends(10)

    def test_a_killed_server_of_another_engine_is_noticed(self):
        port = ["--data-parallel-rpc-port", free_port(), "-dp", 2, "-ep"]
        with Servers(self.model, [[*port, "-dpn", 0], [*port, "-dpn", 1]]) as servers:
            servers[0].process.kill()
            servers[0].process.wait()
            start = time.monotonic()
            while servers[1].request("GET", "/health")[0] == 200:
                self.assertLess(time.monotonic() - start, 2)
                time.sleep(0.05)
            self.assertEqual(servers[1].process.wait(timeout=10), 1)

    def test_impossible_arrangements_are_refused_in_words(self):
        for flags, words in (
                (["-dp", "4", "-dpl", "2", "-dpr", "2"], "add --headless here"),
                (["-tp", "2", "--headless"], "this process holds engine 0"),
                (["-dp", "4", "-dpl", "5"], "is not from 0 to the 4 of --data-parallel-size"),
                (["-dp", "4", "-dpl", "-1"], "is not from 0 to the 4 of --data-parallel-size"),
                (["-dp", "4", "-dpl", "2", "-dpr", "3", "--headless"], "go beyond the 4 engines"),
                (["-dp", "1", "-dpl", "0"], "not with --data-parallel-size 1"),
                (["-dp", "4", "-dpl", "0", "-dph"], "not with --data-parallel-hybrid-lb"),
                (["-dp", "4", "-dpl", "0", "--headless"], "not with --headless"),
                (["-dp", "4", "-dph"], "--data-parallel-hybrid-lb needs --data-parallel-size-local"),
                (["-dp", "4", "-dpe"], "--data-parallel-external-lb needs --data-parallel-rank"),
                (["-dp", "4", "-dpn", "4"], "data_parallel_rank 4 is out of range [0, 4)."),
                (["-dp", "4", "-dpn", "1", "-dph", "-dpl", "1"], "exclude each other"),
                (["-dp", "4", "-dpn", "1", "--headless"], "this process holds engine 1"),
                (["-dp", "4", "-dpl", "2", "--nnodes", "2"], "either by --nnodes"),
                (["-dp", "4", "-dpl", "2", "-dpr", "2", "--headless", "-asc", "2"],
                 "api_server_count=2 cannot be used with --headless"),
                (["-dp", "2", "-ep", "--all2all-backend", "carrier_pigeon"],
                 "--all2all-backend carrier_pigeon (chose from {")):
            with self.subTest(flags):
                self.assertIn(words, refused(self.model, *flags)[1])
        common = ["-dp", "2", "-dpp", str(free_port())]
        other = subprocess.Popen([BINARY, "serve", self.model, *common, "-dpl", "1", "-dpr", "1",
                                  "--headless"], stderr=subprocess.PIPE, text=True)
        _, log = refused(self.model, *common, "-dpn", "0")
        self.assertIn("data-parallel load balancing differs", log)
        self.assertEqual(other.wait(timeout=10), 1)
        self.assertIn("data-parallel load balancing differs", other.stderr.read())
        other.stderr.close()


class EngineFaults(EngineProcesses):
    """The label `long`: which of a process's ranks hears first of a lost peer is chance."""

    def test_a_front_alone_ten_times(self):
        for _ in range(10):
            self.test_a_front_alone_tells_of_lost_engines()

    def test_any_process_of_any_arrangement(self):
        """Whichever is lost, and however: the others end by themselves, and so do their streams."""
        for kind, shape, flags in (
                ("nodes", 2, ["-tp", 4]), ("nodes", 2, ["-dp", 4, "-ep"]),
                ("nodes", 2, ["-dp", 2, "-tp", 4, "-ep"]), ("nodes", 4, ["-dp", 2, "-tp", 2, "-ep"]),
                ("headless", [1, 1], []), ("headless", [2, 2], ["-ep"]),
                ("headless", [0, 2], ["-tp", 2]), ("headless", [0, 2, 1], ["-ep"]),
                ("headless", [1, 2], ["-ep", "--all2all-backend", "pplx"]),
                ("headless", [1, 1], ["-tp", 2, "-ep"]), ("ports", 3, ["-ep"])):
            count = len(shape) if kind == "headless" else shape
            for victim in range(count):
                for how in (signal.SIGKILL, signal.SIGSTOP):
                    with self.subTest((kind, shape, flags, victim, how)):
                        self.lose_one(kind, shape, flags, victim, how)

    def lose_one(self, kind, shape, flags, victim, how):
        flags = [*flags, "--rank-deadline-seconds", 2]
        with self.started(kind, shape, flags) as (servers, processes):
            streams = [Stream(server) for server in servers for _ in range(3)]
            for stream in streams:
                self.assertTrue(stream.begun.wait(20))
            processes[victim].send_signal(how)
            others = processes[:victim] + processes[victim + 1:]
            until = time.monotonic() + 12
            try:
                codes = [process.wait(timeout=max(0.1, until - time.monotonic()))
                         for process in others]
            finally:
                processes[victim].send_signal(signal.SIGCONT)
            self.assertEqual(codes, [1] * len(others))
            self.assertNotEqual(processes[victim].wait(timeout=10), 0)
            for stream in streams:
                stream.join(5)
                self.assertIsNotNone(stream.ended)

    @contextlib.contextmanager
    def started(self, kind, shape, flags):
        """The servers and all processes, those of the servers first."""
        if kind == "ports":
            common = ["--data-parallel-rpc-port", free_port(), "-dp", shape, *flags]
            with Servers(self.model, [[*common, "-dpn", i] for i in range(shape)]) as servers:
                yield servers, [server.process for server in servers]
            return
        others = (Headless(self.model, shape, flags) if kind == "headless" else
                  Followers(self.model, flags, count=shape))
        with others, Server(self.model, *others.flags) as server:
            yield [server], [server.process, *others.processes]


def load_tests(loader, _, __):
    """All but the long ones, unless they are named."""
    cases = (Plan, Micro, Ranks, Processes, EngineProcesses)
    return unittest.TestSuite(map(loader.loadTestsFromTestCase, cases))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
