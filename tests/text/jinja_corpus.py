"""The (template, variables) pairs that jinja_differential.py renders.

The family templates are written for this test in the styles that common model families use.
"""

import pathlib

WORDS = [
    "", "a", "Hello!", "naïve café", "北京天气", "🙂🙃", "line\nbreak", " padded ", "\n", "tab\there",
    "quote \" and ' both", "it's", "back\\slash", "<b>&amp;</b>", "]~b]ai", "[e~[", "<think>",
    "</think>", "<think>\nhm\n</think>\n\nso", "thought</think>answer", "<minimax:tool_call>",
    "{{ x }}", "{% raw %}", "%s %d", "\u2028sep", "\x7f\x01", "ÀÉß", "ΑΣ", "a" * 70, "0", "None",
    "x\r\ny", "e\u0301", "\u00a0nbsp\u00a0", "<|im_start|>user", "[INST]", "--- - ---",
]
NAMES = ["get_weather", "search", "f", "föö", "run.code", "name", "items", "type"]


def random_text(rng):
    return rng.choice(["", " ", "\n", ""]).join(rng.choices(WORDS, k=rng.choice([1, 1, 2, 3])))


def random_number(rng):
    return rng.choice(
        [0, 1, -1, 7, 2**31, 2**53 + 1, -(2**63), 2**63 - 1, 0.0, -0.0, 0.5, 1e16, 1e-5, 1e22, 0.1,
         123456.789, 1e15, 123456789012345680.0, 5e-324, rng.random(), rng.randint(-999, 999)]
    )


