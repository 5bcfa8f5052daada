"""`m2 bench ops`: every kind of operation has its row, and its shares follow from its bytes, operations
and time. Arguments: BINARY."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

BINARY = sys.argv[1]


def ops(*flags, status=0):
    done = subprocess.run([BINARY, "bench", "ops", "--device", "cpu", *map(str, flags)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


class Ops(unittest.TestCase):
    def test_rows_and_their_arithmetic(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "ops.json"
            done = ops("--memory-gib", 0.3, "--seconds", 0, "--save-result", path, "--only", "linear fp8",
                       "norm", "qk", "rope", "route", "embed", "experts")
            result = json.loads(path.read_text())
        rows = {row["name"]: row for row in result["operations"]}
        for name in ("linear fp8 8192x3072, 1 tokens", "norm add_rms_norm, 512 tokens",
                     "qk_sum_squares + qk_norm_rope_store, 1 tokens", "rope_angles, 512 tokens",
                     "route, 1 tokens", "embed, 512 tokens"):
            self.assertIn(name, rows)
        # What a matrix of M2 weighs, and what a token multiplies with it.
        one = rows["linear fp8 8192x3072, 1 tokens"]
        self.assertEqual((one["bytes"], one["flops"]), (8192 * 3072, 2 * 8192 * 3072))
        many = rows["linear fp8 2048x3072, 512 tokens"]
        self.assertEqual(many["flops"], 2 * 2048 * 3072 * 512)
        rates = result["multiply_rates"]
        rate = rates.get("BF16", rates["FP32"])  # the tile unit, where there is one
        for row in (one, many):
            self.assertAlmostEqual(row["of_reads"],
                                   row["bytes"] / row["seconds"] / result["read_bytes_per_s"])
            self.assertAlmostEqual(row["of_multiplies"], row["flops"] / row["seconds"] / rate)
            self.assertGreater(row["of_multiplies"], 0)
            self.assertLessEqual(row["seconds"], row["median_seconds"])
        for row in rows.values():
            self.assertIn(f"| {row['name']} | {row['seconds'] * 1e6:.1f} | ", done.stdout)
        self.assertRegex(done.stdout, r"Bounds measured in the same run: reads \d+\.\d GB/s, ")
        self.assertRegex(done.stderr, r"linear fp8 8192x3072, 1 tokens: \d+\.\d us, ")
        self.assertIn("experts fp8: left out, needs --memory-gib 2.", done.stderr)

    def test_refusals(self):
        for flags, text in ((("--memory-gib", 0.1), "from 0.25"), (("--seconds", -1), "--seconds"),
                            (("--cpu-isa", "mmx"), "mmx is not to be had"),
                            (("--device", "tpu"), "cuda:N"),
                            (("--only", "norm", "foo"), "--only foo: no operation is called so (there are "
                             "linear, experts, attention, norm, quantise, qk, rope, route, embed, sample)"),
                            (("--memory-gib", 0.3, "--seconds", 0, "--only", "linear fp9"),
                             "no row begins so on this device, or has room: --only linear fp9")):
            done = ops(*flags, status=1)
            self.assertIn(text, done.stderr)
            self.assertEqual(done.stdout, "")

    def test_help_names_the_rows(self):
        self.assertRegex(ops("--help").stdout, r"linear, experts,?\s+attention")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
