#!/usr/bin/env python3
"""Trains m2-micro's tokenizer: byte-level BPE in the released form, with the released added tokens.

    tools/micro/tokenizer.py OUT [--documents N]

Merges never cross from letters to other characters and never join digits, so that a word has the same
tokens wherever it stands, and a number is a row of digits.
"""

import argparse
import pathlib
import sys

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import make_checkpoint  # noqa: E402
from corpus import Renderer, conversation  # noqa: E402
from words import Source  # noqa: E402

VOCABULARY = 2048  # rows of the embedding; as in the released file the last ten are padding
PADDING = 10
CUTS = r"\p{N}|\p{L}+|[\r\n]+|[ \t]+|[^\s\p{L}\p{N}]+"


def train_merges(texts, count):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(make_checkpoint.SPLIT_PATTERN), "removed", invert=True),
            pre_tokenizers.Split(Regex(CUTS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in merges]


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("out")
    options.add_argument("--documents", type=int, default=20000)
    options = options.parse_args()
    render = Renderer()
    texts = []
    for number in range(options.documents):
        text = render(*conversation(Source(f"tokenizer/{number}")))
        for token in make_checkpoint.added_token_contents():
            text = text.replace(token, " ")
        texts.append(text[:4000])
    merges = train_merges(texts, VOCABULARY - PADDING - 256 - len(make_checkpoint.ADDED_TOKENS))
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    make_checkpoint.write_json(folder / "tokenizer.json", make_checkpoint.tokenizer_of(merges))
    print(f"{len(merges)} merges from {sum(map(len, texts)) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