def random_json(rng, depth):
    kind = rng.randrange(8 if depth > 0 else 5)
    if kind < 2:
        return random_text(rng)
    if kind == 2:
        return random_number(rng)
    if kind == 3:
        return rng.choice([None, True, False])
    if kind == 4:
        return rng.choice([[], {}, "", 0])
    if kind == 5:
        return [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {
        rng.choice(NAMES + WORDS): random_json(rng, depth - 1) for _ in range(rng.randrange(5))
    }


def random_arguments(rng):
    return {rng.choice(NAMES): random_json(rng, 2) for _ in range(rng.randrange(4))}


def random_content(rng):
    if rng.random() < 0.7:
        return random_text(rng)
    parts = []
    for _ in range(rng.randrange(4)):
        parts.append(
            rng.choice(
                [
                    {"type": "text", "text": random_text(rng)},
                    {"type": "image", "url": "http://x"},
                    random_text(rng),
                    {"type": "text"},
                    {"output": random_text(rng)},
                ]
            )
        )
    return parts


def random_call(rng):
    arguments = random_arguments(rng)
    call = {"name": rng.choice(NAMES), "arguments": arguments if rng.random() < 0.95 else "{}"}
    if rng.random() < 0.8:
        call = {"id": "call_%d" % rng.randrange(99), "type": "function", "function": call}
    return call


def random_message(rng, role):
    message = {"role": role}
    if rng.random() < 0.9:
        message["content"] = random_content(rng) if rng.random() < 0.95 else None
    if role == "assistant":
        if rng.random() < 0.3:
            message["reasoning_content"] = random_text(rng)
        if rng.random() < 0.4:
            message["tool_calls"] = [random_call(rng) for _ in range(rng.randrange(1, 3))]
    if role == "tool" and rng.random() < 0.5:
        message["tool_call_id"] = "call_%d" % rng.randrange(99)
        message["name"] = rng.choice(NAMES)
    if role == "system" and rng.random() < 0.3:
        message["current_date"] = "2026-01-02"
        message["current_location"] = random_text(rng)
    return message


def random_tool(rng):
    function = {
        "name": rng.choice(NAMES),
        "description": random_text(rng),
        "parameters": {
            "type": "object",
            "properties": {
                rng.choice(NAMES): {
                    "type": rng.choice(["string", "integer", ["string", "null"]]),
                    "description": random_text(rng),
                    **({"enum": ["a", "b", "ç"]} if rng.random() < 0.3 else {}),
                }
                for _ in range(rng.randrange(4))
            },
            "required": rng.sample(NAMES, 2),
        },
    }
    return {"type": "function", "function": function}


def random_conversation(rng):
    roles = ["system"] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(1, 5)):
        roles.append("user")
        roles.append("assistant")
        if rng.random() < 0.4:
            roles += ["tool"] * rng.randrange(1, 3) + ["assistant"]
    if rng.random() < 0.5:
        roles.append("user")
    if rng.random() < 0.1:
        rng.shuffle(roles)
    variables = {
        "messages": [random_message(rng, role) for role in roles],
        "add_generation_prompt": rng.random() < 0.5,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    if rng.random() < 0.4:
        variables["tools"] = [random_tool(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.2:
        variables["enable_thinking"] = rng.random() < 0.5
    if rng.random() < 0.1:
        variables["model_identity"] = random_text(rng)
    return variables


def conversation_cases(templates, rng):
    """Real templates: every conversation with one of them, so that a template is parsed once."""
    return [(template, random_conversation(rng)) for template in templates for _ in range(350)]


def family_cases(rng):
    folder = pathlib.Path(__file__).parent / "jinja_templates"
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text()
        cases += [(template, random_conversation(rng)) for _ in range(60)]
    return cases


SNIPPET_VARIABLES = {
    "s": "Hello World", "u": "naïve ΑΣ 北京", "empty": "", "pad": "  x y  \n", "csv": "a,b,,c",
    "lines": "one\n\n two\r\nthree", "n": 7, "neg": -3, "f": 2.5, "big": 10**15, "t": True,
    "no": False, "nil": None, "xs": [3, 1, 2], "names": ["bob", "Al", "cy", "al"],
    "d": {"b": 1, "a": "x", "items": 5, "k y": [1, 2]}, "nested": {"p": {"q": [{"r": "deep"}]}},
    "rows": [{"n": "x", "v": 3, "on": True}, {"n": "Y", "v": 1}, {"n": "z", "v": 2, "on": False}],
    "mixed": [1, "1", 1.0, None, True, [1], {"a": None}], "quotes": "it's \"q\" \\ \t\x00é\u200b",
    "fl": [0.1, 1e16, 1e-7, 100.0, -0.0, 1e300],
}

ATOMS = list(SNIPPET_VARIABLES) + [
    "missing", "1", "0", "-2", "3.5", "'a'", "''", "'lo'", "[]", "{}", "[1, 'b']", "{'a': 1}",
    "(1, 2)", "true", "none", "xs[0]", "d.a", "d['b']", "d.zzz", "s[1:4]", "s[::-1]", "xs[-1]",
    "nested.p.q[0].r", "range(4)", "names[1:]", "u[2]", "rows[0].n",
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in",
             "not in", "and", "or"]
FILTERS = [
    "upper", "lower", "title", "capitalize", "trim", "length", "count", "first", "last", "list",
    "join", "join(', ')", "join('-', attribute='n')", "sort", "sort(reverse=true)",
    "sort(attribute='v')", "sort(case_sensitive=true)", "unique|list", "reverse|list", "int",
    "float", "abs", "round", "round(1)", "round(1, 'floor')", "string", "tojson",
    "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)",
    "tojson(separators=(',', ':'))", "default('dd')", "d('dd', true)", "replace('l', 'LL')",
    "replace('', '-')", "replace('o', '0', 1)", "items|list", "dictsort", "dictsort(by='value')",
    "dictsort(reverse=true)", "map(attribute='n')|list", "map('upper')|list",
    "map(attribute='on', default='?')|list", "map('string')|join", "select|list", "reject|list",
    "select('string')|list", "select('>', 1)|list", "selectattr('on')|list",
    "selectattr('v', 'gt', 1)|list", "rejectattr('on', 'defined')|list", "sum", "min", "max",
    "sum(attribute='v')", "max(attribute='v')", "indent", "indent(2, true)",
    "indent('> ', blank=true)", "escape", "e", "safe", "batch(2)|list", "batch(2, 'x')|list",
    "slice(2)|list", "wordcount", "truncate(9)", "truncate(9, true, '!', 0)", "center(11)",
    "format(1)", "attr('upper')", "int(base=16)", "int(5)", "float(1.5)", "trim('Hd')",
]
TESTS = [
    "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true",
    "false", "mapping", "iterable", "sequence", "callable", "odd", "even", "divisibleby(2)",
    "divisibleby 3", "eq 1", "ne(1)", "lt 3", "gt(1)", "ge 2", "le 2", "in [1, 'b']", "lower",
    "upper", "sameas none", "equalto 'a'", "in(xs)", "filter", "test", "== 1", "greaterthan 1",
]
METHODS = [
    "upper()", "lower()", "title()", "capitalize()", "strip()", "lstrip()", "rstrip()",
    "strip('Hd ')", "split()", "split(',')", "split(' ', 1)", "rsplit(None, 1)", "rsplit(',', 1)",
    "split(maxsplit=1)", "splitlines()", "splitlines(true)", "startswith('H')", "endswith('d')",
    "startswith(('a', 'H'))", "replace('l', '')", "replace('o', '00', 1)", "find('o')",
    "find('zz')", "rfind('o')", "find('o', 5)", "index('l')", "count('l')", "join(['a', 'b'])",
    "join(names)", "isdigit()", "isalpha()", "isalnum()", "isspace()", "isupper()", "islower()",
    "zfill(15)", "center(20, '*')", "ljust(14, '.')", "rjust(14)", "removeprefix('He')",
    "removesuffix('ld')", "partition(' ')", "rpartition('o')", "items()|list",
    "keys()|list", "values()|list", "get('a')", "get('zz', 9)", "get('zz')", "append(1)",
    "pop()", "update({})", "index(1)", "count(1)", "items()", "keys()", "foo()", "__class__",
    "format(1)", "copy()", "clear", "items", "_private", "isdecimal()",
]

WRITTEN = [
    # Whitespace control.
    "  {% if t %}\n  x\n  {% endif %}\ny", "a  {%- if t -%}  b  {%- endif %}  c",
    "a\n  {%+ if t +%}\n b{% endif %}", "{{- s -}}  x\n\n{{ n }}\n", "\n{# c #}\nx{#- d -#}  y",
    "a {# x\n y #}\n b", "{% raw %}\n {{ x }} {% if %}{% endraw %}\nend",
    "  {%- raw -%}  {{ a }}  {%- endraw -%}  z", "x\r\n{% if t %}\r\ny\r\n{% endif %}\r\n",
    "{{ s }}\n\n", "\t{% set a = 1 %}\t{{ a }}", "  {# c #}  x", "   {{ s }}", "{{'}}'}}",
    "{{ {'a': {'b': 1}}.a.b }}", "{%if t%}1{%endif%}", "{{ '{%' }}{# {{ #}", "{{ \"a'b\" 'c' }}",
    "text only", "", "{", "{ {", "}}", "a {{ 1 }}}", "{#-#}x", "{{ s }}\n{%- if t %}\n z{% endif %}",
    "{% set x -%}  a  {%- endset %}[{{ x }}]", "{% if t -%}\n\n  a\n\n{%- endif %}\n b",
    # Strings and numbers.
    r"{{ 'a\nb\t\x41\u00e9\\ \'q\' \q' }}", "{{ 1_000 + 0x1F + 0b11 + 0o17 }}", "{{ 1e3 }} {{ 1.5e-7 }}",
    "{{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}", "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }}",
    "{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1 / 4 }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ 'ab' * 3 }}{{ 2 * [1] }}",
    "{{ fl }} {{ fl|join(' ') }}", "{{ 0.1 + 0.2 }} {{ 1e16 }} {{ 100.0 }}", "{{ true + 1 }}", "{{ -n|abs }}",
    "{{ quotes|tojson }} {{ [quotes] }}", "{{ mixed }} {{ mixed|tojson }}", "{{ d }}", "{{ (1,) }}{{ () }}",
    "{{ '%s-%05d-%.2f-%x' % (s, n, f, 255) }}", "{{ '%(b)s' % d }}", "{{ '%s' % s }}", "{{ '%d%%' % n }}",
    "{{ '%s %s' % (1,) }}", "{{ '%5s|%-5s|' % ('a', 'b') }}", "{{ '%r' % [s] }}", "{{ '%+d' % n }}",
    "{{ '{} {1}'.format(1, 2) }}", "{{ '{0}-{1}-{x}'.format(1, 2, x=s) }}", "{{ '{:>8}|{:<5}|{:^5}'.format(s, n, 'x') }}",
    "{{ '{:.2f} {:05d} {:,}'.format(f, n, big) }}", "{{ '{a[0].b} {{}}'.format(a=[{'b': 1}]) }}", "{{ '{!r}'.format(s) }}",
    "{{ 3|round }} {{ 2.5|round }} {{ 3.5|round }} {{ 2.675|round(2) }} {{ 2.1|round(method='ceil') }}",
    "{{ '42.7'|int }} {{ 'x'|int }} {{ 'x'|int(3) }} {{ '0x1f'|int(base=16) }} {{ ' 7 '|int }} {{ none|int }}",
    "{{ '1e3'|float }} {{ 'inf'|float }} {{ 'q'|float(2) }}", "{{ missing|int }}", "{{ 9223372036854775807 }}",
    # Names, scopes and loops.
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set (a, b) = [1, 2] %}{{ a }}{{ b }}", "{% set a, b = 1 %}",
    "{% set a = 1, %}{{ a }}", "{% set a, b = 1, 2, 3 %}", "{% set x = missing %}[{{ x }}]",
    "{% for x in xs %}{% set y = x %}{% endfor %}[{{ y }}]", "{% set y = 0 %}{% for x in xs %}{% set y = y + x %}{{ y }}{% endfor %}{{ y }}",
    "{% set ns = namespace(a=1) %}{% for x in xs %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace({'q': 1}, b=2) %}{{ ns.q }}{{ ns.b }}{{ ns.zz }}", "{% set d.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% if t %}{% set z = 5 %}{% endif %}{{ z }}", "{% if no %}{% set z = 5 %}{% endif %}[{{ z }}]",
    "{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }};{% endfor %}",
    "{% for x in xs %}[{{ loop.previtem }}|{{ x }}|{{ loop.nextitem }}]{% endfor %}",
    "{% for x in xs if x > 1 %}{{ loop.index }}:{{ x }} {% else %}none{% endfor %}", "{% for x in [] %}a{% else %}E{% endfor %}",
    "{% for x in missing %}a{% else %}E{% endfor %}", "{% for x in nil %}a{% endfor %}", "{% for x in 5 %}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }};{% endfor %}", "{% for c in u %}{{ c }}.{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }} {% endfor %}", "{% for a, b in xs %}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for x in xs %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% else %}E{% endfor %}", "{% for x in xs %}{% break %}{% else %}E{% endfor %}",
    "{% for x in xs %}{% for y in names %}{% if loop.index > 2 %}{% break %}{% endif %}{{ x }}{{ y }}{{ loop.index }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% break %}", "{% for x in range(3) %}{{ x }}{% endfor %}{{ range(5)[1:3] }}{{ range(3)|list }}", "{{ range(1, 10, 3)|list }} {{ range(5, 0, -2)|list }}",
    "{{ range(3) }}", "{{ loop }}", "{% for x in xs recursive %}{% endfor %}x" if False else "{{ xs|length }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}[{{ a }}]", "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% set q %}<{{ s }}>{% set inner = 1 %}{% endset %}{{ q }}{{ inner }}", "{% set q | upper | trim %}  {{ s }} {% endset %}{{ q }}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('l', 'L')|trim %} {{ s }} {% endfilter %}", "{% print s, n %}",
    "{% generation %}{{ s }}{% set zz = 1 %}{% endgeneration %}{{ zz }}",
    # Macros.
    "{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}", "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(z=2) }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro m() %}{{ caller() }}!{{ caller() }}{% endmacro %}{% call m() %}hi{{ s }}{% endcall %}", "{% macro m(xs) %}{% for x in xs %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(v, i) m(xs) %}<{{ v }}{{ i }}>{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}hi{% endcall %}", "{% macro m() %}[{{ caller }}]{% endmacro %}{{ m() }}",
    "{% macro fact(n) %}{{ 1 if n <= 1 else n * fact(n - 1)|int }}{% endmacro %}{{ fact(6) }}", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% for x in xs %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}{{ m() }}", "{% macro m() %}{{ loop }}{% endmacro %}{% for x in xs %}{{ m() }}{% endfor %}",
    "{{ m }}{% macro m() %}{% endmacro %}{{ m() }}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(*[1]) }}{{ m(**{'x': 2}) }}", "{% macro m(a, b=1, c) %}{% endmacro %}",
    "{% macro m(s) %}{{ s|upper }}{% endmacro %}{{ xs|map('string')|map('upper')|join }}{{ m('q') }}",
    # Expressions.
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }}", "{{ not a == b }} {{ not 1 in xs }} {{ 1 not in xs }}", "{{ 'a' if t }}[{{ 'a' if no }}]",
    "{{ 'a' if no else 'b' if no else 'c' }}", "{{ ('a' if no) is defined }}", "{{ ('a' if no).x }}", "{{ t and s or n }} {{ no or nil }} {{ '' or [] or 0 }}",
    "{{ 1 + 2 * 3 - 4 / 2 }} {{ (1 + 2) * 3 }} {{ 2 ~ 3 + 4 }} {{ 1 + 2 ~ 3 * 2 }}", "{{ -n + +n }} {{ - 3|abs }} {{ not not t }}", "{{ s is string and n is not string }}",
    "{{ n is divisibleby 7 and t }} {{ n is odd }} {{ xs is iterable }}", "{{ missing is defined or s is defined }}", "{{ s.upper().lower().title() }} {{ 'x'.join(['a', 'b']) }}",
    "{{ xs.0 }} {{ nested.p.q.0.r }} {{ d['k y'][1] }}", "{{ xs[10] }}[{{ xs['a'] }}]", "{{ xs[10].z }}", "{{ missing.z }}", "{{ missing['z'] }}", "{{ nil.z }}|{{ nil.z.y }}", "{{ missing + 1 }}",
    "{{ missing() }}", "{{ s() }}", "{{ s.foo() }}", "{{ d.zzz.y }}", "{{ xs.append(4) }}", "{{ d.update(a=1) }}", "{{ d.items.x }}", "{{ d.__class__ }}|", "{{ d.__class__.x }}", "{{ s.__class__.__mro__ }}",
    "{{ xs[1:] }}{{ xs[:-1] }}{{ xs[::2] }}{{ xs[::-1] }}{{ xs[5:] }}{{ xs[-2:5] }}{{ xs[2:0:-1] }}", "{{ u[1:4] }}{{ u[::-1] }}{{ u[-2:] }}{{ u[0] }}{{ u[-1] }}{{ u|length }}", "{{ xs[::0] }}", "{{ n[1:] }}", "{{ xs['a':] }}",
    "{{ 'b' in d }}{{ 'x' in d }}{{ 'ell' in s }}{{ '' in s }}{{ 3 in xs }}{{ missing in xs }}", "{{ 1 in s }}", "{{ 1 in n }}", "{{ 1 in missing }}", "{{ [1] in [[1], 2] }}{{ (1, 2) == (1, 2) }}{{ {'a': 1} == {'a': 1.0} }}",
    "{{ 1 < 'a' }}", "{{ [1, 2] < [1, 3] }}{{ 'a' < 'b' }}{{ 'Z' < 'a' }}{{ (1,) < (1, 2) }}", "{{ missing == none }}{{ missing == missing }}{{ none == none }}", "{{ missing < 1 }}", "{{ {1: 'a', true: 'b', none: 'c'} }}", "{{ {[1]: 2} }}", "{{ {1: 'a', 'b': none, 1.5: t}|tojson }}",
    "{{ dict(a=1, b=s) }}{{ dict({'x': 1}, y=2) }}{{ dict([('a', 1)]) }}", "{{ dict(1) }}", "{{ namespace(a=1).a }}", "{{ raise_exception('boom ' ~ s) }}", "{{ raise_exception(n) }}", "{% if no %}{{ raise_exception('x') }}{% endif %}ok",
    "{{ xs|tojson(indent=2) }}{{ d|tojson(indent=4) }}{{ []|tojson(indent=2) }}{{ nested|tojson(indent=1) }}", "{{ d|tojson(sort_keys=true, indent=0) }}", "{{ xs|tojson(separators=(',', ':')) }}{{ u|tojson(ensure_ascii=true) }}", "{{ missing|tojson }}", "{{ range(3)|tojson }}", "{{ xs|tojson(indent='--') }}",
    "{{ d.items() }}{{ d.keys() }}{{ d.values() }}", "{{ d.keys()|list|tojson }}", "{{ d.items()|first }}", "{{ (rows|map(attribute='n')) is sequence }}", "{% set g = xs|map('string') %}{{ g|list }}{{ g|list }}", "{{ 'yes' if xs|select('>', 9) else 'no' }}", "{{ rows|map(attribute='n')|length }}",
    "{{ xs|map('nofilter')|list }}", "{{ xs|select('notest')|list }}", "{{ s|nofilter }}", "{% if no %}{{ s|nofilter }}{% endif %}ok", "{{ (s|nofilter) if no else 'ok' }}", "{{ s is notest }}", "{% if t %}{{ s|nofilter }}{% endif %}", "{% if no %}{% for x in xs %}{{ x|nofilter }}{% endfor %}{% endif %}",
    "{{ rows|selectattr('on')|map(attribute='n')|join }}", "{{ rows|rejectattr('on', 'defined')|list }}", "{{ rows|selectattr('v', 'in', [1, 2])|map(attribute='v')|list }}", "{{ rows|sort(attribute='zz') }}", "{{ rows|sort(attribute='n,v')|map(attribute='n')|list }}", "{{ mixed|sort }}", "{{ rows|map(attribute='q.z')|list }}", "{{ [[1, 2], [3]]|map(attribute=0)|list }}", "{{ [[1, 2], [3]]|sum(start=[]) }}",
    "{{ names|sort }}{{ names|sort(case_sensitive=true) }}{{ names|unique|list }}{{ names|min }}{{ names|max }}", "{{ []|min }}|{{ []|first }}|{{ []|last }}|{{ ''|first }}", "{{ []|first.x }}", "{{ 5|first }}", "{{ 5|length }}", "{{ lines|indent }}|{{ lines|indent(2, first=true) }}|{{ lines|indent(blank=true) }}", "{{ 'a-b (c d) <e'|title }} {{ \"it's\".title() }}", "{{ s|replace('l') }}", "{{ s|trim('x', 'y') }}", "{{ s|default }}{{ missing|default }}{{ missing|d('x') }}{{ ''|d('y', true) }}{{ ''|d('y', boolean=false) }}",
    "{{ '<a href=\"x\">&\\'' |e }}", "{{ csv.split(',') }}{{ csv.split(',', 1) }}{{ csv.rsplit(',', 1) }}{{ pad.split() }}{{ ''.split(',') }}{{ ''.split() }}", "{{ s.split('') }}", "{{ s.startswith(1) }}", "{{ s.replace(1, 2) }}", "{{ [1, 2]|join(', ') }}{{ ','.join([1]) }}", "{{ s.format }}|" if False else "{{ s.upper is callable }}", "{{ namespace is callable }}{{ missing is callable }}",
    "{% if xs %}a{% endif %}{% if {} %}b{% elif '' %}c{% elif 0.0 %}d{% else %}e{% endif %}", "{{ [t, no, nil] }}{{ t }}{{ nil }}{{ [missing] }}", "{{ '\\n' in lines }}{{ lines.splitlines() }}", "{{ 'ß'.upper() }}{{ 'ﬁ'.upper() }}{{ 'ΑΣ'.lower() }}{{ 'İ'.lower() }}{{ 'ǆ'.title() }}", "{{ '١'.isdigit() }}{{ '²'.isdigit() }}{{ '½'.isnumeric() }}",
    "{{ s|batch(3)|list }}{{ range(7)|slice(3)|list }}", "{{ xs|first ~ xs|last }}", "{{ xs is sameas xs }}{{ none is sameas none }}", "{{ 3 is in xs }}{{ 3 is not in xs }}", "{{ x if x is defined else 'd' }}", "{{ (xs, d)[0][1] }}", "{{ [xs, [s]]|string }}",
    # Errors of parsing.
    "{{", "{{ }}", "{% if %}", "{% if t %}", "{% endif %}", "{% for x in %}{% endfor %}", "{% nosuch %}", "{{ 1 + }}", "{{ (1 }}", "{{ [1, }}", "{{ a.b. }}", "{{ 'abc }}", "{# x", "{% raw %}x", "{{ a b }}", "{{ 1 is }}", "{% set 1 = 2 %}", "{% set none = 2 %}", "{{ {1} }}", "{{ ] }}", "{{ a | }}", "{{ f(a=1, 2) }}", "{% macro %}{% endmacro %}", "{{ $ }}", "{{ a ? b }}", "{% if t %}{% endfor %}", "{{ a[1 }}", "{{ x is string is string }}", "{% else %}", "{% call 5 %}{% endcall %}",
]


