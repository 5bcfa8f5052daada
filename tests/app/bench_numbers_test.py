"""The draws, statistics, arrivals and floors of `m2 bench` against numpy, Python's random module
and, where it is there, roofline.py. Arguments: BINARY ROOFLINE_PY."""

import importlib.util
import json
import math
import pathlib
import random
import subprocess
import sys
import unittest

import numpy

BINARY, ROOFLINE = sys.argv[1], pathlib.Path(sys.argv[2])


def ask(requests):
    done = subprocess.run([BINARY], input=json.dumps(requests), capture_output=True, text=True,
                          check=True)
    return json.loads(done.stdout)


SEEDS = [0, 1, 42, 12345, 2**31, 2**32 - 1]


class Draws(unittest.TestCase):
    def test_seed_0_gives_the_stated_offsets(self):
        # contract.md 6.3
        got = ask([{"op": "integers", "seed": 0, "count": 6, "intervals": [[0, 200000]]}])
        self.assertEqual(got[0][0], [170124, 127392, 102227, 53957, 61565, 8194])

    def test_integers_of_default_rng(self):
        intervals = [[2048, 2049], [0, 200000], [-5, 3], [0, 2**32], [7, 2**32 + 9], [0, 2**32 - 1],
                     [0, 2**31 + 1], [-2**63, 2**63 - 1], [1, 2], [0, 3 * 2**61]]
        seeds = SEEDS + [2**32, 2**63 + 5]
        got = ask([{"op": "integers", "seed": s, "count": 501, "intervals": intervals}
                   for s in seeds])
        for seed, vectors in zip(seeds, got):
            rng = numpy.random.default_rng(seed)
            for (low, high), values in zip(intervals, vectors):
                self.assertEqual(values, rng.integers(low, high, size=501).tolist())

    def test_gamma_of_the_legacy_generator(self):
        cases = [(s, k, t) for s in SEEDS for k, t in ((1.0, 0.1), (0.3, 2.0), (0.999, 1.0),
                                                       (1.7, 0.5), (25.0, 3.0))]
        got = ask([{"op": "gamma", "seed": s, "count": 400, "shape": k, "scale": t}
                   for s, k, t in cases])
        for (seed, shape, scale), values in zip(cases, got):
            numpy.random.seed(seed)
            want = [numpy.random.gamma(shape=shape, scale=scale) for _ in range(400)]
            # log and pow may be another library's: one unit in the last place.
            numpy.testing.assert_allclose(values, want, rtol=4e-16, atol=0)

    def test_randint_of_the_legacy_generator(self):
        intervals = [[0, 200000], [5, 6], [0, 2**32], [0, 4], [-3, 1000]]
        got = ask([{"op": "randint", "seed": s, "count": 300, "intervals": intervals}
                   for s in SEEDS])
        for seed, vectors in zip(SEEDS, got):
            numpy.random.seed(seed)
            for (low, high), values in zip(intervals, vectors):
                self.assertEqual(values, numpy.random.randint(low, high, size=300).tolist())

    def test_shuffle_and_choices_of_python(self):
        cases = [(s, n) for s in SEEDS + [2**40 + 1] for n in (1, 2, 7, 1000)]
        got = ask([{"op": "shuffle", "seed": s, "count": n} for s, n in cases])
        for (seed, count), (shuffled, chosen) in zip(cases, got):
            random.seed(seed)
            items = list(range(count))
            random.shuffle(items)
            self.assertEqual(shuffled, items)
            self.assertEqual(chosen, random.choices(range(count), k=count))


class Statistics(unittest.TestCase):
    def test_equal_to_numpy_to_the_last_bit(self):
        rng = numpy.random.default_rng(5)
        percents = [0, 1, 25, 50, 90, 95, 99, 99.9, 100]
        sizes = [1, 2, 3, 7, 8, 9, 127, 128, 129, 1000, 4097, 50000]
        arrays = [rng.lognormal(size=n) for n in sizes] + [numpy.repeat(rng.normal(size=5), 30)]
        got = ask([{"op": "statistics", "values": a.tolist(), "percents": percents}
                   for a in arrays])
        for array, numbers in zip(arrays, got):
            want = [numpy.mean(array), numpy.std(array), numpy.median(array)]
            want += [numpy.percentile(array, p) for p in percents]
            self.assertEqual(numbers, [float(x) for x in want])

    def test_of_nothing(self):
        self.assertEqual(ask([{"op": "statistics", "values": [], "percents": [99]}])[0], [0] * 4)


