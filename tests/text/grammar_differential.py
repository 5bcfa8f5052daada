"""Schema grammars against the jsonschema package, and random walks against it and the output reader.

  grammar_differential.py GRAMMAR_MAIN TOKENIZER.JSON [WALKS]

Covers: text/grammar/json_schema.h, text/grammar/rules.h, text/grammar/schema_keywords.h, text/grammar/pattern.h, text/grammar/tool_calls.h,
text/output_constraint.h, text/grammar.h, text/grammar/limited_matcher.h,
text/grammar/remaining_lengths.h, text/grammar/pattern_tokens.h, text/grammar/leaving_tokens.h,
text/grammar/schema_references.h.
"""

import datetime
import ipaddress
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import jsonschema

# (schema, values): the grammar must accept the JSON of exactly those values that validate, but for
# those listed in UNDER, which it leaves out on purpose.
EXACT = [
    ({"type": "integer"}, [0, 1, -7, 123456789, 1.5, "1", None, True, [], {}]),
    ({"type": "integer", "minimum": 3, "maximum": 120}, [2, 3, 4, 9, 10, 99, 100, 119, 120, 121, 1000, -3, -50]),
    ({"type": "integer", "minimum": -12, "maximum": 7}, [-13, -12, -11, -10, -9, -1, 0, 1, 7, 8, -100]),
    ({"type": "integer", "exclusiveMinimum": 0}, [0, 1, 2, -1, 999999]),
    ({"type": "integer", "exclusiveMaximum": 1000, "minimum": 98}, [97, 98, 99, 100, 998, 999, 1000, 9999]),
    ({"type": "integer", "maximum": -5}, [-4, -5, -6, -50, 0, 5, -100000]),
    ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, [1, 2, 3, 4]),
    ({"type": "number"}, [0, -1, 1.5, 2e3, -0.25, 1e-7, "1", None]),
    ({"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
     [-1.6, -1.5, -1.49, -1, -0.5, 0, 0.5, 2, 2.2, 2.24, 2.25, 2.26, 3, 10, -10]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [-0.1, 0, 0.0, 0.3, 0.999, 1, 1.0, 1.01, 2, 10]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0, 0.1, 0.001, 0.99, 1, 1.5]),
    ({"type": "number", "minimum": 0.25, "maximum": 0.75}, [0.2, 0.25, 0.3, 0.5, 0.7499, 0.75, 0.751, 1, 0]),
    ({"type": "number", "minimum": 12.5}, [12, 12.4, 12.5, 12.51, 13, 99, 100.25, 1000]),
    ({"type": "number", "maximum": -0.5}, [-0.4, -0.5, -0.51, -1, -20.5, 0, 1]),
    ({"type": "number", "exclusiveMinimum": 5}, [5, 5.0, 5.1, 6, 4.9]),
    ({"type": "string"}, ["", "a", "日本語 🎉", 'quo"te', "back\\slash", "\n\t", 1, None]),
    ({"type": "string", "minLength": 2, "maxLength": 4}, ["", "a", "ab", "abcd", "abcde", "日本語", "\n\n", "🎉🎉🎉🎉🎉"]),
    ({"type": "string", "maxLength": 20}, ["x" * 20, "x" * 21, "", "é" * 20]),
    ({"type": "string", "minLength": 3}, ["ab", "abc", "x" * 50]),
    ({"type": "string", "minLength": 40, "maxLength": 300},
     ["x" * 39, "x" * 40, "é" * 40, "\n" * 39, "\n" * 40, '"\\' * 150, '"\\' * 151, "日" * 300, "日" * 301, "🎉" * 300]),
    ({"type": "string", "maxLength": 0}, ["", "a"]),
    ({"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}, "additionalProperties": {"type": "null"}},
     [{"a": None}, {"ab": None}, {"abc": None, "é\n": None}, {"abcd": None}]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 20, "maxItems": 1000},
     [[True] * n for n in (0, 1, 16, 19, 20, 21, 31, 32, 33, 255, 256, 257, 991, 992, 999, 1000, 1001, 1016)]),
    *[({"type": "array", "items": {"type": "null"}, "minItems": low, "maxItems": high}, [[None] * n for n in range(0, 40)])
      for low, high in ((0, 15), (0, 16), (0, 17), (0, 31), (0, 32), (1, 33), (16, 17), (17, 17), (15, 34), (32, 36))],
    ({"type": "array", "items": {"type": "null"}, "minItems": 33}, [[None] * n for n in (0, 16, 32, 33, 34, 49, 200)]),
    ({"type": "string", "pattern": "^[a-z]+\\d{2}$"}, ["ab12", "ab1", "12", "a12x", "A12"]),
    ({"type": "string", "pattern": "foo|^ba[rz]"}, ["foo", "xfoox", "bar", "bazaar", "xbar", "", "fo"]),
    ({"type": "string", "pattern": "^(\\([0-9]{3}\\))?[0-9]{3}-[0-9]{4}$"}, ["555-1212", "(888)555-1212", "(888)5551212"]),
    ({"type": "string", "pattern": "^a.c$"}, ["abc", "a\"c", "a\\c", "ac", "a日c"]),
    ({"type": "string", "pattern": "^[^\\s/]{1,3}$"}, ["ab", "a/b", "a b", "", "abcd", "日本"]),
    ({"type": "string", "pattern": "x*"}, ["", "abc"]),
    ({"type": "string", "pattern": "^\\S+@\\S+$"}, ["a@b", "@b", "a@", "a b@c"]),
    ({"type": "string", "pattern": "^[a-z_]+$", "minLength": 3, "maxLength": 6}, ["", "ab", "abc", "abcdef", "abcdefg", "ab1", "ABC"]),
    ({"type": "string", "pattern": "^.{1,4000}$"}, ["", "x", "x" * 4000, "x" * 4001, "日" * 4000, '"' * 4001, "a\nb"]),
    ({"type": "string", "pattern": "^[^\\s\\d]{2}[^\\W][^\\S]$"}, ["a-b ", "\u3000ab ", "\u00a0ab ", "\u0663ab ", "a1b ", "ab- ", "abcd"]),
    ({"type": "string", "pattern": "^[^\\s]{20,}$"}, ["x" * 19, "x" * 20, "é" * 300, "x" * 20 + " ", "x" * 20 + "\u3000"]),
    ({"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 9},
     ["a", "a-", "-a", "abcdefghi", "abcdefgh-", "abcdefg-i", "abcdefghij", "a-------i", ""]),
    ({"type": "string", "pattern": "^https?://", "minLength": 9, "maxLength": 24},
     ["http://", "http://a", "http://ab", "https://a", "http://" + "é" * 17, "http://" + "é" * 18, "https://" + '"' * 16, "ftp://abcdef"]),
    ({"type": "string", "pattern": "^(ab|xcde)+$", "minLength": 3, "maxLength": 7},
     ["ab", "abab", "ababab", "abababab", "xcde", "xcdeab", "abxcde", "xcdexcde", "aba", "xcd"]),
    ({"type": "string", "pattern": "^a(b|cde)$", "minLength": 3}, ["ab", "acde", "acd"]),
    ({"type": "string", "pattern": "^(.{5})*$", "minLength": 12, "maxLength": 18}, ["x" * n for n in (0, 5, 10, 12, 15, 18, 20)] + ["\\" * 15]),
    ({"type": "string", "pattern": "\\S", "minLength": 2}, ["", "a", " ", "  ", " a", "a ", " " * 30 + "a"]),
    ({"type": "string", "pattern": "^(\n|n\\\\)*$", "maxLength": 3}, ["\n" * 3, "\n" * 4, "n\\n\\", "n\\\n", "\nn\\"]),
    ({"type": "string", "pattern": "x{200}$", "maxLength": 201}, ["x" * 199, "x" * 200, "y" + "x" * 200, "x" * 202]),
    ({"type": "string", "pattern": "^.*a.{20}$", "minLength": 40, "maxLength": 40},
     ["x" * 19 + "a" + "x" * 20, "a" * 40, "x" * 20 + "a" + "x" * 19, "a" * 39, '"' * 19 + "a" + "é" * 20, "x" * 20 + "a" + "x" * 20]),
    ({"type": "string", "pattern": "^(a?){0,150}b$", "minLength": 3, "maxLength": 140},
     ["a" * n + "b" for n in (0, 1, 2, 3, 138, 139, 140, 150)] + ["a" * 9]),
    ({"type": "string", "pattern": "^(ab){2,400}$"}, ["ab", "abab", "ab" * 400, "ab" * 401, "ab" * 128, "ab" * 129 + "a"]),
    ({"type": "boolean"}, [True, False, 0, 1, "true", None]),
    ({"type": "null"}, [None, 0, "", False]),
    ({"type": ["string", "null"]}, ["x", None, 1]),
    ({"type": ["integer", "boolean"]}, [1, True, "1", 1.5]),
    ({"enum": ["a", 1, None, {"k": [1, 2]}, "b"]}, ["a", "b", "c", 1, 2, None, {"k": [1, 2]}, {"k": [1]}]),
    ({"type": "string", "enum": ["a", 1, "b"]}, ["a", "b", 1]),
    ({"type": "integer", "enum": [1, 5, 9], "minimum": 2}, [1, 5, 9]),
    ({"const": {"a": 1}}, [{"a": 1}, {"a": 2}, {}]),
    ({"const": "x\"y"}, ["x\"y", "xy"]),
    ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3], ["1"], [1, None], {}]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, [[], [None]]),
    ({"type": "array", "items": False}, [[], [1]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
     [[], [1], [1, "a"], [1, "a", 2], ["a"], ["a", 1]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
     [[], [1], [1, "a"], [1, "a", 2]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "maxItems": 3},
     [[], [1], [1, "a"], [1, "a", "b"], [1, "a", "b", "c"], [1, 2]]),
    ({"type": "array", "items": {}}, [[], [1, "a", None, [2], {"x": {}}]]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}},
      "required": ["b"], "additionalProperties": False},
     [{"b": "x"}, {"a": 1, "b": "x"}, {"a": 1, "b": "x", "c": None}, {"b": "x", "c": None}, {"a": 1}, {}, {"b": 1}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}},
      "additionalProperties": False},
     [{}, {"a": 1}, {"b": "x"}, {"c": None}, {"a": 1, "c": None}, {"a": 1, "b": "x", "c": None}, {"d": 1}, {"a": "1"}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": {"type": "boolean"}},
     [{"a": 1}, {"a": 1, "x": True}, {"a": 1, "x": 1}, {"a": 1, "x": True, "yy": False}, {"a": 1, "aa": True}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1}, {"x": 1, "y": 2}, {"x": "1"}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
     [{}, {"x": 1}, {"x": 1, "y": 2}, {"x": 1, "y": 2, "z": 3}]),
    ({"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False},
     [{}, {"x-a": 1}, {"y": 1}, {"x-a": "1"}]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "null"}},
     [{}, {"ab": None}, {"AB": None}]),
    ({"type": "object", "properties": {"a": False, "b": {"type": "integer"}}, "additionalProperties": False}, [{}, {"b": 1}, {"a": 1}]),
    ({"type": "object"}, [{}, {"a": [1, {"b": None}]}, [], 1]),
    ({}, [1, "a", None, True, [], {}, {"a": [1.5]}]),
    (True, [1, "a", None, [], {}]),
    ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [1, "ab", "abc", None]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a", None]),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}, "v": {"type": "integer"}}, "required": ["k", "v"], "additionalProperties": False},
                {"type": "object", "properties": {"k": {"const": "b"}, "v": {"type": "string"}}, "required": ["k", "v"], "additionalProperties": False}]},
     [{"k": "a", "v": 1}, {"k": "b", "v": "x"}, {"k": "a", "v": "x"}, {"k": "c", "v": 1}]),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, [2, 3, 4, 5, 6]),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}]},
     [{"a": 1, "b": "x"}, {"a": 1}, {"b": "x"}]),
    ({"type": "integer", "anyOf": [{"minimum": 10}, {"maximum": 3}]}, [3, 4, 9, 10, 2]),
    ({"$ref": "#/$defs/p", "$defs": {"p": {"type": "integer", "minimum": 1}}}, [0, 1, 2]),
    ({"$ref": "#/$defs/p", "maximum": 4, "$defs": {"p": {"type": "integer", "minimum": 1}}}, [0, 1, 4, 5]),
    ({"$defs": {"n": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                      "required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/n"},
     [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}, {"v": 1}, {"v": 1, "next": {"v": "2", "next": None}}]),
    ({"type": "array", "items": {"$ref": "#"}}, [[], [[]], [[], [[]]], [1]]),
    ({"properties": {"a~b": {"type": "integer"}, "c/d": {"$ref": "#/properties/a~0b"}}, "type": "object", "additionalProperties": False},
     [{"a~b": 1}, {"c/d": 2}, {"c/d": "x"}]),
    ({"type": "object", "properties": {"日": {"type": "integer"}, "q\"": {"type": "integer"}}, "additionalProperties": False},
     [{"日": 1}, {"q\"": 2}, {"日": 1, "q\"": 2}, {"x": 1}]),
]

