"""Recall documents in tokens, as `linnet eval recall` makes them: prose, facts on lines of their own, questions."""
import numpy

NAMES = ("Ada Alan Beth Bram Carl Cleo Dina Dora Emil Ezra Faye Fern Glen Gwen Hope Hugo Iris Ivan Jade Joel Kira Kurt Lena "
         "Liam Milo Mona Nico Nora Olga Omar Pete Pia Quin Reed Rosa Sage Seth Tara Todd Uma Umar Vera Vito Wade Wren Xena "
         "Yara Yves Zara Zeke").split()
NUMBERS = "password locker ticket room phone badge parcel flight account token gate seat booking invoice serial route".split()
THINGS = "car house coat boat kite door".split()
COLOURS = "red blue green black white brown gray pink purple orange gold silver".split()
ROOMS = "kitchen garden office bathroom bedroom hallway".split()
PERSONS = "friend teacher doctor neighbor boss".split()


def number_of(digits):
    return int(digits) % len(ROOMS)


class Facts:
    def __init__(self, tokenizer, rng):
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.rng, self.cache = rng, {}

    def ids(self, text):
        return self.encode(text)

    def fact(self, name):
        rng = self.rng
        kind = rng.integers(3)
        if kind == 0:
            number = NUMBERS[rng.integers(len(NUMBERS))]
            low = 1000 * 10 ** int(rng.integers(3))
            answer = str(int(low + rng.integers(9 * low)))
            line, question = f"The {number} number of {name} is {answer}.", f"What is the {number} number of {name}?"
        elif kind == 1:
            thing, answer = THINGS[rng.integers(len(THINGS))], COLOURS[rng.integers(len(COLOURS))]
            line, question = f"{name} has a {answer} {thing}.", f"What color is the {thing} of {name}?"
        else:
            person, answer = PERSONS[rng.integers(len(PERSONS))], name
            while answer == name:
                answer = NAMES[rng.integers(len(NAMES))]
            line, question = f"The {person} of {name} is {answer}.", f"Who is the {person} of {name}?"
        return f"\n{line}\n", f"<|user|>{question}<|assistant|>", f"{answer}<|end|>"

    def needle(self, name):
        """Facts of other forms than fledgling was trained with."""
        rng = self.rng
        number = str(int(rng.integers(10 ** 4, 10 ** int(rng.integers(5, 8)))))
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5))
        line, question, answer = [
            (f"The pass key is {number}. Remember it. {number} is the pass key.", "What is the pass key?", number),
            (f"One of the special magic numbers for {word} is: {number}.", f"What is the special magic number for {word}?", number),
            (f"VAR {word.upper()} = {number}", f"What is the value of {word.upper()}?", number),
            (f'"{word}": "{number}",', f"What is the value of {word}?", number),
            (f"{name} moved to the {ROOMS[number_of(number)]}.", f"Where is {name}?", ROOMS[number_of(number)]),
        ][rng.integers(5)]
        return f"\n{line}\n", f"<|user|>{question}<|assistant|>", f"{answer}<|end|>"

    def document(self, prose, tokens, facts=10, questions=None, needles=0.0):
        """ids [tokens], mask [tokens] (1 where a token belongs to an answer), length of the document before the
        questions. The document fills what the questions leave."""
        rng = self.rng
        chosen = [(self.needle if rng.random() < needles else self.fact)(NAMES[i]) for i in rng.permutation(len(NAMES))[:facts]]
        lines = [self.ids(line) for line, _, _ in chosen]
        asked = [(self.ids(q), self.ids(a)) for _, q, a in (chosen[i] for i in rng.permutation(facts)[:questions])]
        tail = sum(len(q) + len(a) for q, a in asked)
        left = tokens - tail - sum(map(len, lines))
        start = int(rng.integers(len(prose) - left))
        places = numpy.sort(rng.integers(0, left, facts))
        parts, at = [], 0
        for place, line in zip(places, lines):
            parts += [prose[start + at:start + place], line]
            at = place
        parts.append(prose[start + at:start + left])
        mask = [numpy.zeros(tokens - tail, bool)]
        for q, a in asked:
            parts += [q, a]
            mask += [numpy.zeros(len(q), bool), numpy.ones(len(a), bool)]
        return numpy.concatenate(parts).astype(numpy.int64), numpy.concatenate(mask), tokens - tail


def right(predicted, ids, mask):
    """Answers whose every token was predicted (teacher-forced), of how many. predicted[t] is for ids[t + 1]."""
    good = (predicted[:-1] == ids[1:]) | ~mask[1:]
    starts = numpy.flatnonzero(mask[1:] & ~mask[:-1])
    stops = numpy.append(numpy.flatnonzero(~mask[1:] & mask[:-1]), len(mask) - 1)
    return [bool(good[a:b].all()) for a, b in zip(starts, stops)]
