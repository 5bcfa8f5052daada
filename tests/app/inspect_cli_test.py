"""`m2 inspect` as a person uses it: arguments BINARY DATA_DIR SOURCE_DIR."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

BINARY, DATA, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])


def inspect(*words, text=""):
    return subprocess.run([BINARY, "inspect", *map(str, words)], input=text.encode(),
                          capture_output=True, timeout=60)


def output(*words, text=""):
    done = inspect(*words, text=text)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


class OnlyWithReleasedFiles(unittest.TestCase):
    def setUp(self):
        if not (DATA / "tokenizer.json").exists():
            self.skipTest(f"{DATA} does not hold the released tokenizer")


class Tokenize(OnlyWithReleasedFiles):
    def test_goldens(self):
        golden = json.loads((DATA / "tokenizer_golden.json").read_text())
        for case in golden["derived"]["cases"]:
            if case["mode"] != "ALL" or case["text"] == "":
                continue
            self.assertEqual(json.loads(output("tokenize", DATA, text=case["text"])), case["ids"])
            break

    def test_there_and_back(self):
        text = "Hello, wörld! 你好 🙂 <think>x</think>]~b]user"
        ids = output("tokenize", DATA, text=text)
        self.assertIn(200050, json.loads(ids))
        self.assertIn(200019, json.loads(ids))
        self.assertEqual(output("detokenize", DATA, text=ids), text + "\n")

    def test_bad_ids(self):
        for text in ("1 x", "999999999", "200054", "-1"):
            done = inspect("detokenize", DATA, text=text)
            self.assertEqual(done.returncode, 1, text)
            self.assertIn(b"m2 inspect:", done.stderr)


class Render(OnlyWithReleasedFiles):
    def test_goldens(self):
        golden = json.loads((DATA / "chat_golden.json").read_text())
        for name in ("user_only", "tools_default_system", "interleaved_tool_loop"):
            case = next(c for c in golden["cases"] if c["name"] == name)
            request = json.dumps(case["inputs"])
            self.assertEqual(output("render", DATA, text=request), case["rendered"], name)
            self.assertEqual(json.loads(output("render", DATA, "--ids", text=request)),
                             case["token_ids"], name)

    def test_bad_request(self):
        for text in ("", "[]", '{"messages": 3}', '{"messages": [{"role": "tool", "content": "x"}]}'):
            done = inspect("render", DATA, text=text)
            self.assertEqual(done.returncode, 1, text)
            self.assertTrue(done.stderr, text)


WRITTEN = """look it up
</think>

One moment.
<minimax:tool_call>
<invoke name="weather">
<parameter name="city">Zürich</parameter>
<parameter name="days">3</parameter>
</invoke>
</minimax:tool_call>"""

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]


class Parse(OnlyWithReleasedFiles):
    def setUp(self):
        super().setUp()
        self.tools = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump(TOOLS, self.tools)
        self.tools.flush()

    def tearDown(self):
        self.tools.close()

    def test_message(self):
        message = json.loads(output("parse", DATA, "--tools", self.tools.name, text=WRITTEN))
        self.assertEqual(message["reasoning"], "look it up")
        self.assertEqual(message["content"].strip(), "One moment.")
        (call,) = message["tool_calls"]
        self.assertEqual(call["function"],
                         {"name": "weather", "arguments": '{"city": "Zürich", "days": 3}'})

    def test_any_split_says_the_same(self):
        whole = json.loads(output("parse", DATA, "--tools", self.tools.name, text=WRITTEN))
        for split in (1, 2, 3, 7, 64):
            deltas = [json.loads(line) for line in
                      output("parse", DATA, "--tools", self.tools.name, "--split", split,
                             "--stream", text=WRITTEN).splitlines()]
            self.assertEqual("".join(d.get("reasoning", "") for d in deltas), whole["reasoning"])
            self.assertEqual("".join(d.get("content", "") for d in deltas), whole["content"])
            self.assertEqual("".join(d.get("arguments", "") for d in deltas),
                             whole["tool_calls"][0]["function"]["arguments"])

    def test_parsers_off(self):
        message = json.loads(output("parse", DATA, "--reasoning-parser", "none",
                                    "--tool-call-parser", "none", text=WRITTEN))
        self.assertEqual(message["content"], WRITTEN)
        self.assertIsNone(message["reasoning"])
        done = inspect("parse", DATA, "--reasoning-parser", "deepseek", text="")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"minimax_m2_append_think", done.stderr)


class Weights(unittest.TestCase):
    def test_table_of_a_random_checkpoint(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, SOURCE / "tools/make_checkpoint.py", folder,
                            "--layers", "2"], check=True, capture_output=True)
            table = output("weights", folder)
            for name in ("model.embed_tokens.weight", "lm_head.weight",
                         "model.layers.1.block_sparse_moe.gate.weight", "weight_scale_inv"):
                self.assertIn(name, table)
            (pathlib.Path(folder) / "config.json").write_text("{}")
            done = inspect("weights", folder)
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"architectures", done.stderr)

    def test_absent_model_says_what_to_do(self):
        done = inspect("weights", "Nobody/No-Such-Model")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"Nobody/No-Such-Model", done.stderr)
        self.assertIn(b"download", done.stderr)


class Help(unittest.TestCase):
    def test_every_command_has_help(self):
        overview = output("--help")
        for what in ("tokenize", "detokenize", "render", "parse", "weights"):
            self.assertIn(what, overview)
            self.assertIn("usage: m2 inspect " + what, output(what, "--help"))
        self.assertEqual(inspect("frobnicate").returncode, 1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