# Values that validate and are left out: (schema, value).
UNDER = [
    ({"type": "integer"}, 1.0),                                            # integers have no fraction
    ({"type": "integer"}, 10 ** 20),                                       # 18 digits at most
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"z": 1}),  # only asked-for names
    ({"type": "string", "pattern": "^[^\\d]$"}, "é"),                       # of which some readers might say \\d
    ({"properties": {"a": {"type": "integer"}}}, 5),                       # the type its keywords speak of
    ({"type": "array", "prefixItems": [{"type": "integer"}]}, [1, "x"]),   # tuples end
]

# Keywords without a grammar: refused by name.
REFUSED = [
    ({"not": {"type": "integer"}}, "not"),
    ({"if": {"type": "integer"}, "then": {"minimum": 1}}, "if"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "integer", "multipleOf": 3}, "multipleOf"),
    ({"type": "string", "pattern": "^(ab)+$", "minLength": 3, "maxLength": 3}, "exclude each other"),
    ({"type": "string", "pattern": "^a", "minLength": 10_001}, "pattern"),
    ({"type": "string", "pattern": "^(.é){1,4000}$"}, "its repetitions make it longer"),
    ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
    ({"type": "string", "pattern": "(a)\\1"}, "pattern"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"$ref": "http://example.com/schema"}, "$ref"),
    ({"$ref": "#/$defs/none"}, "$ref"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "'$ref' to '#/$defs/a' leads back to itself"),
    ({"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
     "'$ref' to '#/$defs/a' leads back to itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}}, "leads back to itself"),
    ({"type": "array", "items": {"allOf": [{"type": "object"}, {"$ref": "#/items"}]}}, "'$ref' to '#/items' leads back to itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}}}, "circle"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
    ({"type": "text"}, "type"),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2}, "minProperties"),
    ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^x": {}}}, "patternProperties"),
    ({"type": "object", "properties": 3}, "properties"),
    ({"type": "object", "required": "a"}, "required"),
    ({"enum": []}, "enum"),
    ({"type": "string", "minLength": -1}, "minLength"),
    (False, "no value"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no value"),
]

TOOLS = [
    [{"name": "get_weather", "parameters": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"type": "string", "enum": ["c", "f"]}}, "required": ["city"]}},
     {"name": "now", "parameters": {"type": "object", "properties": {}}},
     {"name": "none"}],
    [{"name": "edit", "parameters": {"type": "object", "properties": {
        "path": {"type": "string", "minLength": 1},
        "edits": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {
            "old": {"type": "string"}, "new": {"type": "string"}, "all": {"type": "boolean"}},
            "required": ["old", "new"], "additionalProperties": False}},
        "mode": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, "required": ["path", "edits"]}}],
    [{"name": "mix", "parameters": {"type": "object", "properties": {
        "a": {"type": ["string", "integer"]}, "b": {"type": ["number", "null"]},
        "c": {"anyOf": [{"type": "integer", "minimum": 10}, {"type": "string"}]},
        "d": {"enum": ["x", "5", 5, None, "none"]}, "e": {"type": "boolean"},
        "f": {"oneOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]},
        "g": {}, "h": {"const": 7}}, "required": ["a", "c", "d", "f", "h"]}}],
    [{"name": "aliases", "parameters": {"type": "object", "properties": {
        "s": {"type": "str"}, "i": {"type": "int"}, "l": {"type": "list", "items": {"type": "float"}},
        "o": {"type": "dict"}}, "required": ["s", "i", "l", "o"]}}],
    [{"name": "bounded", "parameters": {"type": "object", "properties": {
        "t": {"type": "string", "minLength": 2, "maxLength": 5}, "p": {"type": "string", "pattern": "^[a-z_]+$"},
        "q": {"type": "string", "pattern": "^[a-z](-?[a-z<])*$", "minLength": 3, "maxLength": 8},
        "n": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}, "u": {"type": "string", "format": "date"}},
        "required": ["t", "p", "n", "u"]}}],
    [{"name": "tree", "parameters": {"type": "object", "$defs": {"node": {"type": "object", "properties": {
        "name": {"type": "string"}, "children": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}}},
        "required": ["name"], "additionalProperties": False}},
        "properties": {"root": {"$ref": "#/$defs/node"}}, "required": ["root"]}}],
    [{"name": "many", "parameters": {"type": "object", "properties": {
        f"p{i}": {"type": ["string", "integer", "boolean"][i % 3]} for i in range(9)}, "required": ["p1", "p7"]}}],
]

