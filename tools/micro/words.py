"""What the corpus is made of: word lists, invented words, and the line between training and held-out.

A value (a word, a number pair, a name of a tool) is held out if a hash of it says so. Training draws
only values that are not, evaluation only values that are, so that the two never share one.
"""

import random
import zlib

HELD_OUT_OF = 12  # one value in so many is kept for evaluation

FIRST_NAMES = """Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Karin Leo Mara Nils Olga Paul
Rosa Simon Tina Ugo Vera Wim Yara Zoe Adam Berta Cyril Dora Erik Fatima Goran Hana Ivan Julia Kofi
Lena Miguel Nadia Omar Petra Quentin Rita Sven Tomas Ursula Victor Wendy Xenia Yusuf Zara Alice Bob
Carol Daniel Eve Frank Grace Henry Iris Jack Kate Liam Maria Noah Olivia Peter Rachel Sam Theo Uma
Vincent Walter Amir Bianca Chen Diego Elena Farid Gina Hassan Ines Jana Kenji Lucia Mina Nora""".split()

CITIES = """Oslo Paris Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Athens Helsinki Bern
London Tokyo Kyoto Beijing Seoul Delhi Mumbai Cairo Nairobi Lagos Accra Tunis Lima Quito Bogota
Havana Toronto Boston Chicago Denver Seattle Austin Dallas Miami Sydney Perth Auckland Munich Hamburg
Milan Naples Turin Porto Seville Bilbao Lyon Nice Lille Ghent Bruges Utrecht Leiden Malmo Bergen
Tampere Riga Vilnius Tallinn Krakow Gdansk Brno Graz Linz Basel Geneva Zagreb Split Sofia Varna
Bucharest Budapest Ankara Izmir Tehran Baghdad Amman Doha Dubai Muscat Karachi Lahore Dhaka Hanoi
Manila Jakarta Bangkok Singapore Osaka Nagoya Shanghai Shenzhen Taipei Reykjavik Stockholm""".split()

NOUNS = """apple pear book lamp table chair window garden river bridge ticket letter box key map
bottle coin stone flower tree bird cat dog horse fish ship train car wheel engine door wall roof
clock phone camera paper pen brush shirt coat shoe hat ring glass plate cup spoon knife basket bag
order invoice report file folder page record user account customer product item price stock task
event meeting message note contact project issue branch commit ticket backup server node job queue
image song movie recipe room hotel flight route station shop market bank office school museum park
planet star cloud storm island mountain forest field road tower castle lake ocean desert""".split()

ADJECTIVES = """red blue green yellow white black small large old new open closed quick slow warm cold
bright dark heavy light round long short narrow wide quiet loud soft hard clean empty full fresh
simple local remote public private daily weekly active late early hidden broken golden silver wooden
lazy happy brave gentle tired hungry""".split()

VERBS = """find list show count create delete update open close start stop send move copy rename
check fetch read write search book cancel reserve rate archive publish share lock unlock sort merge
export import print record track assign review approve clean reset restore upload download measure
convert translate schedule""".split()

PARAMETER_WORDS = """name id title text query path city country date time count limit size color price
amount level mode type status owner email phone address code key value label tag note user group
number width height depth weight speed start end source target format language unit reason message
subject body topic category priority color page offset version region zone""".split()

CONSONANTS = "b c d f g h j k l m n p r s t v w z br dr fl gr kl pr st tr sh ch".split()
VOWELS = "a e i o u a e i o u ai ea ou".split()
FINALS = ["", "", "", "n", "r", "s", "l", "m", "x", "t", "k"]


def is_held_out(value):
    return zlib.crc32(repr(value).encode()) % HELD_OUT_OF == 0


