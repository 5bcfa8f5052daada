"""Adding and subtracting in columns, the way it is taught: from the right, with carries."""

PLACES = ["ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands"]


def digits_of(number, count):
    """The last `count` digits, ones first."""
    return [number // 10**i % 10 for i in range(count)]


def add_lines(a, b):
    count = max(len(str(a)), len(str(b)))
    lines, carry = [f"{a} + {b}"], 0
    for place, x, y in zip(PLACES, digits_of(a, count), digits_of(b, count)):
        total = x + y + carry
        line = f"{place}: {x} + {y}" + (f" + {carry}" if carry else "") + f" = {total}"
        carry = total // 10
        lines.append(line + (f", write {total % 10}, carry 1" if carry else ""))
    if carry:
        lines.append(f"{PLACES[count]}: 1")
    return [*lines, f"so {a} + {b} = {a + b}"]


def subtract_lines(a, b):
    """a - b for a >= b."""
    count = len(str(a))
    lines, borrow = [f"{a} - {b}"], 0
    for place, x, y in zip(PLACES, digits_of(a, count), digits_of(b, count)):
        taken = f"{y}" + (f" - {borrow}" if borrow else "")
        rest = x - y - borrow
        borrow = 1 if rest < 0 else 0
        if borrow:
            lines.append(f"{place}: borrow, 1{x} - {taken} = {rest + 10}")
        else:
            lines.append(f"{place}: {x} - {taken} = {rest}")
    return [*lines, f"so {a} - {b} = {a - b}"]


def working(a, sign, b):
    """What is thought on the way to a + b or a - b: lines."""
    if sign == "+":
        return add_lines(a, b)
    if a >= b:
        return subtract_lines(a, b)
    first = f"{a} is less than {b}, so it is the negative of {b} - {a}"
    return [first, *subtract_lines(b, a), f"so {a} - {b} = {a - b}"]


def result(a, sign, b):
    return a + b if sign == "+" else a - b
