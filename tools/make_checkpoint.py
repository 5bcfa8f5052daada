#!/usr/bin/env python3
"""Writes a small random checkpoint in the form in which MiniMax-M2 is released.

    tools/make_checkpoint.py OUT --layers 4 --hidden 512 --experts 16 --shards 3

Everything a server reads is there: config.json, generation_config.json, tokenizer.json,
tokenizer_config.json, chat_template.jinja, and the weights as FP8 in 128x128 blocks (or BF16) with
a router in F32. As in the released files, shard names promise more shards than there are, and the
index's total_size is not the size on disk. The same options give the same bytes on every machine:
random numbers are sums of bytes of a PCG64 stream, and arithmetic is IEEE add, multiply and divide.
Needs numpy alone.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import struct
import sys
import zlib

import numpy as np

BLOCK = 128
FP8_MAX = 448.0

# ---- Numbers ----


def random_bell(key, shape):
    """float32 numbers of mean 0 and deviation 1: sums of four random bytes (nearly normal, |x| < 3.5)."""
    count = int(np.prod(shape))
    stream = np.random.Generator(np.random.PCG64(key)).bytes(4 * count)
    planes = np.frombuffer(stream, np.uint8).reshape(4, count)
    total = planes[0].astype(np.int16)
    for plane in planes[1:]:
        total += plane
    deviation = np.float32((4 * (256 * 256 - 1) / 12) ** 0.5)
    return ((total - np.int16(510)).astype(np.float32) / deviation).reshape(shape)


def to_bf16(values):
    """float32 -> bf16 bits, to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)


def to_e4m3(values):
    """float32 -> e4m3fn codes, to nearest even; |values| must not exceed 448."""
    magnitude = np.abs(values)
    bits = magnitude.view(np.uint32)
    # Keep 3 of 23 mantissa bits, then move the exponent's bias from 127 to 7.
    normal = ((bits + np.uint32(0x7FFFF) + ((bits >> 20) & np.uint32(1))) >> 20) - np.uint32(120 * 8)
    subnormal = np.rint(magnitude * np.float32(512)).astype(np.uint32)
    codes = np.where(magnitude < np.float32(2.0**-6), subnormal, normal).astype(np.uint8)
    return codes | (np.signbit(values).astype(np.uint8) << 7)


def quantise(matrix):
    """float32 [N, K] -> e4m3 codes [N, K], float32 scales [ceil(N/128), ceil(K/128)]."""
    rows, columns = matrix.shape
    row_blocks, column_blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = np.zeros((row_blocks * BLOCK, column_blocks * BLOCK), np.float32)
    padded[:rows, :columns] = matrix
    blocks = padded.reshape(row_blocks, BLOCK, column_blocks, BLOCK)
    largest = np.maximum(blocks.max(axis=(1, 3)), -blocks.min(axis=(1, 3)))
    scales = np.where(largest > 0, largest / np.float32(FP8_MAX), np.float32(1)).astype(np.float32)
    scaled = blocks / scales[:, None, :, None]
    scaled = np.clip(scaled, -FP8_MAX, FP8_MAX).reshape(padded.shape)[:rows, :columns]
    return to_e4m3(np.ascontiguousarray(scaled)), scales


# ---- Weights ----