# Schemas that must be answered, by a grammar or an error, soon.
HOSTILE = {
    "deep": lambda: nested(60),
    "too deep": lambda: nested(400),
    "huge enum": lambda: {"enum": [f"value number {i}" for i in range(60000)]},
    "long enum strings": lambda: {"enum": ["x" * 2000 + str(i) for i in range(200)]},
    "counted": lambda: {"type": "string", "pattern": "^(((a{30}){30}){30}){30}$"},
    "counted wide": lambda: {"type": "string", "pattern": "^.{1,4000}$"},
    "nested stars": lambda: {"type": "string", "pattern": "^((a+)+)+b$"},
    "exponential": lambda: {"type": "string", "pattern": "^(a|b)*a(a|b){24}$"},
    "alternation": lambda: {"type": "string", "pattern": "|".join(f"w{i}x" for i in range(700))},
    "circle": lambda: {"$ref": "#"},
    "circle of two": lambda: {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "allOf circle": lambda: {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "fan": lambda: {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "null"}}, "$ref": "#/$defs/d0"},
    "product": lambda: {"allOf": [{"anyOf": [{"minimum": i}, {"maximum": i}]} for i in range(40)]},
    "megabyte": lambda: {"type": "object", "properties": {f"property_{i}": {"type": "string", "description": "d" * 40} for i in range(9000)}},
    "many bounded": lambda: {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 3 + i} for i in range(200)}},
    "large counts": lambda: {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 5000, "maxItems": 10000}, "minItems": 9000},
    "long names": lambda: {"type": "object", "properties": {"n" * 5000 + str(i): {} for i in range(50)}, "additionalProperties": {}},
}


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


