"""Renders many templates with this project's engine and with jinja2, and compares the bytes.

usage: jinja_differential.py RENDER_PROGRAM DATA_DIR [SEED]

RENDER_PROGRAM is jinja_render_main. jinja2 is set up as Hugging Face transformers does it.
"""

import copy
import datetime
import json
import pathlib
import random
import subprocess
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

import jinja_corpus


class Generation(jinja2.ext.Extension):
    """{% generation %}, which prints its body in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


class Raised(jinja2.TemplateError):
    """What raise_exception raises."""


class Namespace(jinja2.utils.Namespace):
    """namespace() of transformers, which refuses names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name, value):
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"underscore-prefixed attribute {name!r}")
        super().__setitem__(name, value)


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["namespace"] = Namespace
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


class Reference:
    def __init__(self):
        self.env = environment()
        self.parsed = {}

    def render(self, template, variables):
        """("text", text), ("raised", message) or ("error", message)."""
        try:
            if template not in self.parsed:
                self.parsed[template] = self.env.from_string(template)
            return "text", self.parsed[template].render(copy.deepcopy(variables))
        except Raised as error:
            return "raised", str(error.message)
        except Exception as error:  # whatever Python raises, the template has failed
            return "error", f"{type(error).__name__}: {error}"


def render_all(program, cases):
    lines = []
    for template, variables in cases:
        lines.append(json.dumps({"template": template, "variables": variables}))
    done = subprocess.run(
        [program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.strip("\n").split("\n")]


def difference(expected, got):
    """What is wrong with an answer, or None."""
    kind, text = expected
    if kind == "text":
        if "error" in got:
            return f"error {got['error']!r} instead of text"
        if got["text"] != text:
            return f"text {got['text']!r}"
        if "".join(piece[0] for piece in got["pieces"]) != text:
            return "the pieces do not join to the text"
        return None
    if "error" not in got:
        return f"text {got['text']!r} instead of an error"
    if kind == "raised" and got["error"] != text:
        return f"message {got['error']!r}"
    return None


def compare(program, cases):
    reference = Reference()
    answers = render_all(program, cases)
    assert len(answers) == len(cases), (len(answers), len(cases))
    failures = 0
    counts = {"text": 0, "raised": 0, "error": 0}
    for (template, variables), got in zip(cases, answers):
        expected = reference.render(template, variables)
        if not jinja_corpus.is_comparable(expected[1]):
            continue
        counts[expected[0]] += 1
        problem = difference(expected, got)
        if problem:
            failures += 1
            if failures <= 40:
                print("---", template if len(template) < 400 else template[:200] + "...")
                print("variables:", json.dumps(variables, ensure_ascii=False)[:300])
                print("expected:", expected)
                print("got:", problem)
    print(f"{len(cases)} pairs: {counts}, {failures} differ")
    return failures


def compare_dumps(program, rng, count):
    """python_json against json.dumps."""
    cases = []
    for _ in range(count):
        value = jinja_corpus.random_json(rng, 4)
        cases.append((value, rng.random() < 0.5, rng.choice([-1, -1, 0, 2, 4])))
    lines = [json.dumps({"dump": v, "ensure_ascii": a, "indent": i}) for v, a, i in cases]
    done = subprocess.run(
        [program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    failures = 0
    for (value, ascii_only, indent), line in zip(cases, done.stdout.strip("\n").split("\n")):
        expected = json.dumps(
            value, ensure_ascii=ascii_only, indent=None if indent < 0 else indent
        )
        if json.loads(line)["text"] != expected:
            failures += 1
            print("--- dumps of", repr(value), "is", json.loads(line)["text"])
    print(f"{len(cases)} json.dumps: {failures} differ")
    return failures


def main():
    program, data = sys.argv[1], pathlib.Path(sys.argv[2])
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 2)
    templates = [path.read_text() for path in sorted(data.glob("chat_template*.jinja"))]
    if not templates:
        print(f"no released templates in {data}: using the written ones only")
    cases = jinja_corpus.conversation_cases(templates, rng)
    cases += jinja_corpus.family_cases(rng)
    cases += jinja_corpus.snippet_cases(rng)
    failures = compare(program, cases) + compare_dumps(program, rng, 500)
    assert len(cases) >= 3000, len(cases)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