class Source:
    """Random choices of one document: the same seed gives the same document everywhere."""

    letter_tokens = []  # the tokenizer's tokens of letters alone
    token_word_share = 0.0  # of the invented words: how many are put together from such tokens

    def __init__(self, seed, held_out=False):
        self.random = random.Random(seed)
        self.held_out = held_out

    def chance(self, probability):
        return self.random.random() < probability

    def pick(self, items):
        return items[int(self.random.random() * len(items))]

    def sample(self, items, count):
        return self.random.sample(items, count)

    def integer(self, low, high):
        return low + int(self.random.random() * (high - low + 1))

    def on_my_side(self, make):
        """A value of make() from this source's side of the line."""
        for _ in range(10_000):
            value = make()
            if is_held_out(value) == self.held_out:
                return value
        raise RuntimeError(f"all values like {value!r} are on the other side")

    # ---- Words ----

    def syllables(self, count):
        parts = [self.pick(CONSONANTS) + self.pick(VOWELS) for _ in range(count)]
        return "".join(parts) + self.pick(FINALS)

    def invented(self):
        """A word that exists nowhere: 'tremalox'; or a few tokens in a row, so that each is learnt."""
        if self.token_word_share and self.chance(self.token_word_share):
            token = lambda: self.pick(self.letter_tokens)
            return self.on_my_side(lambda: "".join(token() for _ in range(self.integer(1, 3))))
        return self.on_my_side(lambda: self.syllables(self.integer(2, 4)))

    def name(self):
        if self.chance(0.3):
            return self.invented().capitalize()
        return self.on_my_side(lambda: self.pick(FIRST_NAMES))

    def city(self):
        if self.chance(0.3):
            return self.invented().capitalize()
        return self.on_my_side(lambda: self.pick(CITIES))

    def noun(self):
        return self.pick(NOUNS)

    def adjective(self):
        return self.pick(ADJECTIVES)

    def word(self):
        """Any single word: known or invented, any spelling."""
        kind = self.random.random()
        if kind < 0.5:
            word = self.invented()
        elif kind < 0.8:
            word = self.on_my_side(lambda: self.pick(NOUNS + ADJECTIVES + VERBS))
        else:
            word = self.name()
        spelling = self.random.random()
        return word.upper() if spelling < 0.05 else word.capitalize() if spelling < 0.2 else word

    def identifier(self):
        """A code such as 'KX-4821', 'b7f20a', 'user_94'."""
        kind = self.integer(0, 3)
        letters = lambda n: "".join(self.pick("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(n))
        digits = lambda n: "".join(self.pick("0123456789") for _ in range(n))

        def make():
            if kind == 0:
                return f"{letters(2)}-{digits(4)}"
            if kind == 1:
                return "".join(self.pick("0123456789abcdef") for _ in range(self.integer(5, 8)))
            if kind == 2:
                return f"{self.pick(NOUNS)}_{digits(2)}"
            return letters(3) + digits(3)

        return self.on_my_side(make)

    def phrase(self):
        """Two to five words."""
        pick = lambda: self.pick(NOUNS + ADJECTIVES + VERBS)
        words = [self.invented() if self.chance(0.2) else pick() for _ in range(self.integer(2, 5))]
        return " ".join(words)

    def path(self):
        def make():
            count = self.integer(1, 3)
            names = [self.invented() if self.chance(0.5) else self.noun() for _ in range(count)]
            root = self.pick(["/", "/tmp/", "/home/", "src/", "", "./", "docs/", "/etc/"])
            ending = self.pick(["txt", "py", "md", "json", "cc", "csv", "log", "toml"])
            return f"{root}{'/'.join(names)}{self.pick(['', '2', '_old'])}.{ending}"

        return self.on_my_side(make)

    def expression(self):
        """A formula or a bit of code."""
        a, b = self.pick([self.noun, self.invented])(), self.whole()
        form = self.pick(["{a} + {b}", "{a} * {b}", "{b} / {c}", "{a}({b})", "{a} == {b}", "{a}[{b}]", "print({b})",
                          "{b} * ({c} + {b})", "{a} > {c}", "#{b}", "{b}%", "{a}.{d}()"])  # fmt: skip
        return form.format(a=a, b=b, c=self.whole(), d=self.noun())

    def email(self):
        return f"{self.name().lower()}@{self.invented()}.{self.pick(['com', 'org', 'net', 'io'])}"

    def date(self):
        return f"20{self.integer(20, 29)}-{self.integer(1, 12):02d}-{self.integer(1, 28):02d}"

    def clock_time(self):
        return f"{self.integer(0, 23):02d}:{self.integer(0, 59):02d}"

    # ---- Numbers ----

    def whole(self, digits=None):
        digits = digits or self.pick([1, 2, 2, 2, 3, 3, 3])
        low = 10 ** (digits - 1) if digits > 1 else 0
        return self.integer(low, 10**digits - 1)

    def number_pair(self, digits_a=None, digits_b=None):
        return self.on_my_side(lambda: (self.whole(digits_a), self.whole(digits_b)))

    def decimal(self):
        return round(self.integer(1, 99999) / self.pick([10, 10, 100]), 2)