class Main:
    def __init__(self, program, tokenizer):
        self.process = subprocess.Popen([program, tokenizer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


FAULTS = []
TIME_FACTOR = float(os.environ.get("M2_TIME_FACTOR", "1"))  # above 1 under a sanitizer


def check(holds, *what):
    if not holds:
        FAULTS.append(what)
        print("FAULT", *(str(w)[:600] for w in what))


def validates(schema, value):
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def spellings(schema, value):
    """One value as JSON texts: the forms the grammar must know. Characters of a pattern are written as they are."""
    yield json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and "pattern" not in str(schema) and all(c < "\ud800" for c in value):
        yield json.dumps(value)  # \u escapes
    yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    yield json.dumps(value, ensure_ascii=False, indent=2)


def is_written_one_way(schema, value):
    """Objects and arrays of an enum are written in one way only."""
    return isinstance(value, (dict, list)) and isinstance(schema, dict) and ("enum" in schema or "const" in schema)


def test_exact(main):
    cases = 0
    for schema, values in EXACT:
        cases_of = [(t, validates(schema, v)) for v in values for t in spellings(schema, v)
                    if not is_written_one_way(schema, v) or t == json.dumps(v, ensure_ascii=False)]
        texts = [text for text, _ in cases_of]
        wanted = [valid for _, valid in cases_of]
        answer = main.ask(schema=schema, texts=texts)
        check("error" not in answer, schema, answer)
        for text, want, got in zip(texts, wanted, answer.get("accepts", [])):
            cases += 1
            check(want == got, schema, text, "validates" if want else "does not validate", got)
    for schema, value in UNDER:
        check(validates(schema, value), schema, value)
        check(main.ask(schema=schema, texts=[json.dumps(value)]).get("accepts") == [False], schema, value)
    for schema, name in REFUSED:
        answer = main.ask(schema=schema, texts=[])
        check(name in answer.get("error", ""), schema, answer)
    print(f"exact: {cases} texts over {len(EXACT)} schemas; {len(UNDER)} left out, {len(REFUSED)} refused")


def test_dates(main):
    """Every day there is, and none that there is not."""
    def is_day(*day):
        try:
            datetime.date(*day)
        except ValueError:
            return False
        return True

    days = [(year, month, day) for year in (1900, 1999, 2000, 2023, 2024, 2100)
            for month in range(0, 14) for day in range(0, 33)]
    for form, tail in (("date", ""), ("date-time", "T23:59:59Z")):
        texts = [json.dumps(f"{y:04}-{m:02}-{d:02}{tail}") for y, m, d in days]
        accepts = main.ask(schema={"type": "string", "format": form}, texts=texts)["accepts"]
        for day, got in zip(days, accepts):
            check(got == is_day(*day), form, day, got)
    print(f"dates: {len(days)} days")


# Texts of a format, and texts that are none.
FORMATS = {
    "email": (["a@b.co", "first.last+tag@sub.example.com", "o'neil@x-y.example"],
              ["", "a", "@b.co", "a@b", "a@.co", "a@b..co", "a b@c.de", ".a@b.co", "a.@b.co", "a@-b.co",
               "a@b.c0", "A <a@b.co>", "a@b.co "]),
    "hostname": (["a", "localhost", "x-1.example.com", "1.2.3.4", "a--b"],
                 ["", "-a", "a-", "a..b", ".a", "a.", "a_b", "a b"]),
    "duration": (["P1D", "PT1S", "P1Y2M3D", "P1YT0S", "PT36H", "P12W", "PT1H2M3S", "P1M"],
                 ["", "P", "PT", "1D", "P1S", "PT1D", "P1Y1D", "PT1H1S", "P1W1D", "P1.5D", "P-1D", "p1d"]),
}


def test_formats(main):
    """The formats of OpenAI's structured outputs beside dates: IPv6 by Python's own reader."""
    def accepted(form, texts):
        answer = main.ask(schema={"type": "string", "format": form}, texts=[json.dumps(t) for t in texts])
        return answer["accepts"]

    for form, (right, wrong) in FORMATS.items():
        for text, got in zip(right + wrong, accepted(form, right + wrong)):
            check(got == (text in right), form, text, got)

    def is_address(text):
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
        return True

    random_source = random.Random(5)
    texts = ["::", "::1", "1::", ":::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::2::3", "12345::", "g::"]
    for _ in range(600):
        groups = [f"{random_source.randrange(1 << random_source.choice([4, 8, 16])):x}"
                  for _ in range(random_source.randint(0, 9))]
        for _ in range(random_source.choice([0, 1, 1, 1, 2])):
            groups.insert(random_source.randint(0, len(groups)), "")
        texts.append(":".join(groups))
    right = [is_address(text) for text in texts]
    check(100 < sum(right) < len(texts) - 100, sum(right), len(texts))
    for text, want, got in zip(texts, right, accepted("ipv6", texts)):
        check(want == got, "ipv6", text, want, got)
    walks = main.ask(schema={"type": "string", "format": "ipv6"}, walks=40, seed=1)
    check(walks["dry"] == 0, walks)
    for walk in walks["walks"]:
        check(is_address(json.loads(walk["content"])), "ipv6 walk", walk["content"])
    print(f"formats: {len(FORMATS) + 1}, {len(texts)} addresses")


def test_schema_walks(main, walks):
    done = cut = trials = 0
    for seed, (schema, _) in enumerate(EXACT):
        answer = main.ask(schema=schema, walks=walks, seed=seed)
        check(answer.get("dry", 1) == 0, "dry", schema, answer.get("dry_text"), answer.get("error"))
        check(answer["wrong_trials"] == 0, "a trial left something behind", schema)
        trials += answer["trials"]
        cut += answer.get("unfinished", 0)
        for walk in answer.get("walks", []):
            done += 1
            try:
                valid = validates(schema, json.loads(walk["content"]))
            except ValueError as error:
                valid = error
            check(valid is True, "walk", schema, walk["text"], valid)
    check(done > 10 * cut, "walks end", done, cut)
    check(trials > 10 * walks, "trials", trials)
    print(f"schema walks: {done} valid, {cut} cut, {trials} trials")


def test_tool_walks(main, walks):
    done = cut = trials = 0
    sets = json.loads((pathlib.Path(__file__).parent / "tool_sets.json").read_text())
    for seed, functions in enumerate(TOOLS + list(sets.values())):
        tools = [{"type": "function", "function": f} for f in functions]
        schemas = {f["name"]: f.get("parameters", {}) for f in functions}
        named = functions[seed % len(functions)]["name"]
        for asked in ({}, {"one": True}, {"only": named, "one": True}):
            one = "one" in asked
            answer = main.ask(tools=tools, walks=walks, seed=seed, **asked)
            check(answer.get("dry", 1) == 0, "dry", functions, answer)
            check(answer["wrong_trials"] == 0, "a trial left something behind", functions)
            trials += answer["trials"]
            check(answer.get("ignored") == [], answer.get("ignored"))
            cut += answer.get("unfinished", 0)
            for walk in answer.get("walks", []):
                done += 1
                check(walk["content"] == "", "content", walk)
                check(len(walk["calls"]) >= 1 and (not one or len(walk["calls"]) == 1), "calls", walk)
                check(len(walk["calls"]) == walk["text"].count("<invoke name="), "calls", walk)
                for call in walk["calls"]:
                    check("only" not in asked or call["name"] == named, "named", walk)
                    schema = schemas.get(call["name"])
                    check(schema is not None, "name", walk)
                    try:
                        arguments = json.loads(call["arguments"])
                        plain = functions_with_plain_types(schema)
                        valid = isinstance(arguments, dict) and validates(plain, arguments)
                    except ValueError as error:
                        valid = error
                    check(valid is True, "arguments", call, walk["text"], valid)
    check(done > 2 * cut, "walks end", done, cut)
    check(trials > 10 * walks, "trials", trials)
    print(f"tool walks: {done} valid, {cut} cut, {trials} trials")


def test_circles_in_tools(main):
    """A parameter whose schema only leads back to itself is refused by name; one that consumes is none."""
    a = {"$ref": "#/$defs/a"}
    for circle in ({"$ref": "#/$defs/b"}, {"anyOf": [a, {"type": "string"}]}, {"allOf": [{"type": "string"}, a]}):
        tools = [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"type": "object", "properties": {"y": a}}}, "$defs": {"a": circle, "b": a}}}}]
        error = main.ask(tools=tools, texts=[]).get("error", "")
        check(error.startswith("The parameter 'x' of the tool 'f': ") and "leads back to itself" in error, circle, error)
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": a}}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"x": a}, "required": ["x"], "$defs": {"a": tree}}}}]
    texts = [tool_call("f", x='{"children": [{"children": []}]}'), tool_call("f", x='{"children": [1]}')]
    check(main.ask(tools=tools, texts=texts).get("accepts") == [True, False], tools)