def arrivals_by_the_book(seed, count, rate, burstiness, ramp_up=None, start=0, end=0):
    """contract.md 6.4 in numpy."""
    numpy.random.seed(seed)
    gaps = []
    for i in range(count):
        now = rate
        if ramp_up == "linear":
            now = start + (end - start) * i / max(count - 1, 1)
        elif ramp_up == "exponential":
            now = start * (end / start) ** (i / max(count - 1, 1))
        if now == math.inf:
            gaps.append(0)
        elif burstiness == math.inf:
            gaps.append(1 / now)
        else:
            gaps.append(numpy.random.gamma(shape=burstiness, scale=1 / (now * burstiness)))
    times = numpy.cumsum(gaps)
    if ramp_up is None and times[-1] != 0:
        times = times * (count / rate / times[-1])
    return times


class Arrivals(unittest.TestCase):
    def test_arrivals(self):
        cases = [dict(seed=0, count=100, rate=math.inf, burstiness=1.0),
                 dict(seed=0, count=100, rate=7.5, burstiness=1.0),
                 dict(seed=3, count=57, rate=2.0, burstiness=0.4),
                 dict(seed=3, count=57, rate=2.0, burstiness=5.0),
                 dict(seed=3, count=57, rate=4.0, burstiness=math.inf),
                 dict(seed=1, count=40, rate=math.inf, burstiness=1.0, ramp_up="linear", start=1,
                      end=9),
                 dict(seed=1, count=40, rate=math.inf, burstiness=2.0, ramp_up="exponential",
                      start=1, end=9)]
        finite = lambda x: None if x == math.inf else x
        got = ask([{"op": "arrivals", **c, "rate": finite(c["rate"]),
                    "burstiness": finite(c["burstiness"])} for c in cases])
        for case, times in zip(cases, got):
            numpy.testing.assert_allclose(times, arrivals_by_the_book(**case), rtol=1e-13)


class Roofline(unittest.TestCase):
    def test_equal_to_roofline_py(self):
        if not ROOFLINE.exists():
            self.skipTest(f"no {ROOFLINE}")
        spec = importlib.util.spec_from_file_location("roofline", ROOFLINE)
        book = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(book)
        cases, want = [], []
        for gpu in book.GPUS:
            for n, layout in ((1, "tp"), (4, "tp"), (8, "tp"), (4, "tpep"), (8, "tpep"), (8, "dpep")):
                for weights in book.WEIGHT_BYTES:
                    for kv in ("bf16", "fp8"):
                        shape = dict(gpu=gpu, gpus=n, layout=layout, weights=weights, kv=kv)
                        for batch, context in ((1, 2048), (10, 2560), (64, 4096), (1024, 4096)):
                            # The fullest of several GPUs is drawn at random there and here; the rest
                            # of an expert-parallel step is exact.
                            if layout != "tp" and batch > 64:
                                continue
                            r = book.decode(gpu, n, layout, batch, context, weights, kv)
                            cases.append({"op": "roofline", **shape, "batch": batch,
                                          "context": context})
                            want.append((layout, [r["distinct"], r["bytes"], r["flops"], r["floor"],
                                                  r["t_ach"], r["sync"]]))
                        if layout == "tp" and kv == "bf16":
                            for tokens, past in ((512, 0), (2048, 0), (8192, 32768)):
                                r = book.prefill(gpu, n, tokens, past, weights)
                                cases.append({"op": "roofline", **shape, "prefill": tokens,
                                              "past": past})
                                want.append(("tp", [r["gemm"], r["attn"], r["t_weights"],
                                                    r["t_floor"], r["t_ach"]]))
        for case, got, (layout, expected) in zip(cases, ask(cases), want):
            if layout != "tp":
                numpy.testing.assert_allclose(got[4], expected[4], rtol=0.03, err_msg=str(case))
                got[4] = expected[4]
            numpy.testing.assert_allclose(got, expected, rtol=1e-12, err_msg=str(case))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