class Weights:
    """The tensors of a checkpoint in file order, made one at a time when they are written."""

    def __init__(self, options):
        self.options = options
        self.entries = []  # (name, dtype, shape)
        self.makers = {}  # name -> function that returns the tensor's bytes
        self.list_all()

    def list_all(self):
        o = self.options
        self.plain("model.embed_tokens.weight", (o.vocab_size, o.hidden), spread=1.0)
        for layer in range(o.layers + o.mtp):
            self.list_layer(f"model.layers.{layer}.")
        self.norm("model.norm.weight", o.hidden)
        # Logits of deviation 3: the best token stands out, and the others are not hopeless.
        self.plain("lm_head.weight", (o.vocab_size, o.hidden), spread=3.0 * o.hidden**-0.5)

    def list_layer(self, prefix):
        o = self.options
        q_width, kv_width = o.heads * o.head_dim, o.kv_heads * o.head_dim
        self.norm(prefix + "input_layernorm.weight", o.hidden)
        self.matrix(prefix + "self_attn.q_proj.weight", q_width, o.hidden)
        self.matrix(prefix + "self_attn.k_proj.weight", kv_width, o.hidden)
        self.matrix(prefix + "self_attn.v_proj.weight", kv_width, o.hidden)
        self.matrix(prefix + "self_attn.o_proj.weight", o.hidden, q_width)
        self.norm(prefix + "self_attn.q_norm.weight", q_width)
        self.norm(prefix + "self_attn.k_norm.weight", kv_width)
        self.norm(prefix + "post_attention_layernorm.weight", o.hidden)
        moe = prefix + "block_sparse_moe."
        self.router(moe + "gate.weight", (o.experts, o.hidden), spread=1.5 * o.hidden**-0.5)
        self.router(moe + "e_score_correction_bias", (o.experts,), spread=0.1)
        for expert in range(o.experts):
            self.matrix(f"{moe}experts.{expert}.w1.weight", o.intermediate, o.hidden)
            self.matrix(f"{moe}experts.{expert}.w2.weight", o.hidden, o.intermediate)
            self.matrix(f"{moe}experts.{expert}.w3.weight", o.intermediate, o.hidden)

    def bell(self, name, shape, spread, center=0.0):
        # Seeded by name, so that a tensor does not depend on which others there are.
        key = [self.options.seed, zlib.crc32(name.encode())]
        return random_bell(key, shape) * np.float32(spread) + np.float32(center)

    def add(self, name, dtype, shape, maker):
        self.entries.append((name, dtype, tuple(shape)))
        self.makers[name] = maker

    def plain(self, name, shape, spread):
        self.add(name, "BF16", shape, lambda: to_bf16(self.bell(name, shape, spread)))

    def norm(self, name, width):
        self.add(name, "BF16", (width,), lambda: to_bf16(self.bell(name, (width,), 0.2, 1.0)))

    def router(self, name, shape, spread):
        self.add(name, "F32", shape, lambda: self.bell(name, shape, spread))

    def matrix(self, name, rows, columns):
        # Twice the deviation that keeps a signal's size: what a block adds to the residual matters.
        spread = 2.0 * columns**-0.5
        if self.options.dtype == "bf16":
            return self.plain(name, (rows, columns), spread)
        scales = []

        def make_codes():
            codes, scale = quantise(self.bell(name, (rows, columns), spread))
            scales.append(scale)
            return codes

        # A scale is always written right after its matrix.
        self.add(name, "F8_E4M3", (rows, columns), make_codes)
        self.add(name + "_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK)), scales.pop)


BYTES_OF = {"F32": 4, "BF16": 2, "F8_E4M3": 1}


def bytes_of(entry):
    _, dtype, shape = entry
    return int(np.prod(shape)) * BYTES_OF[dtype]


def write_safetensors(path, weights, entries):
    """One file: u64 header length, JSON header padded to 8 bytes, data."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in entries:
        end = offset + bytes_of((name, dtype, shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, _ in entries:
            file.write(weights.makers[name]().tobytes())


def split_into_shards(entries, count):
    """`count` runs of nearly equal size in bytes."""
    total, done = sum(map(bytes_of, entries)), 0
    shards = [[] for _ in range(count)]
    for entry in entries:
        shards[min(count - 1, done * count // total)].append(entry)
        done += bytes_of(entry)
    return [shard for shard in shards if shard]


def write_weights(folder, weights, shard_count):
    """`weights` as the class above: entries in file order, makers by name. 0 shards: one file, no index."""
    if shard_count == 0:
        write_safetensors(folder / "model.safetensors", weights, weights.entries)
        return
    shards = split_into_shards(weights.entries, shard_count)
    weight_map = {}
    for number, shard in enumerate(shards):
        # The number of shards in the released names is larger than the number of files.
        file_name = f"model-{number:05d}-of-{len(shards) + 5:05d}.safetensors"
        write_safetensors(folder / file_name, weights, shard)
        weight_map.update((name, file_name) for name, _, _ in shard)
    # So is total_size: it is that of a BF16 copy.
    total = sum(2 * int(np.prod(shape)) for _, _, shape in weights.entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


# ---- Tokenizer and template ----

SPLIT_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The released added tokens in the order of their ids, of which the last four are not special.
ADDED_TOKENS = (
    "]!p~[ <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <reponame> <filename> <gh_stars> "
    "<issue_start> <issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> "
    "<jupyter_output> <empty_output> <commit_before> <commit_msg> <commit_after> ]~b] [e~[ ]!d~[ "
    "<function_call> <code_interpreter> ]<]speech[>[ ]<]image[>[ ]<]video[>[ ]<]start_of_speech[>[ "
    "]<]end_of_speech[>[ ]<]start_of_image[>[ ]<]end_of_image[>[ ]<]start_of_video[>[ "
    "]<]end_of_video[>[ ]<]vision_pad[>[ ]~!b[ <jupyter_error> <add_file> <delete_file> "
    "<rename_file> <edit_file> <commit_message> <empty_source_file> <repo_struct> <code_context> "
    "<file_content> <source_files> <pr_start> <review_comment> <filepath> <file_sep> "
    "<think> </think> <minimax:tool_call> </minimax:tool_call>"
).split()
NOT_SPECIAL = 4
# A few of them have spaces, written as "_" above.
SPACED = ("start_of_", "end_of_", "vision_pad")

# What the merges of the small tokenizer are learnt from.
TRAINING_TEXT = """
 the of and to in is that it for on with as was at by an be this are from or have not which you
 the system and the user ask the assistant for the weather in the city and the assistant will
 think about the question and then answer it with the words that the user can read
 a tool has a name and a list of parameters: call the tool with the arguments and wait for its response
 one two three four five six seven eight nine ten hundred thousand number string integer boolean
 hello world what when where who how why please thank you helpful question answer message content
 there their they them then than these those other another would could should about through
 <invoke name=" </invoke> <parameter name=" </parameter> <response> </response> <tools> </tools>
 {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
 def function(self, value): return value + 1 for item in list: print(item) if not None else True
"""


def byte_characters():
    """Character that stands for each byte in a byte-level tokenizer (GPT-2's table)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def learn_merges(text, count):
    """Byte pair encoding by its definition: join the most frequent pair, again and again."""
    letters = byte_characters()
    words = ["".join(letters[byte] for byte in (" " + word).encode()) for word in text.split()]
    words = [list(word) for word in words]
    known, merges = set(letters), []
    while len(merges) < count:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                if pair[0] + pair[1] not in known:
                    pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        known.add(best[0] + best[1])
        words = [join_pair(word, best) for word in words]
    return merges


def join_pair(word, pair):
    out, i = [], 0
    while i < len(word):
        joins = tuple(word[i : i + 2]) == pair
        out.append(word[i] + word[i + 1] if joins else word[i])
        i += 2 if joins else 1
    return out


def small_tokenizer():
    """tokenizer.json in the released form, with 256 byte tokens and at most 256 merges."""
    return tokenizer_of(learn_merges(TRAINING_TEXT, 256))


def added_token_contents():
    return [
        token.replace("_", " ") if any(part in token for part in SPACED) else token
        for token in ADDED_TOKENS
    ]


def tokenizer_of(merges):
    """tokenizer.json in the released form: byte b has id b, merge i has id 256 + i, then added tokens."""
    vocabulary = byte_characters() + [left + right for left, right in merges]
    contents = added_token_contents()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {
            "id": len(vocabulary) + i,
            "content": content,
            **flags,
            "special": i < len(contents) - NOT_SPECIAL,
        }
        for i, content in enumerate(contents)
    ]
    byte_level = {"type": "ByteLevel", "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Removed", "invert": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**byte_level, "add_prefix_space": False, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(vocabulary)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}
            {%- if part is string -%}{{- part }}{%- elif part.type == 'text' -%}{{- part.text }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set system = 'You are a small random model.' -%}
{%- set turns = messages -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system = text_of(messages[0].content) -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- set last = namespace(user=-1) -%}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- ']~!b[]~b]system\\n' ~ system }}
{%- if tools -%}
    {{- '\\n\\n# Tools\\nCall one or more of these tools where they help:\\n\\n<tools>\\n' }}
    {%- for tool in tools -%}
        {{- '<tool>' ~ (tool.function | tojson(ensure_ascii=False)) ~ '</tool>\\n' }}
    {%- endfor -%}
    {{- '</tools>\\n\\nA call looks like this:\\n\\n<minimax:tool_call>\\n<invoke name="NAME">\\n' }}
    {{- '<parameter name="KEY">VALUE</parameter>\\n</invoke>\\n</minimax:tool_call>' }}
{%- endif -%}
{{- '[e~[\\n' }}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {{- ']~b]user\\n' ~ text_of(message.content) ~ '[e~[\\n' }}
    {%- elif message.role == 'assistant' -%}
        {{- ']~b]ai\\n' }}
        {%- if message.reasoning_content is string and message.reasoning_content and loop.index0 > last.user -%}
            {{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' }}
        {%- endif -%}
        {{- text_of(message.content) }}
        {%- if message.tool_calls -%}
            {{- '\\n<minimax:tool_call>\\n' }}
            {%- for call in message.tool_calls -%}
                {%- if call.function -%}{%- set call = call.function -%}{%- endif -%}
                {{- '<invoke name="' ~ call.name ~ '">\\n' }}
                {%- for key, value in call.arguments.items() -%}
                    {{- '<parameter name="' ~ key ~ '">' }}
                    {{- value if value is string else value | tojson(ensure_ascii=False) }}
                    {{- '</parameter>\\n' }}
                {%- endfor -%}
                {{- '</invoke>\\n' }}
            {%- endfor -%}
            {{- '</minimax:tool_call>' }}
        {%- endif -%}
        {{- '[e~[\\n' }}
    {%- elif message.role == 'tool' -%}
        {%- if loop.first or turns[loop.index0 - 1].role != 'tool' -%}{{- ']~b]tool' }}{%- endif -%}
        {{- '\\n<response>' ~ text_of(message.content) ~ '</response>' }}
        {%- if loop.last or turns[loop.index0 + 1].role != 'tool' -%}{{- '[e~[\\n' }}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ']~b]ai\\n<think>\\n' }}{%- endif -%}