def tool_call(name, **values):
    parameters = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in values.items())
    return f'\n<invoke name="{name}">\n{parameters}</invoke>\n</minimax:tool_call>'


def test_lengths_in_calls(main):
    """Text values of a call: as many code points as the schema says, whatever they look like."""
    cases = 0
    for low, high in ((0, 5), (1, None), (3, 300), (600, 700)):
        schema = {"type": "string", "minLength": low} | ({} if high is None else {"maxLength": high})
        tools = [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"s": schema}, "required": ["s"]}}}]
        values = [c * n for n in (0, 1, 2, 3, 4, 5, 6, 299, 300, 301, 599, 600, 700, 701) for c in ("x", "é", "<", "\n", "🎉")]
        values += ["</p", "a</parameter>", "</parameter>" * 2, "<<</<", "x</parameter"]
        answer = main.ask(tools=tools, texts=[tool_call("f", s=value) for value in values])
        for value, got in zip(values, answer["accepts"]):
            cases += 1
            check(got == validates(schema, value), schema, value, got)
    print(f"lengths in calls: {cases} texts")


# Beginnings at which each token's bit of the mask must be what the matcher says of the token.
MASKS = [
    ({"type": "string", "minLength": 2, "maxLength": 5}, ['', '"', '"a', '"abc', '"abcde', '"ab\\', '"abcd\\u00', '"日本', '"\\"']),
    ({"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}, "b": {"type": "string", "minLength": 1}},
      "required": ["a", "b"], "additionalProperties": False},
     ['{', '{"a":', '{"a": "' + "x" * 12, '{"a": "' + "x" * 39, '{"a":"", "b":', '{"a":"", "b": "', '{"a":"", "b": "é']),
    ({"anyOf": [{"enum": ["abc", "abcdefgh"]}, {"type": "string", "minLength": 4, "maxLength": 6}, {"type": "null"}]},
     ['', '"', '"abc', '"abcdef', '"zz']),
    ({"type": "array", "items": {"type": "string", "maxLength": 2}, "minItems": 18, "maxItems": 40},
     ['[', '["a",' * 1, '["a"' + ', "bc"' * 16, '["a"' + ', "bc"' * 17, '["a"' + ', "bc"' * 39]),
    ({"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 9}, ['', '"', '"a', '"a-', '"abcdef', '"abcdefg-', '"abcdefgh']),
    ({"type": "object", "properties": {"u": {"type": "string", "pattern": "^https?://", "minLength": 12, "maxLength": 16}}, "required": ["u"]},
     ['', '{"u":', '{"u": "', '{"u": "https:', '{"u": "http://', '{"u": "http://' + "é" * 4, '{"u": "http://' + "é" * 9, '{"u": "http://\\']),
    ({"type": "string", "pattern": "^(ab|xcde)+$", "minLength": 3, "maxLength": 7}, ['', '"', '"a', '"ab', '"xc', '"abab', '"ababa']),
    ({"type": "string", "pattern": "a(b|cde)$", "minLength": 5, "maxLength": 30}, ['', '"', '"a', '"' + "x" * 20, '"' + "x" * 26, '"' + "x" * 27 + "a"]),
    ({"type": "string", "pattern": "^.*a.{20}$", "minLength": 10000, "maxLength": 10000},
     ['', '"', '"' + "xa" * 30, '"' + "a" * 9960, '"' + "a" * 9975 + "\\", '"' + "x" * 9979, '"' + "a" * 9985, '"' + "a" * 9999]),
    ({"type": "string", "pattern": "^(.|é|日){5,30}$", "minLength": 20, "maxLength": 25}, ['"', '"' + "é" * 12, '"' + "é" * 19 + "x", '"' + "日" * 23]),
    ({"type": "string", "pattern": "^(\\n|n\\\\|.)*$", "maxLength": 30}, ['"', '"\\n', '"' + "n" * 20 + "\\", '"' + "n" * 28]),
    ({"type": "object", "propertyNames": {"minLength": 3}, "additionalProperties": {"type": "string", "maxLength": 1}},
     ['{', '{"', '{"ab', '{"abc', '{"abc": ', '{"abc": "']),
]


def test_masks(main):
    looked = 0
    for schema, beginnings in MASKS:
        for text, mask in zip(beginnings, main.ask(schema=schema, at=beginnings)["at"]):
            looked += 1
            check(mask.get("wrong") == [] and mask["allowed"] > 0, schema, text, mask)
    beginning = tool_call("f", s="").split("</parameter>")[0]
    for low, high in ((0, 3), (2, 40)):
        tools = [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"s": {"type": "string", "minLength": low, "maxLength": high}}, "required": ["s"]}}}]
        texts = [beginning[:-8], beginning] + [beginning + t for t in ("a", "a<", "ab</para", "abc", "日本", "a" * (high - 1))]
        for text, mask in zip(texts, main.ask(tools=tools, at=texts)["at"]):
            looked += 1
            check(mask.get("wrong") == [] and mask["allowed"] > 0, (low, high), text, mask)
    print(f"masks: {looked} looked at")


