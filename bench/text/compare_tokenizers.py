"""Speed of our tokenizer as a multiple of the `tokenizers` package's, in one run on one core.

    compare_tokenizers.py TOKENIZER_BENCH TOKENIZER_JSON

English is the documentation that comes with Python, code its standard library; Chinese and mixed
text are drawn from the vocabulary with Zipf's weights, so that no corpus has to be carried along.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data import topics

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer  # noqa: E402

SIZE = 2_000_000  # bytes of each text
PROMPT = 16 << 10


def clip(text):
    return text.encode()[:SIZE].decode(errors="ignore")


def from_vocabulary(tokenizer, wanted, separators, rng):
    """Tokens that `wanted` accepts, by rank with weight 1/rank, `separators` strewn in."""
    words = (tokenizer.decode([i]) for i in range(256, tokenizer.get_vocab_size()))
    words = [word for word in words if wanted(word)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    drawn = rng.choices(words, weights, k=SIZE // 5)
    return clip("".join(word + (rng.choice(separators) if rng.random() < 0.15 else "")
                        for word in drawn))


def is_han(word):
    return all("\u4e00" <= c <= "\u9fff" for c in word)


def texts_of(tokenizer):
    rng = random.Random(1)
    library = sorted(Path(os.__file__).parent.glob("*.py"))
    return {
        "english": clip("\n".join(topics.topics.values())),
        "code": clip("\n".join(path.read_text(errors="replace") for path in library)),
        "chinese": from_vocabulary(tokenizer, is_han, "，。、！？\n", rng),
        "mixed": from_vocabulary(tokenizer, lambda word: "\ufffd" not in word, " \n.,", rng),
    }


def reference_speed(tokenizer, text):
    lines, prompts = text.splitlines(keepends=True), [""]
    for line in lines:
        if len(prompts[-1]) >= PROMPT:
            prompts.append("")
        prompts[-1] += line
    start = time.process_time()  # as the benchmark counts
    for prompt in prompts:
        tokenizer.encode(prompt, add_special_tokens=False)
    return len(text.encode()) / 1e6 / (time.process_time() - start)


def main():
    program, path = sys.argv[1:]
    tokenizer = Tokenizer.from_file(path)
    texts = texts_of(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        for name, text in texts.items():
            Path(folder, name).write_text(text)
            arguments.append(f"{name}={folder}/{name}")
        done = subprocess.run([program, path, *arguments, "--benchmark_format=json"],
                              stdout=subprocess.PIPE, check=True)
    for result in json.loads(done.stdout)["benchmarks"]:
        name, line = result["name"], f"{result['name']:36} {result['real_time']:9.1f} ms"
        if "MB/s" in result:
            line += f" {result['MB/s']:8.1f} MB/s {result['bytes/token']:6.2f} bytes a token"
        if "items_per_second" in result:
            line += f" {result['items_per_second'] / 1e6:8.1f} M tokens/s"
        text = texts.get(name.removeprefix("encode/"))
        if text is not None:
            theirs = reference_speed(tokenizer, text)
            line += f"; tokenizers {theirs:.1f} MB/s, ratio {result['MB/s'] / theirs:.1f}"
        print(line)


if __name__ == "__main__":
    main()
