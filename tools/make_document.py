#!/usr/bin/env python3
"""Makes share/linnet/document.txt: a long document that the built-in model wrote itself, with facts planted at random places.

    tools/make_document.py build/release/cli/linnet share/linnet

Writes document.txt, question.txt (the question that `linnet run` asks when it is given nothing) and facts.txt (every fact as
question TAB answer). The same seed and model give the same document."""
import argparse
import pathlib
import random
import re
import subprocess

OPENINGS = [
    "Once upon a time", "The old house stood", "In the spring of that year", "The captain looked out", "It was late in the evening",
    "My father used to say", "The road to the village", "When the ship came in", "There was a garden behind", "The letter arrived",
    "Nobody in the town", "The two brothers", "At the foot of the mountain", "She had never seen", "The train was already moving",
    "After the long winter", "He opened the door", "The river had risen", "In those days", "The doctor shook his head",
]
# The names and colours that the model was trained with, and its form: a line of its own that cuts the prose between two words
# (not after punctuation, which would become one token with the line's end).
NAMES = "Ada Alan Beth Bram Carl Cleo Dina Dora Emil Ezra Faye Fern Glen Gwen Hope Hugo Iris Ivan Jade Joel Kira Kurt Lena Liam Milo".split()
NUMBERS = "password locker ticket room phone badge parcel flight account token gate seat booking invoice serial route".split()
COLORS = "red blue green black white brown gray pink purple orange gold silver".split()
THINGS = "car house coat boat kite door".split()
PERSONS = "friend teacher doctor neighbor boss".split()


def plant(rng, count):
    """One fact of each of `count` persons: (sentence, question, answer)."""
    for name in rng.sample(NAMES, count):
        kind = rng.randrange(3)
        if kind == 0:
            thing, answer = rng.choice(NUMBERS), str(rng.randrange(10 ** 4, 10 ** 5))
            yield f"The {thing} number of {name} is {answer}.", f"What is the {thing} number of {name}?", answer
        elif kind == 1:
            thing, answer = rng.choice(THINGS), rng.choice(COLORS)
            yield f"{name} has a {answer} {thing}.", f"What color is the {thing} of {name}?", answer
        else:
            thing, answer = rng.choice(PERSONS), rng.choice([n for n in NAMES if n != name])
            yield f"The {thing} of {name} is {answer}.", f"Who is the {thing} of {name}?", answer


def write_passage(linnet, model, opening, seed, tokens):
    command = [linnet, "run", "--raw", "-p", opening, "-n", str(tokens), "--temp", "0.8", "--repeat-penalty", "1.05", "--seed", str(seed)]
    if model:
        command += ["-m", model]
    text = opening + subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = re.sub(r"<\|[a-z]+\|>", "", text)
    return text[: text.rfind(".") + 1]


def write_prose(options, rng):
    passages, length = [], 0
    while length < options.characters:
        passages.append(write_passage(options.linnet, options.model, rng.choice(OPENINGS), rng.randrange(1 << 30), 900))
        length += len(passages[-1])
    return "\n\n".join(passages)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--prose", type=pathlib.Path, help="plant the facts in this text instead of writing one")
    parser.add_argument("--characters", type=int, default=70000)
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)

    prose = options.prose.read_text() if options.prose else write_prose(options, rng)
    lines = [line.strip() for line in prose.strip().split("\n")]
    text = "\n".join(line for line in lines if not any(name in line for name in NAMES)) + "\n"
    facts = list(plant(random.Random(options.seed), options.facts))
    # Between two words, as in the model's training: after a full stop the line break would become part of another token.
    gaps = sorted(rng.sample([m.start() for m in re.finditer(r"(?<=[a-z]) (?=[a-z])", text)], len(facts)), reverse=True)
    for gap, (sentence, _, _) in zip(gaps, facts):
        text = f"{text[:gap]}\n{sentence}\n{text[gap:]}"
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "document.txt").write_text(text)
    (options.folder / "facts.txt").write_text("".join(f"{question}\t{answer}\n" for _, question, answer in facts))
    (options.folder / "question.txt").write_text(facts[0][1] + "\n")


if __name__ == "__main__":
    main()