# Patterns of several readings beside lengths, over texts of two letters, with beginnings to look at.
READINGS = [
    ("^.*a.{3}$", 9, 9, ["", "x", "xxaxx", "xaxaxa", "xxxxxa", "xxxxxxax"]),
    ("^.*a.{4}$", 2, 11, ["", "aaaaa", "xxxxxx", "xxxxxxa", "xxxxxxxxxx"]),
    ("^(.{3})*(.{5})*$", 4, 8, ["", "x", "xxxx", "xxxxxx"]),
    ("^((.{3})*|(.{4})*)$", 7, 11, ["", "xx", "xxxxxxxx", "xxxxxxxxx", "xxxxxxxxxx"]),
    ("^(a?){0,9}x(a|x)?$", 3, 7, ["", "a", "aaaaa", "aaaaaax"]),
    ("^(a|aa|xax)*x$", 5, 6, ["", "aa", "xax", "aaaa"]),
    ("a.*x.*a", 6, 7, ["", "xxx", "xxxa", "axxx", "xaxaxx"]),
]


def test_readings(main, tokenizer):
    """The mask's bits of the tokens of letters, against all texts of `a` and `x` that Python's re takes."""
    vocabulary = json.loads(pathlib.Path(tokenizer).read_text())["model"]["vocab"]
    tokens = sorted(t for t in vocabulary if t.isascii() and t.isalpha() and len(t) < 12)
    tokens = [t for n, t in enumerate(tokens) if set(t) <= set("ax") or n % 40 == 0]
    looked = taken = 0
    for pattern, least, most, beginnings in READINGS:
        # Letters but `a` and `x` are as `x` is where the pattern has a dot; elsewhere no token has them.
        other = "x" if "." in pattern else "?"
        texts = ["".join(c) for n in range(least, most + 1) for c in itertools.product("ax", repeat=n)]
        begun = {t[:n] for t in texts if re.search(pattern, t) for n in range(len(t) + 1)}
        schema = {"type": "string", "pattern": pattern, "minLength": least, "maxLength": most}
        answer = main.ask(schema=schema, at=['"' + b for b in beginnings], tokens=tokens)
        check("error" not in answer, pattern, answer)
        for beginning, mask in zip(beginnings, answer.get("at", [])):
            check(("error" in mask) == (beginning not in begun), pattern, beginning, mask)
            check(mask.get("wrong", []) == [], pattern, beginning, mask)
            for token, bit in zip(tokens, mask.get("takes", [])):
                if other == "x" and "x" in pattern and not set(token) <= set("ax"):
                    continue
                want = beginning + "".join(c if c in "ax" else other for c in token) in begun
                looked, taken = looked + 1, taken + want
                check(bit == want, pattern, least, most, beginning, token, "want", want)
    check(taken > 1000 and looked - taken > 1000, looked, taken)
    print(f"readings: {looked} bits, {taken} set")


