"""Options from outside the command line, completion and the manual page: arguments BINARY SOURCE_DIR."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY, SOURCE = sys.argv[1], sys.argv[2]


def m2(*words, env=None):
    return subprocess.run([BINARY, *words], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **(env or {})})


class ConfigFile(unittest.TestCase):
    """What a file and the environment say, seen in the log of a start that then finds no model."""

    def arguments(self, text, *flags, env=None):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "serve.yaml")
            with open(path, "w") as file:
                file.write(text)
            done = m2("serve", "/nowhere/model", "--config", path, *flags, env=env)
        self.assertEqual(done.returncode, 1)
        found = re.search(r"non-default args: (\{.*\})", done.stderr)
        return found.group(1) if found else done.stderr

    def test_forms(self):
        said = self.arguments(
            "max-num-seqs: 32\nmax_model_len: 4k\nserved-model-name: [a, b]\n"
            "enable-prefix-caching: false\ncompilation-config:\n  cudagraph_mode: PIECEWISE\n"
            "  pass_config: {fuse: true, n: 3, s: '3'}\nhf-overrides: '{\"x\": 1}'\n")
        for part in ('"max-num-seqs":32', '"max-model-len":4000', '"served-model-name":["a","b"]',
                     '"enable-prefix-caching":false', '"hf-overrides":{"x":1}',
                     '"cudagraph_mode":"PIECEWISE"', '"pass_config":{"fuse":true,"n":3,"s":"3"}'):
            self.assertIn(part, said)

    def test_the_line_wins_over_the_file_and_that_over_the_environment(self):
        said = self.arguments("port: 1\nmax-num-seqs: 2\n", "--port", "3",
                              env={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "9"})
        for part in ('"port":3', '"max-num-seqs":2', '"keep-alive-seconds":9'):
            self.assertIn(part, said)

    def test_mistakes_are_named(self):
        for text, word in (("prot: 1\n", "--prot"), ("port: abc\n", "port"),
                           ("port: {a: 1}\n", "port"), ("- a\n", "option: value"),
                           ("a: [1\n", "serve.yaml")):
            self.assertIn(word, self.arguments(text))

    def test_secrets_are_not_logged(self):
        done = m2("serve", "/nowhere", "--api-key", "sk-canary", "--hf-token", "hf-canary")
        self.assertNotIn("canary", done.stderr)
        self.assertIn('"api-key":"***"', done.stderr)

    def test_what_has_no_effect_is_said(self):
        done = m2("serve", "/nowhere", "--trust-remote-code", "--middleware", "x",
                  env={"VLLM_USE_FLASHINFER_MOE_FP8": "0", "VLLM_TYPO": "1"})
        for line in ("--trust-remote-code has no effect here: ", "--middleware has no effect here: ",
                     "VLLM_USE_FLASHINFER_MOE_FP8 has no effect here: ",
                     "VLLM_TYPO is not known here"):
            self.assertIn(line, done.stderr)


class Guide(unittest.TestCase):
    """Every launch line of the usage guide, as a shell reads it: no flag is unknown, and what stops
    it is that the model is not in the cache of this machine."""

    GUIDE = os.path.join(os.environ.get("M2_DATA_DIR", ""), "..", "docs", "guide.md")

    def launches(self):
        with open(self.GUIDE) as file:
            blocks = re.findall(r"^ *```bash\n(.*?)^ *```", file.read(), re.M | re.S)
        lines = [b.strip().replace("\\\n", " ") for b in blocks]
        for line in lines:
            if line.startswith("vllm serve "):
                yield line[len("vllm serve "):]
            elif line.startswith("docker run "):
                yield line.split("vllm/vllm-openai:nightly ", 1)[1]

    @unittest.skipUnless(os.path.exists(GUIDE), "the guide is not beside the data")
    def test_launch_lines(self):
        launches = list(self.launches())
        self.assertEqual(len(launches), 6)
        with tempfile.TemporaryDirectory() as cache:
            for line in launches:
                done = subprocess.run(["sh", "-c", f"exec {BINARY} serve {line}"], text=True,
                                      capture_output=True, timeout=60,
                                      env={**os.environ, "HF_HOME": cache,
                                           "VLLM_USE_FLASHINFER_MOE_FP8": "0"})
                self.assertEqual(done.returncode, 1)
                self.assertIn("serving model MiniMaxAI/MiniMax-M2.5", done.stderr)
                last = done.stderr.strip().splitlines()[-1]
                self.assertRegex(last, "MiniMaxAI/MiniMax-M2.5|only 1 is supported yet")
                self.assertNotIn("unknown option", done.stderr)
                self.assertIn("VLLM_USE_FLASHINFER_MOE_FP8 has no effect here", done.stderr)


class Documents(unittest.TestCase):
    def test_flags_that_documents_name_are_there(self):
        known = {name: set(re.findall(r"^  --([a-z0-9-]+)", m2(*name.split(), "--help=all").stdout, re.M))
                 for name in ("serve", "plan")}
        for page in ("docs/from-vllm.md", "docs/api.md"):
            with open(os.path.join(SOURCE, page)) as file:
                named = set(re.findall(r"--((?:no-)?[a-z][a-z0-9-]+)", file.read()))
            self.assertGreater(len(named), 5, page)
            for name in named:
                self.assertTrue(any({name, name.removeprefix("no-")} & options
                                    for options in known.values()), f"{page}: --{name}")


class Completion(unittest.TestCase):
    def script(self, shell):
        done = m2("completion", shell)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def check_syntax(self, shell, *flags):
        if not shutil.which(shell):
            self.skipTest(f"{shell} is not installed")
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(self.script(shell))
            file.flush()
            done = subprocess.run([shell, *flags, file.name], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def run_program(self, shell, program):
        """A file, because the scripts outgrow one argument of a command."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(program)
            file.flush()
            return subprocess.run([shell, file.name], capture_output=True, text=True)

    def bash(self, line):
        words = line.split(" ")
        program = self.script("bash") + (
            f'COMP_WORDS=({" ".join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}; _m2; '
            'printf "%s\\n" "${COMPREPLY[@]}"')
        done = self.run_program("bash", program)
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def test_bash(self):
        self.check_syntax("bash", "-n")
        self.assertEqual(self.bash("m2 ser"), ["serve"])
        self.assertEqual(self.bash("m2 serve --tensor"), ["--tensor-parallel-size"])
        self.assertEqual(self.bash("m2 serve --no-enable-pre"), ["--no-enable-prefix-caching"])
        self.assertEqual(self.bash("m2 inspect tok"), ["tokenize"])
        self.assertEqual(self.bash("m2 inspect render --id"), ["--ids"])

    def test_zsh(self):
        self.check_syntax("zsh", "-n")

    def test_fish(self):
        self.check_syntax("fish", "-n")
        if shutil.which("fish"):
            done = self.run_program(
                "fish", self.script("fish") + "\ncomplete -C 'm2 serve --tensor-par'\n")
            self.assertIn("--tensor-parallel-size", done.stdout, done.stderr)

    def test_every_command_is_there(self):
        overview = m2("--help").stdout
        commands = re.findall(r"^  m2 ([a-z]\S*)", overview, re.M)
        self.assertGreater(len(commands), 4)
        self.assertTrue(set(commands) <= set(self.bash("m2 ")), commands)

    def test_others_are_refused(self):
        done = m2("completion", "tcsh")
        self.assertEqual(done.returncode, 1)
        self.assertIn("bash, zsh or fish", done.stderr)


class ManualPage(unittest.TestCase):
    def test_page(self):
        page = m2("man").stdout
        self.assertTrue(page.startswith(".TH M2 1"))
        if not shutil.which("groff"):
            self.skipTest("groff is not installed")
        done = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-z"], input=page,
                              capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        shown = subprocess.run(["groff", "-man", "-Tascii", "-P-c"], input=page,
                               capture_output=True, text=True).stdout
        plain = re.sub(".\b", "", shown)
        self.assertIn("--tensor-parallel-size, -tp INTEGER", plain)
        self.assertIn("m2 inspect tokenize MODEL", plain)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
