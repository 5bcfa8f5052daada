"""Tool calls: invented tools with invented parameters, and some that agents really have."""

import json

from words import ADJECTIVES, NOUNS, PARAMETER_WORDS, VERBS

PROPERTY_NAMES = [*PARAMETER_WORDS, "first_name", "last_name", "order_id", "user_id", "due_date", "start_time",
                  "max_results", "in_stock", "is_open", "file_path", "total_price", "room_number", "tags",
                  "customer_name", "zip_code", "unit_price", "created_at", "flight_number"]  # fmt: skip


def text_of(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tool(name, description, properties, required=None):
    parameters = {"type": "object", "properties": properties}
    if required is None:
        required = list(properties)
    if required:
        parameters["required"] = required
    return {"type": "function",
            "function": {"name": name, "description": description, "parameters": parameters}}  # fmt: skip


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


# ---- Names ----


def join_name(source, words, style):
    if style == "snake":
        return "_".join(words)
    if style == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    if style == "kebab":
        return "-".join(words)
    if style == "dotted":
        return ".".join(words)
    return "".join(word.capitalize() for word in words)


def tool_words(source):
    """(verb, object words): what the tool does, and what its name is made of."""
    if source.chance(0.35):
        return source.invented(), [source.invented()] if source.chance(0.5) else []
    verb = source.pick(VERBS)
    objects = [source.pick(NOUNS)]
    if source.chance(0.4):
        objects.insert(0, source.pick(ADJECTIVES) if source.chance(0.5) else source.pick(NOUNS))
    if source.chance(0.15):
        objects[-1] = source.invented()
    return verb, objects


def parameter_name(source):
    kind = source.random.random()
    if kind < 0.5:
        return source.pick(PARAMETER_WORDS)
    if kind < 0.75:
        words = [source.pick(NOUNS + ADJECTIVES), source.pick(PARAMETER_WORDS)]
        return join_name(source, words, source.pick(["snake", "snake", "camel"]))
    if kind < 0.9:
        return source.invented()
    return join_name(source, [source.invented(), source.pick(PARAMETER_WORDS)], "snake")


# ---- Values ----


def string_value(source):
    make = source.pick([source.word, source.word, source.invented, source.name, source.city, source.identifier,
                        source.path, source.email, source.date, source.clock_time, source.phrase,
                        source.expression])  # fmt: skip
    return make()


def parameter(source):
    """One parameter: (schema, value, how a request says the value)."""
    kind = source.random.random()
    if kind < 0.5:
        value = string_value(source)
        needs_quotes = " " in value or source.chance(0.3)
        return {"type": "string"}, value, f'"{value}"' if needs_quotes else value
    if kind < 0.68:
        value = source.on_my_side(lambda: source.integer(-20, 9999) if source.chance(0.5) else source.whole(2))
        return {"type": "integer"}, value, str(value)
    if kind < 0.78:
        value = source.decimal() if source.chance(0.7) else source.whole(2)
        return {"type": "number"}, value, str(value)
    if kind < 0.86:
        value = source.chance(0.5)
        return {"type": "boolean"}, value, source.pick([["false", "true"], ["off", "on"], ["no", "yes"], ["False", "True"]])[value]
    if kind < 0.93:
        choices = list(dict.fromkeys(source.word() for _ in range(source.integer(2, 4))))
        value = source.pick(choices)
        return {"type": "string", "enum": choices}, value, value
    if source.chance(0.3):
        value = {source.word(): source.whole() if source.chance(0.5) else source.word() for _ in range(source.integer(1, 2))}
        return {"type": "object"}, value, json.dumps(value)
    if source.chance(0.6):
        items = [source.word() for _ in range(source.integer(1, 3))]
        return {"type": "array", "items": {"type": "string"}}, items, spoken_list(source, items)
    items = [source.whole(2) for _ in range(source.integer(1, 3))]
    return {"type": "array", "items": {"type": "integer"}}, items, spoken_list(source, items)


def spoken_list(source, items):
    if source.chance(0.4):
        return json.dumps(items)
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


# ---- Invented tools ----


class Invented:
    """A tool, values for its parameters, and requests that ask for it."""

    def __init__(self, source, taken):
        while True:
            self.verb, self.objects = tool_words(source)
            key = (self.verb, *self.objects)
            if key not in taken:
                break
        taken.add(key)
        words = [self.verb, *self.objects]
        if source.chance(0.08):
            words.insert(0, source.invented())
        self.name = join_name(source, words, source.pick(["snake"] * 5 + ["camel"] * 3 + ["kebab", "pascal", "dotted"]))
        self.phrase = " ".join([self.verb, source.pick(["the", "a", "the"]), *self.objects])
        self.values, self.spoken, properties, required = {}, {}, {}, []
        for _ in range(source.pick([0, 1, 1, 1, 2, 2, 3, 4])):
            name = parameter_name(source)
            if name in properties:
                continue
            schema, value, spoken = parameter(source)
            if source.chance(0.5):
                schema = {**schema, "description": describe_parameter(source, name)}
            schema = with_extras(source, name, schema)
            properties[name] = schema
            optional = source.chance(0.25)
            if not optional:
                required.append(name)
            if not optional or source.chance(0.5):
                self.values[name], self.spoken[name] = value, spoken
        description = source.pick(["{p}.", "{p}", "{p} in the system.", "Use this to {q}.", "This tool can {q}."])
        description = description.format(p=self.phrase[0].upper() + self.phrase[1:], q=self.phrase)
        self.tool = as_clients_send(source, tool(self.name, description, properties, required))

    def request(self, source):
        clauses = []
        form = source.pick(["{n} {v}", "{n} {v}", "{n} = {v}", "{n}={v}", "{n}: {v}", "{n} set to {v}", "{v} as {n}"])
        items = list(self.spoken.items())
        if source.chance(0.3):
            source.random.shuffle(items)
        for name, spoken in items:
            said = name.replace("_", " ") if source.chance(0.3) else name
            clauses.append(form.format(n=said, v=spoken))
        if source.chance(0.5):
            start = source.pick(["Call {n}", "Use {n}", "Run {n}", "Please call {n}", "Use the tool {n}", "Invoke {n}",
                                 "Call the function {n}", "Use the {n} tool", "call {n}", "Please use {n}"])  # fmt: skip
            start = start.format(n=self.name)
        else:
            start = source.pick(["{q}", "Please {p}", "Can you {p}", "I want to {p}", "Could you {p}", "{p}", "{q}",
                                 "I need you to {p}"])  # fmt: skip
            start = start.format(p=self.phrase, q=self.phrase[0].upper() + self.phrase[1:])
        joiner = source.pick([", ", " and ", ", "])
        if not clauses:
            return start
        if len(clauses) == 1 and source.chance(0.25):
            return f"{start} {source.pick(['for', 'with', 'of'])} {next(iter(self.spoken.values()))}"
        linked = joiner.join(clauses) if joiner == ", " else " and ".join([", ".join(clauses[:-1]), clauses[-1]] if len(clauses) > 1 else clauses)
        return f"{start} {source.pick(['with', 'with', 'where', 'for'])} {linked}"

    def arguments(self):
        # In the order of the schema.
        properties = self.tool["function"]["parameters"]["properties"]
        return {name: self.values[name] for name in properties if name in self.values}


def with_extras(source, name, schema):
    """What generators of schemas add to a property."""
    if source.chance(0.05):
        schema = {"title": name.capitalize(), **schema}
    if source.chance(0.03) and "enum" not in schema:
        schema = {**schema, "type": [schema["type"], "null"]}
    elif source.chance(0.03) and "enum" not in schema:
        schema = {"anyOf": [schema, {"type": "null"}], "default": None}
    if source.chance(0.03) and schema.get("type") == "integer":
        schema = {**schema, "minimum": 0, "maximum": source.whole(4)}
    return schema


def as_clients_send(source, made):
    """The same tool with what clients add to it or order otherwise."""
    function = made["function"]
    parameters = function["parameters"]
    if source.chance(0.15):
        notes = ["Returns JSON.", "It is fast.", "Needs no key.", "Only for tests.", "May fail.",
                 "Returns the result as text.", "Use it with care.", "Prefer this over others.",
                 "Call it only when the user asks for it.", "Do not call it twice."]  # fmt: skip
        function["description"] += "".join(" " + source.pick(notes) for _ in range(source.pick([1, 1, 2, 4])))
    if source.chance(0.2):
        parameters["additionalProperties"] = False
    if source.chance(0.05):
        function["parameters"] = {"$schema": "http://json-schema.org/draft-07/schema#", **parameters}
    if source.chance(0.1):
        function["strict"] = True
    if source.chance(0.1):
        items = list(function.items())
        source.random.shuffle(items)
        made["function"] = dict(items)
    return made


def describe_parameter(source, name):
    plain = name.replace("_", " ")
    return source.pick(["The {}.", "{} to use.", "the {}", "Value of the {}.", "{} of the request", "{}"]).format(plain)


# ---- Tools that agents have, in words people use ----


def known_tools():
    """name -> (description, properties, required, requests, values): see Known."""
    text, integer = {"type": "string"}, {"type": "integer"}
    number = {"type": "number"}
    city = lambda s: s.city()
    return [
        (["get_weather", "getWeather", "weather", "get_current_weather"],
         ["Get the weather of a city.", "Current weather at a place.", "Get the current weather in a given location",
          "Returns the weather for a city"],
         {("city", "location", "place"): (text, city)},
         ["What is the weather in {0}?", "How is the weather in {0}?", "Weather in {0}", "What's the weather like in {0}?",
          "Is it warm in {0}?", "Tell me the weather in {0}.", "Does it rain in {0}?", "weather {0}",
          "What is the weather like in {0} today?", "Please check the weather in {0}."],
         {"temperature": lambda s: s.integer(-20, 40), "condition": lambda s: s.pick(["sunny", "cloudy", "rain", "snow", "fog", "windy"])}),
        (["get_time", "current_time", "getTime"], ["Get the time in a city.", "Current local time of a place."],
         {("city", "location", "timezone"): (text, city)},
         ["What time is it in {0}?", "Tell me the time in {0}.", "Time in {0}?", "What is the time in {0} now?"],
         {"time": lambda s: s.clock_time()}),
        (["search", "web_search", "search_web"], ["Search the web.", "Searches the internet for a query"],
         {("query", "q", "text"): (text, lambda s: s.phrase())},
         ["Search for {0}.", "Search the web for {0}.", "Find something about {0}.", "Look up {0}.", "Google {0}."],
         {"title": lambda s: s.phrase(), "url": lambda s: f"https://{s.invented()}.org/{s.noun()}"}),
        (["read_file", "readFile", "read", "Read", "open_file"], ["Read a file.", "Reads a file from disk and returns its text", "Read the contents of a file"],
         {("path", "file_path", "filename", "filePath"): (text, lambda s: s.path())},
         ["Read {0}.", "Read the file {0}.", "What is in {0}?", "Show me {0}.", "Open {0}.", "Please read the file {0}.", "What does {0} say?"],
         None),
        (["list_files", "list_directory", "ls", "LS"], ["List the files of a folder.", "Lists files in a directory"],
         {("path", "directory", "folder"): (text, lambda s: s.pick(["/tmp", "src", "docs", ".", "/home/" + s.invented(), s.noun()]))},
         ["List the files in {0}.", "What files are in {0}?", "Show the files of {0}.", "ls {0}"], None),
        (["bash", "run_command", "shell", "execute_command", "Bash"], ["Run a shell command.", "Executes a command in the shell and returns its output"],
         {("command", "cmd"): (text, lambda s: s.pick(["ls -la", "git status", "make test", "pwd", "cat " + s.path(), "echo " + s.invented(), "mkdir " + s.invented(), "python3 " + s.path(), "grep " + s.invented() + " " + s.path()]))},
         ["Run {0}", "Run the command {0}", "Execute {0}", "Please run `{0}`", "Run `{0}`.", "run {0} in the shell"], None),
        (["write_file", "writeFile", "create_file", "Write"], ["Write a text to a file.", "Creates a file with the given content"],
         {("path", "file_path", "filename"): (text, lambda s: s.path()), ("content", "text", "contents"): (text, lambda s: s.phrase())},
         ['Write "{1}" to {0}.', 'Write "{1}" into the file {0}.', 'Create the file {0} with the content "{1}".', 'Save "{1}" in {0}.'], None),
        (["send_email", "sendEmail", "send_mail"], ["Send an email.", "Sends a mail to an address"],
         {("to", "address", "recipient"): (text, lambda s: s.email()), ("subject", "title"): (text, lambda s: s.phrase())},
         ['Send an email to {0} with the subject "{1}".', 'Mail {0} about "{1}".', 'Write an email to {0}, subject "{1}".'],
         {"status": lambda s: s.pick(["sent", "queued", "delivered"])}),
        (["add", "add_numbers", "sum"], ["Add two numbers.", "Adds a and b"],
         {("a", "x", "first"): (number, lambda s: s.whole()), ("b", "y", "second"): (number, lambda s: s.whole())},
         ["Use the tool to add {0} and {1}.", "Add {0} and {1} with the tool.", "Call the tool to add {0} and {1}."],
         {"result": lambda s: s.whole(3)}),
        (["multiply", "mul", "product"], ["Multiply two numbers.", "Multiplies a and b"],
         {("a", "x", "first"): (number, lambda s: s.whole()), ("b", "y", "second"): (number, lambda s: s.whole())},
         ["What is {0} times {1}?", "Multiply {0} by {1}.", "What is {0} * {1}?", "{0} * {1}", "{0} times {1}"],
         {"result": lambda s: s.whole(3)}),
        (["get_stock_price", "stock_price", "getQuote"], ["Get the price of a stock.", "Returns a stock's price by its symbol"],
         {("symbol", "ticker"): (text, lambda s: "".join(s.pick("ABCDEFGHIKLMNOPRSTX") for _ in range(s.integer(3, 4))))},
         ["What is the price of {0}?", "How much is {0} stock?", "Stock price of {0}?", "Get me the price of {0}."],
         {"price": lambda s: s.decimal(), "currency": lambda s: s.pick(["USD", "EUR", "GBP"])}),
        (["set_alarm", "create_reminder", "remind"], ["Set an alarm.", "Sets a reminder at a time"],
         {("time", "at", "when"): (text, lambda s: s.clock_time()), ("label", "text", "note"): (text, lambda s: s.phrase())},
         ['Remind me at {0} to {1}.', "Set an alarm at {0} for {1}.", "At {0} remind me of {1}."],
         {"status": lambda s: s.pick(["set", "ok", "created"])}),
        (["convert_currency", "convert", "exchange"], ["Convert an amount of money.", "Converts between currencies"],
         {("amount", "value"): (number, lambda s: s.whole()), ("from", "source", "from_currency"): (text, lambda s: s.pick("USD EUR GBP JPY CHF SEK NOK INR BRL".split())),
          ("to", "target", "to_currency"): (text, lambda s: s.pick("DKK PLN CZK HUF CAD AUD KRW MXN TRY".split()))},
         ["Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "What are {0} {1} in {2}?", "{0} {1} in {2}"],
         {"result": lambda s: s.decimal()}),
        (["get_population", "population"], ["Get the number of people in a city.", "Population of a city"],
         {("city", "place", "name"): (text, city)},
         ["How many people live in {0}?", "What is the population of {0}?", "Population of {0}?"],
         {"population": lambda s: s.integer(1000, 99999)}),
        (["lookup_user", "get_user", "find_user", "getUser"], ["Find a user by name.", "Looks up a user"],
         {("name", "username", "user"): (text, lambda s: s.name())},
         ["Who is the user {0}?", "Look up the user {0}.", "Find {0} in the users.", "What is the email of {0}?", "Get the user {0}."],
         {"id": lambda s: s.whole(3), "email": lambda s: s.email()}),
        (["translate", "translate_text"], ["Translate a text.", "Translates text into a language"],
         {("text", "source_text", "input"): (text, lambda s: s.phrase()), ("language", "target", "to"): (text, lambda s: s.pick("French German Spanish Italian Polish Dutch Greek Turkish Danish Finnish".split()))},
         ['Translate "{0}" into {1}.', 'Translate "{0}" to {1}.', 'How do you say "{0}" in {1}?', 'What is "{0}" in {1}?'],
         {"translation": lambda s: s.invented()}),
        (["get_order", "order_status", "track_order"], ["Get the status of an order.", "Looks up an order by its number"],
         {("order_id", "id", "number"): (integer, lambda s: s.on_my_side(lambda: s.whole(4)))},
         ["Where is my order {0}?", "What is the status of order {0}?", "Track order {0}.", "Check the order {0}."],
         {"status": lambda s: s.pick(["shipped", "delivered", "packed", "cancelled", "paid"]), "days": lambda s: s.integer(1, 9)}),
    ]  # fmt: skip


KNOWN = known_tools()


class Known:
    """One of the tools above, with its names chosen."""

    def __init__(self, source, taken):
        while True:
            entry = source.pick(KNOWN)
            if entry[0][0] not in taken:
                break
        taken.add(entry[0][0])
        names, descriptions, parameters, self.requests, self.results = entry
        self.name = names[0] if source.chance(0.5) else source.pick(names)
        self.values, properties, self.spoken = {}, {}, []
        for choices, (schema, make) in parameters.items():
            name = choices[0] if source.chance(0.5) else source.pick(choices)
            value = make(source)
            self.one_parameter = (name, make)
            self.values[name] = value
            self.spoken.append(str(value))
            described = source.chance(0.4)
            properties[name] = {**schema, "description": describe_parameter(source, name)} if described else dict(schema)
        required = list(properties)
        if source.chance(0.15):
            extra = source.pick(["units", "limit", "verbose", "format", "timeout"])
            if extra not in properties:
                properties[extra] = {"type": source.pick(["string", "integer", "boolean"])}
        self.tool = tool(self.name, source.pick(descriptions), properties, required)
        self.tool = as_clients_send(source, self.tool)

    def request(self, source):
        return source.pick(self.requests).format(*self.spoken)

    def arguments(self):
        return self.values


def make_tool(source, taken):
    return Known(source, taken) if source.chance(0.3) else Invented(source, taken)


# ---- Responses and what is said of them ----


def value_of_result(source):
    if source.chance(0.05):
        return [source.word() for _ in range(source.integer(1, 4))]
    kind = source.random.random()
    if kind < 0.35:
        return source.whole()
    if kind < 0.45:
        return source.decimal()
    if kind < 0.55:
        return source.chance(0.5)
    return string_value(source)


def response(source, which):
    """(text of the tool message, facts for thinking, sentence of the answer)."""
    results = getattr(which, "results", None)
    kind = source.random.random()
    if kind < 0.06:
        reason = source.pick(["not found", "timeout", "no access", "bad request", "file missing", source.phrase()])
        text = source.pick(["error: {}", "Error: {}", '{{"error": "{}"}}']).format(reason)
        return text, f"an error: {reason}", f"{which.name} failed: {reason}."
    if kind < 0.4 and not results:
        value = text_of(value_of_result(source)) if source.chance(0.85) else plain_text(source)
        return value, value, f"The result is {value.rstrip('.')}."
    if results and source.chance(0.8):
        value = {key: make(source) for key, make in results.items()}
        if source.chance(0.3):
            key = source.pick(list(value))
            value = {key: value[key]}
    else:
        name = lambda: source.pick(PROPERTY_NAMES) if source.chance(0.6) else parameter_name(source)
        keys = list(dict.fromkeys(name() for _ in range(source.pick([1, 1, 2, 2, 3]))))
        value = {key: value_of_result(source) for key in keys}
    parts = [f"{key.replace('_', ' ')} is {text_of(v)}" for key, v in value.items()]
    sentence = "The " + " and the ".join(parts) + "."
    return json.dumps(value, ensure_ascii=False), ", ".join(parts), sentence


def plain_text(source):
    """A short text as files and commands give it: words, lines."""
    lines = [source.phrase() for _ in range(source.pick([1, 1, 2, 3]))]
    if source.chance(0.3):
        lines[0] = lines[0].capitalize() + "."
    return source.pick([" ", "\n"]).join(lines)


# ---- Whole exchanges ----


def thought_of_call(which):
    values = which.arguments()
    if not values:
        return f"I call {which.name}"
    listed = ", ".join(f"{key} = {text_of(value)}" for key, value in values.items())
    return f"I call {which.name}: {listed}"


def assistant_calls(called):
    thought = "\n".join(thought_of_call(which) for which in called)
    calls = [call(which.name, which.arguments()) for which in called]
    return {"role": "assistant", "reasoning_content": thought, "content": "", "tool_calls": calls}


def ended(source, request):
    return request if request[-1] in ".?!`" else request + source.pick([".", "", "."])


def call_tools(source, make_exchange):
    taken = set()
    available = [make_tool(source, taken) for _ in range(source.pick([1, 1, 2, 2, 3, 4]))]
    called = [available[0]]
    if len(available) > 1 and source.chance(0.3):
        called.append(available[1])
    listed = [which.tool for which in available]
    source.random.shuffle(listed)
    requests = [which.request(source) for which in called]
    if len(requests) == 1:
        question = ended(source, requests[0])
    else:
        first = requests[0].rstrip(".?") if source.chance(0.7) else requests[0]
        second = requests[1]
        link = source.pick([" and then ", ". Then ", ", then ", ". Also, ", ". ", " and "])
        if link.startswith((" and", ", then")):
            first = first.rstrip(".?")
        question = ended(source, first.rstrip(".") + link + second)
    replies = [response(source, which) for which in called]
    one_by_one = len(called) == 2 and link in (" and then ", ". Then ", ", then ")
    messages = [{"role": "user", "content": question}]
    rounds = [[i] for i in range(len(called))] if one_by_one else [list(range(len(called)))]
    for done, batch in enumerate(rounds):
        turn = assistant_calls([called[i] for i in batch])
        if done:
            turn["reasoning_content"] = "the first is done\n" + turn["reasoning_content"]
        messages.append(turn)
        messages += [{"role": "tool", "content": replies[i][0]} for i in batch]
    thought = "\n".join(f"{called[i].name}: {replies[i][1]}" for i in range(len(called)))
    final = " ".join(reply[2] for reply in replies)
    messages.append({"role": "assistant", "reasoning_content": thought, "content": final})
    return make_exchange(messages, {"match": "exact", "answer": final}, listed)


def call_again(source, make_exchange):
    """The same tool for another value: "And in Paris?"."""
    taken = set()
    while True:
        first = Known(source, taken)
        if len(first.spoken) == 1:
            break
    (key, old), (_, make) = next(iter(first.values.items())), first.one_parameter
    new = make(source)
    while new == old:
        new = make(source)
    again = source.pick(["And {}?", "And in {}?", "What about {}?", "And for {}?", "Now {}.", "The same for {}.",
                         "And what about {}?", "and {}?", "How about {}?"]).format(new)  # fmt: skip
    before, after = response(source, first), response(source, first)
    turn = assistant_calls([first])
    messages = [
        {"role": "user", "content": ended(source, first.request(source))},
        turn,
        {"role": "tool", "content": before[0]},
        {"role": "assistant", "reasoning_content": f"{first.name}: {before[1]}", "content": before[2]},
        {"role": "user", "content": again},
    ]
    first.values = {key: new}
    messages += [
        assistant_calls([first]),
        {"role": "tool", "content": after[0]},
        {"role": "assistant", "reasoning_content": f"{first.name}: {after[1]}", "content": after[2]},
    ]
    listed = [first.tool] + [make_tool(source, taken).tool for _ in range(source.pick([0, 0, 1, 2]))]
    source.random.shuffle(listed)
    return make_exchange(messages, {"match": "exact", "answer": after[2]}, listed)


def no_such_tool(source, make_exchange):
    """A request that none of the tools (if there are any) serves."""
    taken = {"add", "multiply"}
    wanted = Known(source, taken)
    listed = [make_tool(source, taken).tool for _ in range(source.pick([0, 0, 1, 1, 2, 3]))]
    thought = "this needs a tool, and I have none for it"
    text = "I have no tool for that."
    messages = [{"role": "user", "content": wanted.request(source)},
                {"role": "assistant", "reasoning_content": thought, "content": text}]  # fmt: skip
    return make_exchange(messages, {"match": "exact", "answer": text}, listed)


def read_then_answer(source, body, question, thought, text, word, make_exchange):
    """The long text comes out of a tool."""
    path = source.path()
    name = source.pick(["read_file", "readFile", "read", "open_file", "get_file"])
    key = source.pick(["path", "file_path", "filename"])
    reader = tool(name, source.pick(["Read a file.", "Returns the text of a file."]), {key: {"type": "string"}})
    ask = source.pick(["Read {p}. {q}", "Read the file {p}. {q}", "{q} It is in {p}.", "{q} Read {p}."])
    turn = {"role": "assistant", "reasoning_content": f"I call {name}: {key} = {path}", "content": "",
            "tool_calls": [call(name, {key: path})]}  # fmt: skip
    messages = [
        {"role": "user", "content": ask.format(p=path, q=question)},
        turn,
        {"role": "tool", "content": body},
        {"role": "assistant", "reasoning_content": thought, "content": text},
    ]
    return make_exchange(messages, {"match": "contains", "answer": word}, [reader])


def spare_tools(source, count):
    """Tools that are there but not needed."""
    taken = {"add", "multiply"}
    return [make_tool(source, taken).tool for _ in range(count)]