"""


TOKENIZER_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": "]~!b[",
    "eos_token": "[e~[",
    "unk_token": "]!d~[",
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 40960000,
}


def write_tokenizer(folder, options):
    """Copies the tokenizer's files, or writes small ones; returns the added tokens' ids."""
    if options.tokenizer:
        source = pathlib.Path(options.tokenizer)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
    else:
        tokenizer = small_tokenizer()
        write_json(folder / "tokenizer.json", tokenizer)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


# ---- The folder ----


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def config_of(options):
    config = {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "attn_type_list": [1] * options.layers,
        "head_dim": options.head_dim,
        "hidden_act": "silu",
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "max_position_embeddings": options.max_position,
        "model_type": "minimax_m2",
        "mtp_transformer_layers": 1,
        "num_attention_heads": options.heads,
        "num_experts_per_tok": options.top_k,
        "num_hidden_layers": options.layers,
        "num_key_value_heads": options.kv_heads,
        "num_local_experts": options.experts,
        "num_mtp_modules": 3,
        "qk_norm_type": "per_layer",
        "rms_norm_eps": 1e-06,
        "rope_theta": options.rope_theta,
        "rotary_dim": options.rotary_dim,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "transformers_version": "4.46.1",
        "use_cache": True,
        "use_mtp": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": options.vocab_size,
    }
    if options.dtype == "fp8":
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "float8_e4m3fn",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        }
    return config


def generation_config_of(added):
    """`added`: ids of the added tokens by content."""
    return {
        "bos_token_id": added["]~b]"],
        "do_sample": True,
        "eos_token_id": added["[e~["],
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 40,
        "transformers_version": "4.46.1",
    }


def make_checkpoint(folder, options):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Weights of an earlier run may have other names.
    for old in [*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")]:
        old.unlink()
    added = write_tokenizer(folder, options)
    if options.vocab_size == 0:
        options.vocab_size = (max(added.values()) + 1 + 63) // 64 * 64  # 200064 for the released one
    write_json(folder / "config.json", config_of(options))
    write_json(folder / "generation_config.json", generation_config_of(added))
    write_weights(folder, Weights(options), options.shards)


def hash_weights(folder):
    """SHA-256 of every safetensors file, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(folder).glob("model*.safetensors"))
    }


