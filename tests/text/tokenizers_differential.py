"""Compares our tokenizer with the `tokenizers` package, id by id.

    tokenizers_differential.py ENCODE_MAIN [TOKENIZER_JSON] [--strings N] [--seed S]

Every string goes through the released tokenizer (if its file is given) and through small ones
trained here, which differ in pattern, normaliser, form of the merge list and added tokens.
"""

import argparse
import array
import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import trainers

ENCODE_ALL, ENCODE_NONSPECIAL, ENCODE_NONE, DECODE_KEEP, DECODE_SKIP = range(5)
WORD = struct.Struct("<I")

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Characters of Unicode that meet every rule of the splitter and the normaliser.
POOLS = {
    "lower": "abcdefghijklmnopqrstuvwxyz",
    "upper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digits": "0123456789٣४５Ⅷ½²",
    "space": " \t\u00a0\u2003\u3000\u0085\u2028\v\f",
    "newline": "\r\n",
    "symbols": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»—…€§",
    "latin": "éÉñÑüÜßøØåÅłŁſKÅǅǈʰªºﬁḰṩẛ̣",
    "greek_cyrillic": "αβγΑΒΓάΆϊΐпривПРИВйЙёЁ",
    "marks": "\u0301\u0300\u0308\u0323\u0327\u0316\u0345\u0338\u0334\u20dd\u0903\u094d\u3099\u309a",
    "semitic": "אבגשׁשּׂלָמֶمرحباًٌٍَُِّْ\u0653\u0654",
    "indic_thai": "नमस्तेकि\u093cक़য়ড়สวัสดีนำ้",
    "cjk": "的一是不了人我在有他这中大来上国豈更金",
    "kana": "あいうがぎぱアイウガパｶﾞー゛",
    "hangul": "한국어가각힣\u1100\u1161\u11a8\u1112\u1175\u11c2",
    "emoji": "😀🚀👨👩👧\u200d\ufe0f🏽🇯🇵❤",
    "control": "\0\x01\x1f\x7f\u200b\ufeff\ufffd\u00ad",
    "private_and_far": "\ue000\U000f0000\U0010ffff\U0001d15e\U0001f1e6\U000e0041\U0002f800",
    "recent": "\u0897\u0898\u1c89\u1c8a\ua7dc\U00010d50\U00010d70\U00010d40\U0002ebf0\U00011938"
    "\U00011935\U00011930\U000105c9\U00016100\U0001611e",
}
WORDS = (
    "the of and don't I'VE we'll THEY'RE it'ſ HTMLParser camelCase snake_case x86_64 return "
    "café naïve Ελλάδα привет 你好 世界 こんにちは 한국어 مرحبا नमस्ते https://x.y/z?q=1 "
    "if(x==0){return;} \r\n \n\n \t\t    //... /// !!! ```python 1234567 3.14159 O'Neil 'tis"
).split(" ")


def random_string(rng, tokens):
    """A few fragments, each from one source; half of them runs or near-runs."""
    pools = list(POOLS.values())
    parts = []
    for _ in range(rng.randint(0, 10)):
        kind = rng.randrange(8)
        pool = rng.choice(pools)
        if kind == 0:
            parts.append(rng.choice(WORDS))
        elif kind == 1:
            parts.append(rng.choice(tokens))
        elif kind == 2:
            token = rng.choice(tokens)
            parts.append(token[: rng.randint(0, len(token))])
        elif kind == 3:
            parts.append(rng.choice(pool) * rng.randint(1, 12))
        elif kind == 4:
            parts.append(rng.randbytes(rng.randint(1, 8)).decode(errors="replace"))
        elif kind == 5:
            parts.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 8))))
        else:
            parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 8))))
        if rng.random() < 0.3:
            parts.append(rng.choice(" \n'"))
    return "".join(parts)


def every_character():
    """Each code point beside letters, spaces, digits, marks and itself."""
    points = [c for plane in (0, 1, 2, 3, 14) for c in range(plane << 16, (plane + 1) << 16)]
    points = [chr(c) for c in points if not 0xD800 <= c < 0xE000]
    for i in range(0, len(points), 64):
        yield "".join(f"a{c}B{c}{c} {c}1 q{c}\u0301\u0316{c}\u0334 A{c} " for c in points[i : i + 64])


def long_strings(rng):
    for pool in POOLS.values():
        yield rng.choice(pool) * 3000
        yield "".join(rng.choice(pool) for _ in range(3000))
    yield "".join(rng.choice(WORDS) + " " for _ in range(20000))