def generated(rng, depth):
    """A random expression."""
    kind = rng.randrange(9) if depth > 0 else 0
    if kind == 0:
        return rng.choice(ATOMS)
    inner = generated(rng, depth - 1)
    if kind == 1:
        return "%s.%s" % (inner, rng.choice(METHODS))
    if kind in (2, 3):
        return "(%s)|%s" % (inner, rng.choice(FILTERS))
    if kind == 4:
        return "(%s is %s%s)" % (inner, rng.choice(["", "", "not "]), rng.choice(TESTS))
    if kind in (5, 6):
        return "(%s %s %s)" % (inner, rng.choice(OPERATORS), generated(rng, depth - 1))
    if kind == 7:
        return "(%s if %s else %s)" % (inner, generated(rng, depth - 1), rng.choice(ATOMS))
    return rng.choice(["(%s)[0]", "([s, %s])[1:]", "[%s, 1]", "{'k': %s}", "(not %s)", "(-%s)"]) % inner


# What the reference prints with an address in it, or as the type of a class of its own; and
# numbers beyond 64 bits, which this engine refuses.
UNPRINTABLE = [" object at 0x", "<bound method", "<built-in", "<class", "<function", "<generator",
               "Markup("]


def is_comparable(text):
    return not any(word in text for word in UNPRINTABLE)


def snippet_cases(rng):
    cases = [(template, SNIPPET_VARIABLES) for template in WRITTEN]
    cases += [("{{ %s|%s }}" % (atom, f), SNIPPET_VARIABLES) for f in FILTERS
              for atom in ("s", "xs", "rows", "d", "missing", "n", "f", "u", "names")]
    cases += [("{{ %s.%s }}" % (atom, m), SNIPPET_VARIABLES) for m in METHODS
              for atom in ("s", "xs", "d", "csv", "u")]
    cases += [("{{ %s is %s }}" % (atom, test), SNIPPET_VARIABLES) for test in TESTS
              for atom in ("s", "xs", "d", "missing", "n", "f", "nil", "t")]
    cases += [("{{ %s }}" % generated(rng, 3), SNIPPET_VARIABLES) for _ in range(1500)]
    return cases
