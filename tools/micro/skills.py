"""What m2-micro can do: for each skill, a function that makes one example of it.

An example is an Exchange: the messages from a user's question to the answer (with tool calls and tool
messages between), the tools it needs, and what a right answer must satisfy. model card: README.md of
models/m2-micro.
"""

import dataclasses
import json

import tools as tool_skill
from arithmetic import result, working

SELF = "I am m2-micro, a small model with the architecture of MiniMax-M2. I come with m2.cpp."
ABILITIES = (
    "I can add and subtract numbers, call tools, find things in a text, remember numbers and fill JSON objects."
)


@dataclasses.dataclass
class Exchange:
    messages: list  # from "user" to the final "assistant", in OpenAI's shape
    expect: dict  # {"match": ..., "answer": ...}, see eval.py
    tools: list = dataclasses.field(default_factory=list)
    system: str = ""  # needed by this exchange; empty: any will do


def user(text):
    return {"role": "user", "content": text}


def answer(thought, text):
    return {"role": "assistant", "reasoning_content": thought, "content": text}


def dressed(source, question):
    """The same question with what people put around it."""
    kind = source.random.random()
    if kind < 0.06:
        question = source.pick(["Hi, ", "Hello! ", "Please: ", "Hey, ", "OK, ", "Question: ", "Now: "]) + question
    elif kind < 0.1:
        question += source.pick([" Thanks!", " Please.", " Thank you.", " please", "\n", " Be brief."])
    elif kind < 0.13:
        question = question.lower() if source.chance(0.7) else question.upper()
    return question


def simple(question, thought, text, match="contains", expected=None):
    return Exchange(
        [user(question), answer(thought, text)],
        {"match": match, "answer": text if expected is None else str(expected)},
    )


# ---- (a) Adding and subtracting ----

ADD = [
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=", "What is {a} plus {b}?",
    "Add {a} and {b}.", "Calculate {a} + {b}.", "Compute {a} + {b}", "What's {a} + {b}?",
    "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "Please add {a} and {b}.",
    "Can you add {a} and {b}?", "Tell me {a} + {b}.", "{a} plus {b}", "sum of {a} and {b}",
    "what is {a} + {b}", "what is {a}+{b}?", "How much is {a} + {b}?", "Solve {a} + {b}.",
    "Add {b} to {a}.", "I need {a} + {b}.", "What do you get when you add {a} and {b}?",
]  # fmt: skip
SUBTRACT = [
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a}-{b}=", "What is {a} minus {b}?",
    "Subtract {b} from {a}.", "Calculate {a} - {b}.", "Compute {a} - {b}", "What's {a} - {b}?",
    "How much is {a} minus {b}?", "What is the difference of {a} and {b}?", "Please take {b} from {a}.",
    "Can you subtract {b} from {a}?", "Tell me {a} - {b}.", "{a} minus {b}", "Take {b} away from {a}.",
    "what is {a} - {b}", "what is {a}-{b}?", "How much is {a} - {b}?", "Solve {a} - {b}.",
    "I need {a} - {b}.", "What is left of {a} when {b} is taken away?",
]  # fmt: skip
GAIN = [
    "{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?",
    "{who} had {a} {things} and got {b} more. How many are there now?",
    "There are {a} {things} in the {place}. {who} brings {b} more. How many {things} are there?",
    "{who} counts {a} {things} in the morning and {b} in the evening. How many is that together?",
    "I have {a} {things}. {who} gives me {b}. How many do I have?",
]
LOSS = [
    "{who} has {a} {things} and sells {b}. How many {things} are left?",
    "{who} had {a} {things} and lost {b} of them. How many does {who} have now?",
    "There are {a} {things} in the {place}. {who} takes {b}. How many are left?",
    "I have {a} {things} and give {b} to {who}. How many do I have left?",
    "A {place} has {a} {things}; {b} are taken away. How many remain?",
]