class OurTokenizer:
    def __init__(self, program, path):
        self.command = [program, path]

    def answers(self, requests):
        """The answers, as bytes, to a list of (operation, count, payload)."""
        data = b"".join(WORD.pack(op) + WORD.pack(n) + payload for op, n, payload in requests)
        done = subprocess.run(self.command, input=data, stdout=subprocess.PIPE, check=True)
        position = 0
        for operation, _, _ in requests:
            (count,) = WORD.unpack_from(done.stdout, position)
            size = count * (4 if operation <= ENCODE_NONE else 1)
            yield done.stdout[position + 4 : position + 4 + size]
            position += 4 + size

    def encode(self, operation, texts):
        raw = [text.encode() for text in texts]
        for answer in self.answers([(operation, len(text), text) for text in raw]):
            yield array.array("i", answer).tolist()

    def decode(self, operation, lists):
        requests = [(operation, len(ids), array.array("i", ids).tobytes()) for ids in lists]
        for answer in self.answers(requests):
            yield answer.decode()


def differences(name, what, inputs, ours, theirs):
    count = 0
    for given, mine, reference in zip(inputs, ours, theirs, strict=True):
        if mine != reference:
            count += 1
            if count <= 5:
                print(f"{name}: {what} of {ascii(given)[:400]}\n  ours   {ascii(mine)[:400]}\n"
                      f"  theirs {ascii(reference)[:400]}")
    return count


def compare(name, program, path, texts, rng):
    reference = Tokenizer.from_file(path)
    ours = OurTokenizer(program, path)
    count = 0
    for operation, hides_special in ((ENCODE_ALL, False), (ENCODE_NONSPECIAL, True)):
        reference.encode_special_tokens = hides_special
        some = texts if operation == ENCODE_ALL else texts[: len(texts) // 4]
        batches = (reference.encode_batch(some[i : i + 4096], add_special_tokens=False)
                   for i in range(0, len(some), 4096))
        theirs = (encoding.ids for batch in batches for encoding in batch)
        count += differences(name, "encoding", some, ours.encode(operation, some), theirs)
    limit = reference.get_vocab_size() + 3
    lists = [[rng.randrange(limit) for _ in range(rng.randint(0, 12))] for _ in range(10000)]
    lists += [[rng.randrange(280) for _ in range(rng.randint(0, 8))] for _ in range(10000)]
    for operation, skip in ((DECODE_KEEP, False), (DECODE_SKIP, True)):
        theirs = reference.decode_batch(lists, skip_special_tokens=skip)
        count += differences(name, "decoding", lists, ours.decode(operation, lists), theirs)
    print(f"{name}: {len(texts)} strings, {count} differences")
    return count


def split_by_o200k():
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(O200K), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def train(texts, vocab_size, pre_tokenizer, normalizer, special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def small_tokenizers(texts, folder):
    """(name, path) of tokenizers that exercise what the released file does not."""
    o200k = train(texts, 3000, split_by_o200k(), normalizers.NFC(), [])
    o200k.add_special_tokens(["]~b]", "[e~[", "<fim prefix>"])
    o200k.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>", "<thi", "世")])
    o200k.save(str(folder / "o200k.json"))
    yield "small o200k", folder / "o200k.json"

    gpt2 = train(texts, 2000, pre_tokenizers.ByteLevel(add_prefix_space=False), None,
                 ["<s>", "<|end of text|>"])
    content = json.loads(gpt2.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "gpt2.json").write_text(json.dumps(content))
    yield "small gpt2, merges as strings", folder / "gpt2.json"

    content = json.loads((folder / "o200k.json").read_text())
    content["model"]["ignore_merges"] = True
    del content["model"]["merges"][100::7]
    (folder / "ignore_merges.json").write_text(json.dumps(content))
    yield "small o200k, whole words first", folder / "ignore_merges.json"

    # A merge list in another order than the vocabulary: tokens no longer are what they merge to.
    content["model"]["ignore_merges"] = False
    random.Random(1).shuffle(content["model"]["merges"])
    (folder / "shuffled.json").write_text(json.dumps(content))
    yield "small o200k, merges shuffled", folder / "shuffled.json"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("encode_main")
    parser.add_argument("tokenizer_json", nargs="?", default="")
    parser.add_argument("--strings", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)

    with tempfile.TemporaryDirectory() as folder:
        corpus = [random_string(rng, ["<think>"]) for _ in range(5000)]
        corpus += [" ".join(rng.choice(WORDS) for _ in range(20)) for _ in range(500)]
        cases = list(small_tokenizers(corpus, Path(folder)))
        if Path(arguments.tokenizer_json).is_file():
            cases.insert(0, ("released", arguments.tokenizer_json))
        failures = 0
        for name, path in cases:
            content = json.loads(Path(path).read_text())
            tokens = [token["content"] for token in content["added_tokens"]]
            share = arguments.strings if name in ("released", "small o200k") else \
                arguments.strings // 4
            texts = [random_string(rng, tokens) for _ in range(share)]
            texts += long_strings(rng)
            if name == cases[0][0] or "gpt2" in name:  # once for each pattern
                texts += every_character()
            failures += compare(name, arguments.encode_main, str(path), texts, rng)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
