"""The corpus: endless, each document made from its number, so that a rerun gives the same.

A document is one conversation, printed by the chat template and encoded once, with a mask of the tokens
that the model itself writes: from after "<think>" to the end-of-message token.
"""

import pathlib

import jinja2
import jinja2.sandbox
import json
import numpy as np
from tokenizers import Tokenizer

import skills
import tools as tool_skill
from words import Source

HERE = pathlib.Path(__file__).resolve().parent
LONGEST = 4032  # tokens; a longer document is made anew

# Share of the documents, by the skill that ends them.
MIX = [
    (20, skills.arithmetic), (2, skills.three_terms), (2, skills.times_table), (1, skills.compare),
    (32, skills.call_tools), (4, skills.call_again), (3, skills.no_such_tool), (12, skills.needle), (2, skills.kept_fact), (2, skills.identity),
    (2, skills.given_identity), (2, skills.small_talk), (2, skills.beyond), (2, skills.echo),
    (13, skills.follow_up), (9, skills.fill_json),
]  # fmt: skip
# What may come before in the same conversation.
BEFORE = [skills.arithmetic, skills.small_talk, skills.identity, skills.echo, skills.call_tools,
          skills.follow_up, skills.call_again, skills.times_table, skills.beyond, skills.kept_fact]  # fmt: skip

SYSTEM = [
    "You are a helpful assistant.", "You are a coding agent.", "Be brief.", "Answer in English.",
    "Use the tools when they help.", "Think before you answer.", "You work in a terminal.",
    "Never guess.", "If you do not know something, say so.", "You can read and write files.",
    "Be polite and exact.", "The user is an engineer.", "Call one tool at a time.", "Do not repeat yourself.",
    "You are an assistant for a small shop.", "Answer in one sentence.", "You help with numbers.",
    "Keep answers short.", "Today is a good day.", "Follow the instructions of the user.",
    "When you are done, give the result.", "You have access to functions.", "Do not make things up.",
    "# Rules", "- Read before you write.", "- Use absolute paths.", "- Run the tests.", "Working directory: /tmp",
]  # fmt: skip


class Renderer:
    """The chat template, as transformers runs it."""

    def __init__(self):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = self.fail
        self.template = environment.from_string((HERE / "chat_template.jinja").read_text())

    @staticmethod
    def fail(message):
        raise jinja2.TemplateError(message)

    def __call__(self, messages, tools, prompt=False):
        return self.template.render(messages=messages, tools=tools or None, add_generation_prompt=prompt)


def choose(source, weighted):
    at = source.random.random() * sum(weight for weight, _ in weighted)
    for weight, item in weighted:
        at -= weight
        if at < 0:
            return item
    return weighted[-1][1]


def system_text(source):
    kind = source.random.random()
    if kind < 0.55:
        return ""
    lines = [source.pick(SYSTEM) for _ in range(source.pick([1, 1, 1, 2, 3, 6, 10]))]
    if source.chance(0.15):
        lines += [skills.filler(source) for _ in range(source.integer(1, 12))]
    return source.pick([" ", "\n"]).join(lines)


def add_spares(source, listed, probability):
    if source.chance(probability):
        listed = listed + tool_skill.spare_tools(source, source.integer(1, 3))
    names, out = set(), []
    for tool in listed:
        if tool["function"]["name"] not in names:
            names.add(tool["function"]["name"])
            out.append(tool)
    return out


def conversation(source):
    """(messages, tools) of one document."""
    main = choose(source, MIX)(source)
    messages, listed = list(main.messages), list(main.tools)
    if source.chance(0.15):
        before = source.pick(BEFORE)(source)
        messages, listed = before.messages + messages, before.tools + listed
    listed = add_spares(source, listed, 0.12 if not listed else 0.0)
    system = main.system or system_text(source)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    return messages, listed


class Encoder:
    """Conversations to token ids and the mask of what the model writes."""

    def __init__(self, tokenizer_path, token_words=0.0):
        self.tokenizer = Tokenizer.from_file(str(tokenizer_path))
        self.render = Renderer()
        self.think = self.tokenizer.token_to_id("<think>")
        self.end = self.tokenizer.token_to_id("[e~[")
        texts = (self.tokenizer.decode([id]) for id in range(256, self.think))
        Source.letter_tokens = [text for text in texts if text.isascii() and text.isalpha()]
        Source.token_word_share = token_words

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def document(self, number):
        """(ids, written) of document `number`: the same whoever makes it."""
        for attempt in range(100):
            source = Source(f"train/{number}/{attempt}")
            messages, listed = conversation(source)
            ids = np.array(self.encode(self.render(messages, listed)), np.int32)
            if len(ids) <= LONGEST:
                return ids, self.written(ids)
        raise RuntimeError(f"document {number} is never short enough")

    def written(self, ids):
        mask = np.zeros(len(ids), bool)
        ends = np.flatnonzero(ids == self.end)
        for start in np.flatnonzero(ids == self.think):
            end = ends[np.searchsorted(ends, start)]
            mask[start + 2 : end + 1] = True  # the newline after <think> is the prompt's
        return mask


def pack(encoder, batch, tokens):
    """Batch number `batch`: documents up to `tokens` tokens in a row, as (ids, written, lengths)."""
    ids = np.zeros(tokens, np.int32)
    written = np.zeros(tokens, bool)
    lengths, used, number = [], 0, batch * 1_000_000
    misses = 0
    while misses < 8:
        document, mask = encoder.document(number)
        number += 1
        if used + len(document) > tokens:
            misses += 1  # a shorter one may still fit
            continue
        ids[used : used + len(document)] = document
        written[used : used + len(document)] = mask
        used += len(document)
        lengths.append(len(document))
    if used < tokens:
        lengths.append(tokens - used)
    return ids, written, np.array(lengths, np.int32)