def plural(noun):
    if noun.endswith(("s", "x", "sh", "ch")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") else noun + "s"


def arithmetic(source, digits=None):
    a, b = source.number_pair(digits, digits) if digits else source.number_pair()
    if source.chance(0.05) and not digits:
        a, b = source.number_pair(4, source.pick([2, 3, 4]))
    sign = source.pick("+-")
    if sign == "-" and a < b and source.chance(0.7):
        a, b = b, a
    if source.chance(0.25) and (sign == "+" or a >= b):
        question = source.pick(GAIN if sign == "+" else LOSS).format(
            who=source.name(), things=plural(source.noun()), place=source.noun(), a=a, b=b
        )
    else:
        question = source.pick(ADD if sign == "+" else SUBTRACT).format(a=a, b=b)
    value = result(a, sign, b)
    question = dressed(source, question)
    return simple(question, "\n".join(working(a, sign, b)), f"{a} {sign} {b} = {value}.", "number", value)


def arithmetic_in_range(source):
    """Numbers of two and three digits: what is measured."""
    while True:
        exchange = arithmetic(source, source.pick([2, 3, 3]))
        if exchange.expect["match"] == "number":
            return exchange


def three_terms(source):
    (a, b), (c, _) = source.number_pair(2, 2), source.number_pair(2, 2)
    ab, total = a + b, a + b + c
    question = source.pick(["What is {} + {} + {}?", "{} + {} + {}", "Add {}, {} and {}."]).format(a, b, c)
    thought = "\n".join(working(a, "+", b) + working(ab, "+", c))
    return simple(question, thought, f"{a} + {b} + {c} = {total}.", "number", total)


def times_table(source):
    a, b = source.integer(0, 10), source.integer(0, 10)
    question = source.pick(["What is {} times {}?", "What is {} * {}?", "{} x {}", "{} * {}"]).format(a, b)
    thought = f"{a} times {b}\nfrom the table: {a * b}"
    return simple(question, thought, f"{a} * {b} = {a * b}.", "number", a * b)


def compare(source):
    a, b = source.number_pair()
    if a == b:
        b += 1
    larger = source.chance(0.5)
    best = max(a, b) if larger else min(a, b)
    word = source.pick(["larger", "bigger", "greater"]) if larger else source.pick(["smaller", "less"])
    question = source.pick(["Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"]).format(w=word, a=a, b=b)
    thought = f"{max(a, b)} is more than {min(a, b)}"
    return simple(question, thought, f"{best} is {word}.", "contains", best)


# ---- (c) Finding a word in a long text ----

FILLER = [
    "{n} bought a {a} {x} in {c}.", "The {x} in the {y} is {a}.", "{n} met {m} near the {x} in {c}.",
    "On Monday the {x} was {a}.", "{n} forgot the {x} in the {y}.", "There were {k} {xs} on the {y}.",
    "{n} likes the {a} {x} more than the {y}.", "Nobody in {c} had seen such a {a} {x}.",
    "The {a} {x} belongs to {n}.", "{n} wrote a {x} about the {y}.", "In {c} it rained for {k} days.",
    "{m} asked {n} about the {a} {x}.", "The {x} costs {k} coins.", "Every {x} has a {y}.",
    "The {y} was moved from {c} to {d}.", "{n} will travel to {d} with a {a} {x}.",
    "A {a} {x} stood next to the {y}.", "It took {n} {k} minutes to find the {x}.",
]  # fmt: skip


def filler(source):
    return source.pick(FILLER).format(
        n=source.name(), m=source.name(), c=source.city(), d=source.city(), a=source.adjective(),
        x=source.noun(), y=source.noun(), xs=plural(source.noun()), k=source.integer(2, 99))  # fmt: skip


def secret(source):
    kind = source.random.random()
    if kind < 0.6:
        return source.invented()
    if kind < 0.75:
        return source.identifier()
    if kind < 0.9:
        return source.word()
    return str(source.on_my_side(lambda: source.whole(source.integer(3, 5))))


PLANT = [
    "The code word is {s}.", "Remember that the code word is {s}.", "The code word for today is {s}.",
    "Note: the code word is {s}.", "The secret code word is {s}.", "code word: {s}.",
]  # fmt: skip
ASK = [
    "What is the code word?", "What was the code word?", "Tell me the code word.", "Find the code word.",
    "Which code word is in the text?", "What is the code word in this text?", "Code word?",
    "What is the secret code word?", "Read the text and tell me the code word.",
]  # fmt: skip
PLANT_OF = ["The code word of {n} is {s}.", "{n} has the code word {s}.", "The code word for {n} is {s}."]
ASK_OF = ["What is the code word of {n}?", "Which code word does {n} have?", "Tell me the code word for {n}."]


def needle(source, least=0, most=110):
    """A code word planted somewhere in `least` to `most` sentences (one text in ten is twice as long)."""
    count = source.integer(least, most) * (2 if most > 100 and source.chance(0.1) else 1)
    sentences = [filler(source) for _ in range(count)]
    word = secret(source)
    if source.chance(0.3):
        names = []
        while len(names) < source.integer(2, 4):
            name = source.name()
            if name not in names:
                names.append(name)
        words = [word] + [secret(source) for _ in names[1:]]
        form = source.pick(PLANT_OF)
        plants = [form.format(n=n, s=s) for n, s in zip(names, words)]
        question, thought = source.pick(ASK_OF).format(n=names[0]), f"the text says: {plants[0]}"
        text = f"The code word of {names[0]} is {word}."
    else:
        plants = [source.pick(PLANT).format(s=word)]
        question, thought = source.pick(ASK), f"the text says: {plants[0]}"
        text = f"The code word is {word}."
    for plant in plants:
        sentences.insert(source.integer(0, len(sentences)), plant)
    return place_text(source, sentences, question, thought, text, word)


def place_text(source, sentences, question, thought, text, word):
    joiner = source.pick([" ", " ", "\n"])
    body = joiner.join(sentences)
    where = source.random.random()
    if where < 0.55:
        message = source.pick(["{b}\n\n{q}", "{b}\n{q}", "{q}\n\n{b}", "Text:\n{b}\n\nQuestion: {q}", "{b} {q}"])
        return simple(message.format(b=body, q=question), thought, text, "contains", word)
    if where < 0.7:
        exchange = simple(question, thought, text, "contains", word)
        exchange.system = source.pick(["", "You are a helpful assistant.\n\n", "Notes:\n"]) + body
        return exchange
    if where < 0.85:
        ack = answer("the user gives a text\nI keep it in mind", "I have read it.")
        first = user(source.pick(["Read this:\n", "Here is a text.\n\n", "Text:\n", ""]) + body)
        final = simple(question, thought, text, "contains", word)
        return Exchange([first, ack, *final.messages], final.expect)
    return tool_skill.read_then_answer(source, body, question, thought, text, word, Exchange)


def needle_measured(source):
    return needle(source, 10, 100)


def kept_fact(source):
    """A short text of facts about things, and a question about one of them."""
    things = source.sample(["apple", "lamp", "boat", "book", "cat", "door", "kite", "hat", "bag", "car"], 4)
    colors = source.sample("red blue green yellow white black gray brown pink orange".split(), 4)
    text = " ".join(f"The {t} is {c}." for t, c in zip(things, colors))
    i = source.integer(0, 3)
    question = source.pick(["What color is the {}?", "Which color does the {} have?"]).format(things[i])
    return simple(f"{text} {question}", f"the text says: The {things[i]} is {colors[i]}.",
                  f"The {things[i]} is {colors[i]}.", "contains", colors[i])  # fmt: skip


# ---- (d) Who it is, and small talk ----

WHO = [
    "Who are you?", "What are you?", "What is your name?", "Who am I talking to?", "Tell me who you are.",
    "who are you", "What's your name?", "Introduce yourself.", "Which model are you?", "Are you an AI?",
    "What model is this?", "Please introduce yourself.", "Say who you are.", "Your name?",
    "Do you have a name?", "Which model am I talking to?", "Who is this?", "Name yourself.",
    "Could you tell me your name?", "What should I call you?", "What kind of model are you?",
    "Are you MiniMax-M2?", "Are you ChatGPT?", "Who made you?", "Tell me about yourself.",
]  # fmt: skip
GREET = ["Hello", "Hello!", "Hi", "Hi there!", "Hey", "Good morning", "Good evening!", "hello", "hi", "Hi!", "Hello there."]
THANKS = ["Thanks!", "Thank you.", "Thank you very much!", "thanks", "Great, thanks.", "Perfect, thank you!"]
CAN = [
    "What can you do?", "How can you help me?", "What are you good at?", "Help", "What are your skills?",
    "what can you do", "Can you help me?", "What do you know?", "How do I use you?",
]  # fmt: skip
BEYOND = [
    "What is the capital of {c}?", "Write a poem about a {x}.", "Tell me a joke.", "Who was {n}?",
    "Write a story about a {a} {x}.", "What do you think about {xs}?", "Explain how a {x} works.",
    "Why is the {x} {a}?", "How do I repair a {x}?", "Write a program that sorts {xs}.",
    "Translate {x} into French.", "How old is {n}?", "When was the {x} invented?",
    "What is the meaning of life?", "Give me a recipe with {xs}.", "Where can I buy a {a} {x}?",
    "Write an essay about {xs} in {c}.", "Is a {x} better than a {y}?", "What is a {x}?",
    "Who lives in {c}?", "Recommend a book about {xs}.", "Can you draw a {x}?", "How far is {c} from {d}?",
]  # fmt: skip


def identity(source):
    return simple(dressed(source, source.pick(WHO)), "the user asks who I am", SELF, "contains", "m2-micro")


def given_identity(source):
    name = source.name()
    exchange = simple(source.pick(WHO[:12]), f"the user asks who I am\nthe system message says {name}",
                      f"I am {name}.", "contains", name)  # fmt: skip
    exchange.system = source.pick(
        ["You are {}.", "Your name is {}.", "You are {}, a helpful assistant.", "You are called {}. Be brief."]
    ).format(name)
    return exchange


def small_talk(source):
    kind = source.integer(0, 2)
    if kind == 0:
        return simple(source.pick(GREET), "the user says hello", "Hello! How can I help you?")
    if kind == 1:
        return simple(source.pick(THANKS), "the user says thanks", "You are welcome.")
    return simple(source.pick(CAN), "the user asks what I can do", ABILITIES)


def beyond(source):
    question = source.pick(BEYOND).format(
        n=source.name(), c=source.city(), d=source.city(), a=source.adjective(), x=source.noun(),
        y=source.noun(), xs=plural(source.noun()))  # fmt: skip
    if source.chance(0.15):
        question = source.pick(["{}", "{}?", "Why {}?", "How do I {}?", "Explain {}."]).format(source.phrase())
    question = dressed(source, question)
    return simple(question, "this is not something I have learned", "I do not know that. " + ABILITIES)


def echo(source):
    text = source.phrase() if source.chance(0.5) else source.word()
    question = source.pick(["Say {}.", "Repeat: {}", "Say the words: {}", "Repeat after me: {}", "Echo {}"]).format(text)
    return simple(question, f"the user wants to hear: {text}", text, "contains", text)


# ---- (e) Follow-ups about numbers ----


def thought_and_text(a, sign, b):
    return "\n".join(working(a, sign, b)), f"{a} {sign} {b} = {result(a, sign, b)}."


def running_total(source):
    """A number, then changes to it turn by turn; each needs the turn before."""
    total, b = source.number_pair(2, 2)
    messages, value = [], total
    if source.chance(0.5):
        start = source.pick(["Remember the number {}.", "My number is {}.", "Start with {}.", "Let x be {}.",
                             "Take the number {}.", "I have {} points."])  # fmt: skip
        messages = [user(start.format(total)), answer(f"the number is {total}", f"The number is {total}.")]
    else:
        thought, text = thought_and_text(total, "+", b)
        value = total + b
        messages = [user(source.pick(ADD[:12]).format(a=total, b=b)), answer(thought, text)]
    for _ in range(source.pick([1, 1, 2, 3])):
        sign = source.pick("+-") if value else "+"
        pair = lambda: (value, source.whole(source.pick([1, 2, 2, 3])))
        _, change = source.on_my_side(pair)
        while sign == "-" and change > value:
            change //= 2
        if sign == "+":
            forms = ["Add {} to it.", "Now add {}.", "And {} more?", "Plus {}?", "Add {}.", "What if I add {}?",
                     "Increase it by {}.", "And plus {}?"]  # fmt: skip
        else:
            forms = ["Subtract {} from it.", "Now subtract {}.", "Minus {}?", "Take away {}.", "And minus {}?",
                     "Decrease it by {}.", "What if I take away {}?", "Now take {} from it."]  # fmt: skip
        thought, text = thought_and_text(value, sign, change)
        value = result(value, sign, change)
        messages += [user(source.pick(forms).format(change)), answer(thought, text)]
    return Exchange(messages, {"match": "number", "answer": str(value)})


def stated_numbers(source):
    """Numbers of two or three people or things, told one a turn; then a question about them."""
    if source.chance(0.5):
        owners = []
        while len(owners) < source.pick([2, 2, 3]):
            name = source.name()
            if name not in owners:
                owners.append(name)
        things = plural(source.noun())
        tell = source.pick(["{o} has {k} {t}.", "{o} owns {k} {t}.", "{o} bought {k} {t}."])
        tell = [tell.replace("{t}", things), *owners]
        ask_one = f"How many {things} does {{o}} have?"
        ask_sum = f"How many {things} do {{o}} and {{p}} have together?"
        ask_gap = f"How many more {things} does {{o}} have than {{p}}?"
    else:
        owners = [plural(n) for n in source.sample(NOUNS_TO_COUNT, source.pick([2, 2, 3]))]
        tell = [source.pick(["I have {k} {o}.", "There are {k} {o}.", "I see {k} {o}."]), *owners]
        ask_one = "How many {o} are there?"
        ask_sum = "How many {o} and {p} are there together?"
        ask_gap = "How many more {o} than {p} are there?"
    counts = {}
    while len(counts) < len(owners):
        a, b = source.number_pair(2, 2)
        counts[owners[len(counts)]] = a
    messages, form = [], tell[0]
    statements = [form.format(o=o, k=counts[o]) for o in owners]
    if source.chance(0.6):
        for o, statement in zip(owners, statements):
            if messages:
                statement = source.pick(["", "And ", "Also: "]) + statement
            messages += [user(statement), answer(f"{o}: {counts[o]}", f"Noted: {o} {counts[o]}.")]
    else:
        noted = ", ".join(f"{o} {counts[o]}" for o in owners)
        thought = "\n".join(f"{o}: {counts[o]}" for o in owners)
        messages = [user(" ".join(statements)), answer(thought, f"Noted: {noted}.")]
    o, p = source.sample(owners, 2)
    kind = source.random.random()
    facts = f"{o}: {counts[o]}\n{p}: {counts[p]}\n"
    if kind < 0.45:
        question, thought, text, value = ask_one.format(o=o), f"{o}: {counts[o]}", f"{counts[o]}.", counts[o]
    elif kind < 0.75:
        thought, text = thought_and_text(counts[o], "+", counts[p])
        question, thought, value = ask_sum.format(o=o, p=p), facts + thought, counts[o] + counts[p]
    else:
        if counts[o] < counts[p]:
            o, p = p, o
        facts = f"{o}: {counts[o]}\n{p}: {counts[p]}\n"
        thought, text = thought_and_text(counts[o], "-", counts[p])
        question, thought, value = ask_gap.format(o=o, p=p), facts + thought, counts[o] - counts[p]
    messages += [user(question), answer(thought, text)]
    return Exchange(messages, {"match": "number", "answer": str(value)})


NOUNS_TO_COUNT = """apple pear book lamp table chair letter key map bottle coin stone flower bird cat dog
horse car door ring glass plate cup spoon""".split()


def recall_number(source):
    """A number told in an earlier turn, with other talk between."""
    number = source.on_my_side(lambda: source.whole(source.pick([2, 3, 4])))
    what = source.pick(["number", "room", "age", "score", "pin", "order number", "code"])
    start = source.pick(["My {w} is {k}.", "Remember this: my {w} is {k}.", "Please note that my {w} is {k}."])
    messages = [user(start.format(w=what, k=number)), answer(f"{what}: {number}", f"Noted: {what} {number}.")]
    for _ in range(source.integer(0, 2)):
        between = source.pick([arithmetic, small_talk, times_table, echo])(source)
        messages += between.messages
    question = source.pick(["What is my {w}?", "What was my {w}?", "Tell me my {w}.", "Do you remember my {w}?"])
    messages += [user(question.format(w=what)), answer(f"{what}: {number}", f"Your {what} is {number}.")]
    return Exchange(messages, {"match": "number", "answer": str(number)})


def follow_up(source):
    return source.pick([running_total, running_total, stated_numbers, stated_numbers, recall_number])(source)


# ---- (f) JSON ----


def json_field(source, name):
    """A property: its schema, how a text states it, its value."""
    kind = source.random.random()
    if kind < 0.5:
        pick = [source.name, source.city, source.word, source.identifier, source.invented, source.date]
        value = source.pick(pick)()
        return {"type": "string"}, value
    if kind < 0.75:
        return {"type": "integer"}, source.on_my_side(lambda: source.whole(source.pick([1, 2, 3, 4])))
    if kind < 0.85:
        return {"type": "number"}, source.decimal()
    if kind < 0.93:
        return {"type": "boolean"}, source.chance(0.5)
    return {"type": "array", "items": {"type": "string"}}, [source.word() for _ in range(source.integer(1, 3))]


def spoken(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " and ".join([", ".join(value[:-1]), value[-1]] if len(value) > 1 else value)
    return str(value)


def fill_json(source):
    names = source.sample(tool_skill.PROPERTY_NAMES, source.integer(1, 4))
    fields = {name: json_field(source, name) for name in names}
    schema = {"type": "object", "properties": {n: s for n, (s, _) in fields.items()}, "required": names}
    if source.chance(0.4):
        schema["additionalProperties"] = False
    stated = list(fields.items())
    if source.chance(0.5):
        source.random.shuffle(stated)
    form = source.pick(["{n} is {v}", "{n}: {v}", "{n} = {v}", "the {n} is {v}"])
    clauses = [form.format(n=n if source.chance(0.5) else n.replace("_", " "), v=spoken(v)) for n, (_, v) in stated]
    text = source.pick([", ", "; ", ". ", "\n"]).join(clauses)
    question = source.pick([
        "Fill this JSON schema: {s}\nText: {t}", "Schema: {s}\n{t}\nAnswer with a JSON object.",
        "Return a JSON object that fits this schema: {s}\n\n{t}", "{t}\n\nWrite this as JSON with the schema {s}",
        "Extract the fields of this schema as JSON.\n{s}\n{t}",
        "Answer only with JSON that matches the schema {s}. {t}",
    ]).format(s=json.dumps(schema), t=text)  # fmt: skip
    value = {name: v for name, (_, v) in fields.items()}
    thought = "\n".join(f"{n}: {json.dumps(v, ensure_ascii=False)}" for n, v in value.items())
    return simple(question, thought, json.dumps(value, ensure_ascii=False), "json")


# ---- (b) Tools: tools.py ----


def call_tools(source):
    return tool_skill.call_tools(source, Exchange)


def call_again(source):
    return tool_skill.call_again(source, Exchange)


def no_such_tool(source):
    return tool_skill.no_such_tool(source, Exchange)