def parser():
    out = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    out.add_argument("out", help="folder to write")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--dtype", choices=["fp8", "bf16"], default="fp8", help="of the matrices")
    out.add_argument("--layers", type=int, default=2)
    out.add_argument("--hidden", type=int, default=256)
    out.add_argument("--intermediate", type=int, default=192, help="width of one expert")
    out.add_argument("--heads", type=int, default=8)
    out.add_argument("--kv-heads", type=int, default=2)
    out.add_argument("--head-dim", type=int, default=32)
    out.add_argument("--rotary-dim", type=int, default=16)
    out.add_argument("--rope-theta", type=int, default=5000000)
    out.add_argument("--experts", type=int, default=8)
    out.add_argument("--top-k", type=int, default=2, help="experts of one token")
    out.add_argument("--max-position", type=int, default=4096)
    out.add_argument("--vocab-size", type=int, default=0, help="0: what the tokenizer needs, padded")
    out.add_argument("--mtp", type=int, default=0, help="layers beyond num_hidden_layers to add")
    out.add_argument("--shards", type=int, default=2, help="0: one model.safetensors, no index")
    out.add_argument("--tokenizer", help="folder with tokenizer.json and chat_template.jinja to copy")
    out.add_argument("--golden", help="file of tests/golden/model: its options, its hashes checked")
    return out


def main():
    options = parser().parse_args()
    golden = json.loads(pathlib.Path(options.golden).read_text()) if options.golden else None
    if golden:
        vars(options).update(golden["checkpoint"])
    make_checkpoint(options.out, options)
    if golden and hash_weights(options.out) != golden["sha256"]:
        sys.exit(f"{options.out}: weights are not those that {options.golden} was made with")


if __name__ == "__main__":
    main()