def text_of(low, high, **more):
    return {"type": "string", "minLength": low, "maxLength": high, **more}


def object_of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# Grammars made to be expensive: beginnings of a text, and what the mask after each may cost at most, counted in
# states of the parser (some twenty to fifty nanoseconds each). Nothing: refused when compiled, or an error says so.
EXPENSIVE = [
    ({"schema": text_of(10000, 10000, pattern="^.*a.{20}$")}, ['"', '"' + "xa" * 30, '"' + "a" * 9960, '"' + "a" * 9985], 3000),
    ({"schema": text_of(3000, 3000, pattern="^.*foo$")}, ['"', '"' + "a" * 50, '"' + "a" * 2990, '"' + "a" * 2996], 1000),
    ({"schema": text_of(3, 140, pattern="^(a?){0,150}b$")}, ['"', '"' + "a" * 50, '"' + "a" * 130], 3000),
    ({"schema": text_of(20, 25, pattern="^(.|é|日){5,30}$")}, ['"' + "é" * 10, '"' + "é" * 20], 3000),
    ({"schema": text_of(100, 9999, pattern="^(.{7})*(.{11})*$")}, ['"' + "a" * 50, '"' + "a" * 93], 5000),
    ({"schema": {"anyOf": [text_of(i, 1000 + i) for i in range(100)]}}, ['"', '"aaa', '"' + "a" * 995], 60000),
    ({"schema": {"anyOf": [object_of(a={"type": "string"}, **{f"b{i}": {"type": "integer"}}) for i in range(60)]}},
     ['{"a": "', '{"a": "aaa'], 40000),
    ({"schema": {"type": "object", "properties": {f"p{i}": text_of(2, 90) for i in range(100)}, "additionalProperties": False}},
     ["{", '{"p1": "a', '{"p1": "aaa'], 240000),
    ({"schema": {"enum": ["a" * i for i in range(1, 400)]}}, ['"aaaa'], 2000),
    ({"regex": "(a?){0,150}b"}, ["", "a" * 10, "a" * 100], 3000),
    ({"regex": "\\w*a\\w{300}"}, ["a" * 320], 20000),
    ({"regex": "[a-z]{1,80}[a-z]{1,80}"}, ["a" * 100], 20000),
    ({"ebnf": "root ::= e\ne ::= e \"+\" e | e \"*\" e | \"(\" e \")\" | [0-9]+"}, ["1+1+1+" * 20], 20000),
    ({"ebnf": "root ::= \"(\" root \")\" root | root root | [a-z ]+ | \"\""}, ["a"], None),
    ({"ebnf": "root ::= ((w \" \"?)+ \".\"?)+\nw ::= [a-z]+"}, ["a"], None),
    ({"ebnf": "root ::= (x){1,1000} \"b\"\nx ::= \"a\"? \"c\"?"}, ["aaaa"], None),
    ({"tag": {"format": {"type": "sequence", "elements": [{"type": "regex", "pattern": ".*"}] * 30}}}, ["aaa"], None),
]


