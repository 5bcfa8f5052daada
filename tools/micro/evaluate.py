"""Held-out items of each skill, and how many a model answers right (greedy)."""

import json
import re

import skills
import tools as tool_skill
from words import Source

EVALUATED = {
    "arithmetic": skills.arithmetic_in_range,
    "tools": skills.call_tools,
    "needle": skills.needle_measured,
    "identity": skills.identity,
    "follow-up": skills.follow_up,
    "json": skills.fill_json,
}


def items_of(skill, count, encoder=None, longest=2048):
    """`count` different held-out exchanges."""
    out, seen, number = [], set(), 0
    while len(out) < count:
        exchange = EVALUATED[skill](Source(f"{skill}/{number}", held_out=True))
        number += 1
        key = json.dumps(exchange.messages)
        if key in seen and not (skill == "identity" and number > 25):
            continue
        if encoder and len(encoder.encode(encoder.render(exchange.messages, exchange.tools))) > longest:
            continue
        seen.add(key)
        out.append(exchange)
    return out


def with_system(exchange, messages):
    return [{"role": "system", "content": exchange.system}, *messages] if exchange.system else messages


def turns_of(exchange):
    """(messages so far, message expected) of each turn the model writes after the last question."""
    messages = exchange.messages
    last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
    for i in range(last_user + 1, len(messages)):
        if messages[i]["role"] == "assistant":
            yield with_system(exchange, messages[:i]), messages[i]


CALL = re.compile(r'<invoke name="(.*?)">\n(.*?)</invoke>', re.S)
PARAMETER = re.compile(r'<parameter name="(.*?)">(.*?)</parameter>', re.S)


def calls_of(text):
    return [(name, dict(PARAMETER.findall(body))) for name, body in CALL.findall(text)]


def expected_calls(message):
    return [
        (c["function"]["name"], {k: tool_skill.text_of(v) for k, v in c["function"]["arguments"].items()})
        for c in message["tool_calls"]
    ]


def is_right(text, message, expect):
    """Whether what the model wrote (with its thinking) is this turn's right answer."""
    content = text.split("</think>")[-1]
    if message.get("tool_calls"):
        return calls_of(content) == expected_calls(message)
    content = content.strip()
    if expect["match"] == "number":
        numbers = re.findall(r"-?\d+(?:\.\d+)?", content)
        return bool(numbers) and numbers[-1] == expect["answer"]
    if expect["match"] == "json":
        try:
            return json.loads(content) == json.loads(expect["answer"])
        except ValueError:
            return False
    return content == expect["answer"] if expect["match"] == "exact" else expect["answer"] in content


def evaluate(model, encoder, count, show=2, longest_answer=400):
    """Prints and returns {skill: (right, items, ended)}; an item is right if all its turns are."""
    from model import generate

    table = {}
    for skill in EVALUATED:
        prompts, owners = [], []
        for item, exchange in enumerate(items_of(skill, count, encoder)):
            for messages, message in turns_of(exchange):
                prompts.append(encoder.encode(encoder.render(messages, exchange.tools, prompt=True)))
                owners.append((item, message, exchange))
        wrong, ended, shown = set(), 0, 0
        for start in range(0, len(prompts), 100):
            part = slice(start, start + 100)
            answers, done = generate(model, prompts[part], encoder.end, longest_answer)
            ended += sum(done)
            for ids, (item, message, exchange) in zip(answers, owners[part]):
                text = encoder.tokenizer.decode(ids, skip_special_tokens=False)
                if not is_right(text, message, exchange.expect):
                    wrong.add(item)
                    if shown < show:
                        shown += 1
                        print(f"  {skill}: {exchange.messages[0]['content'][-200:]!r}\n    wrote {text[-300:]!r}\n"
                              f"    wanted {message.get('tool_calls') or message['content']!r}", flush=True)  # fmt: skip
        table[skill] = (count - len(wrong), count, ended / len(prompts))
        print(f"{skill:12} {count - len(wrong)}/{count} right, {100 * ended / len(prompts):.1f} % end", flush=True)
    return table