def test_expensive(main):
    """By count, so that a loaded machine does not matter; walks add what no beginning here thought of."""
    most = 0
    for grammar, beginnings, bound in EXPENSIVE:
        answer = main.ask(**grammar, at=beginnings, check=False, walks=2, steps=60)
        if bound is None:
            check("too ambiguous" in answer.get("error", ""), grammar, answer)
            continue
        check("error" not in answer and answer["dry"] == 0, grammar, answer.get("error"), answer.get("dry_text"))
        works = [mask.get("work", -1) for mask in answer.get("at", [])] + [answer.get("work", -1)]
        most = max([most] + works)
        check(all(0 <= work <= bound for work in works), grammar, works, bound)
    print(f"expensive: {len(EXPENSIVE)} grammars, the longest mask {most} states")


def test_compile_time(main):
    """What takes longest to compile for its length: refused where it would take seconds; others are not."""
    refused = ("[a-z ]{1,128}([a-z ]|[a-z0]){1,100}[a-z ]{1,128}", "[a-z]{1,128}[a-z]{1,128}[a-z]{1,128}",
               ".{1,128}", "(a?){0,9000}b")
    for regex in (*refused, "[a-z ]{1,120}", "[A-Za-z0-9_ .-]{1,100}", r"\w{1,300}", "[0-9a-f]{1,2000}"):
        answer = main.ask(regex=regex, at=[])
        check(("too large to compile" in answer.get("error", "")) == (regex in refused), regex, answer)
    print("compile time: judged")


def functions_with_plain_types(schema):
    names = {"str": "string", "int": "integer", "list": "array", "float": "number", "dict": "object"}
    if isinstance(schema, dict):
        return {k: names.get(v, v) if k == "type" and isinstance(v, str) else functions_with_plain_types(v)
                for k, v in schema.items()}
    return [functions_with_plain_types(s) for s in schema] if isinstance(schema, list) else schema


def test_hostile(main):
    slowest = 0
    for name, make in HOSTILE.items():
        schema = make()
        start = time.monotonic()
        answer = main.ask(schema=schema, texts=[])
        took = time.monotonic() - start
        slowest = max(slowest, took)
        print(f"  {name}: {took:.3f} s, {answer.get('error', 'a grammar')[:90]}")
        # The bound itself is 1 s, but the machine may be loaded.
        check(took < 8 * TIME_FACTOR, name, took)
    print(f"hostile: {len(HOSTILE)} answered, the slowest in {slowest:.2f} s")


def main():
    if not os.path.exists(sys.argv[2]):
        print(f"skipped: no {sys.argv[2]}")
        return
    walks = int(sys.argv[3]) if len(sys.argv) > 3 else 12
    process = Main(sys.argv[1], sys.argv[2])
    test_exact(process)
    test_dates(process)
    test_formats(process)
    test_compile_time(process)
    test_circles_in_tools(process)
    test_lengths_in_calls(process)
    test_masks(process)
    test_readings(process, sys.argv[2])
    test_schema_walks(process, walks)
    test_tool_walks(process, walks)
    test_expensive(process)
    test_hostile(process)
    print(f"{len(FAULTS)} faults")
    sys.exit(1 if FAULTS else 0)


if __name__ == "__main__":
    main()
