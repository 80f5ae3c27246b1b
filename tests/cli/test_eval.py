"""eval: documents follow from the seed alone and fit their length, answers follow from the documents by other means than those that
made them, results outlive a killed run, what is wrong is refused."""
import collections
import fcntl
import functools
import hashlib
import itertools
import json
import re
import resource
import signal
import subprocess
import time
import xml.etree.ElementTree

import pytest
from conftest import GOLDEN, PROGRAM, ROOT, linnet, one_sentence, result

TEXTS = ["passkey", "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery",
         "vt", "cwe", "fwe", "sc_kv", "sc_prefix_suffix", "sc_vt", "sc_mf", "sc_hashhop", *(f"qa{i}" for i in range(1, 11))]
SYMBOLS = ["mqar", "copy", "reverse_copy", "induction", "selective_copy", "icl", "s5", "a5", "parity", "modular", "dyck"]
LENGTH = 2048
# How far the last unit of a document may miss its length: a line with identifiers is long.
SLACK = collections.defaultdict(lambda: 24, cwe=40, niah_multikey_2=60, niah_multikey_3=120, sc_kv=80, sc_prefix_suffix=80, sc_hashhop=40)

pytestmark = pytest.mark.usefixtures("built_in")


@functools.cache
def shown(length=LENGTH, seed=1):
    if not (ROOT / "share/linnet/document.txt").exists():
        pytest.skip("the built-in document is not in this tree")
    lines = linnet("eval", "all", "--show", "-l", length, "-n", "20", "--seed", seed).stdout.splitlines()
    items = collections.defaultdict(list)
    for line in map(json.loads, lines):
        items[line["task"]].append(line)
    return items


def items_of(task):
    items = shown()[task]
    assert sum(len(item["questions"]) for item in items) >= 20
    return items


# ---- drafting ----

def test_all_tasks_are_shown():
    assert list(shown()) == ["recall", *TEXTS, *SYMBOLS]


def digest(items):
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]


def test_items_follow_from_the_seed():
    expected = json.loads((ROOT / "tests/golden/eval.json").read_text())
    assert {task: digest(items) for task, items in shown().items()} == expected
    other = shown(seed=2)
    for task, items in shown().items():
        assert digest(items) != digest(other[task])
        assert len({item["text"] + str(item["ids"]) for item in items}) == len(items)


@pytest.mark.parametrize("task", ["recall", *TEXTS, *SYMBOLS])
def test_items_fit_their_length(task):
    for item in items_of(task):
        longest = max(len(q["ids"]) + max(item["answer_tokens"], len(q["expected"])) for q in item["questions"])
        assert LENGTH - SLACK[task] <= len(item["ids"]) + longest <= LENGTH


# ---- answers of text, found again in it ----

def check_passkey(text, question):
    return set(re.findall(r"The pass key is (\d+)\.", text))


def check_niah(text, question):
    needles = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.\s", text)
    return {value for key, value in needles if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", question)}


def check_variables(text, question):
    text = text.split("Here the text begins.")[-1]
    values = {}
    for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
        values[name] = values.get(value, value)
    wanted = re.search(r"\d+", question).group()
    return {name for name, value in values.items() if value == wanted}


def check_common(text, question):
    counts = collections.Counter(re.findall(r"\d+\. (\w+)", text.split("The next list:")[1])).most_common()
    assert counts[9][1] > counts[10][1]
    return {word for word, _ in counts[:10]}


def check_frequent(text, question):
    counts = collections.Counter(text.split("\n")[1].split())
    del counts["..."]
    counts = counts.most_common()
    assert counts[2][1] > counts[3][1]
    return {word for word, _ in counts[:3]}


def check_pairs(text, question):
    return {json.loads(text.split("\n", 1)[1])[re.search(r'"(\w+)"', question).group(1)]}


def check_prefix_suffix(text, question):
    first, last = re.findall(r'"(\w+)"', question)
    return {line for line in text.split("\n")[1:] if line.startswith(first) and line.endswith(last)}


def check_numbers(text, question):
    numbers = sorted(json.loads(text.split("\n")[1]))
    places = {"largest": -1, "smallest": 0, "second largest": -2, "second smallest": 1, "median": len(numbers) // 2}
    return {str(numbers[places[re.search(r"the ([a-z ]+) number", question).group(1)]])}


def check_hops(text, question):
    following = dict(re.findall(r"(\w+) => (\w+)", text))
    at, steps = re.search(r"from (\w+) after (\d+)", question).groups()
    for _ in range(int(steps)):
        at = following[at]
    return {at}


CHECKS = {"passkey": check_passkey, "vt": check_variables, "sc_vt": check_variables, "cwe": check_common, "fwe": check_frequent, "sc_kv": check_pairs,
          "sc_prefix_suffix": check_prefix_suffix, "sc_mf": check_numbers, "sc_hashhop": check_hops}


@pytest.mark.parametrize("task", [task for task in TEXTS if not task.startswith("qa")])
def test_answers_follow_from_the_text(task):
    check = CHECKS.get(task, check_niah)
    for item in items_of(task):
        for question in item["questions"]:
            assert check(item["text"], question["text"]) == set(question["answers"])


# ---- facts: a reader of the sentences that knows nothing of the world that told them ----

PERSONS = "Mary John Daniel Sandra Bill Fred Jeff".split()
SENTENCES = re.compile(r"(?:(?:%s) (?:moved|went|travelled|journeyed|went back) to the \w+|(?:%s) (?:got|took|grabbed|picked up) the \w+ there|"
                       r"(?:%s) (?:dropped|discarded|left|put down) the \w+|(?:%s) (?:gave|handed|passed) the \w+ to \w+|(?:%s) is (?:no longer |not )?in the \w+|"
                       r"(?:%s) is either in the \w+ or the \w+|The \w+ is (?:north|south|east|west) of the \w+)\." % (("|".join(PERSONS),) * 6))


class Reader:
    def __init__(self, text):
        self.at, self.holds, self.seen, self.negated, self.either = {}, {}, collections.defaultdict(list), {}, {}
        self.directions, self.gifts = [], []
        for sentence in SENTENCES.findall(text):
            self.read(sentence[:-1].split())

    def saw(self, thing, room):
        if self.seen[thing][-1:] != [room]:
            self.seen[thing].append(room)

    def read(self, words):
        who, last = words[0], words[-1]
        if who == "The":
            self.directions.append((words[1], words[3], last))
        elif "either" in words:
            self.forget(who)
            self.either[who] = {words[5], last}
        elif words[1] == "is":
            self.forget(who)
            (self.negated if "no" in words or "not" in words else self.at)[who] = last
        elif last == "there":
            self.holds[words[-2]] = who
            self.saw(words[-2], self.at[who])
        elif words[-2] == "to":
            self.gifts.append((who, words[-3], last))
        elif words[-3:-1] == ["to", "the"]:
            self.forget(who)
            self.at[who] = last
            for thing, holder in self.holds.items():
                if holder == who:
                    self.saw(thing, last)
        else:
            assert self.holds.pop(last) == who

    def forget(self, who):
        for known in (self.at, self.negated, self.either):
            known.pop(who, None)

    def answers(self, words):
        """All that the sentences allow; one, where the question is a good one."""
        question = " ".join(words)
        if question.startswith("Where is the"):
            return {self.seen[words[-1]][-1]}
        if question.startswith("Where is"):
            return {self.at[words[-1]]}
        if question.startswith("Where was"):
            seen = self.seen[words[3]]
            return {before for before, room in zip(seen, seen[1:]) if room == words[-1]}
        if words[0] == "Is":
            who, room = words[1], words[-1]
            if who in self.at:
                return {"yes" if self.at[who] == room else "no"}
            if who in self.either:
                return {"maybe" if room in self.either[who] else "no"}
            return {"no"} if self.negated.get(who) == room else set()
        if question.startswith("How many"):
            return {["none", "one", "two", "three"][list(self.holds.values()).count(words[-2])]}
        if words[-1] == "carrying":
            return {",".join(sorted(thing for thing, holder in self.holds.items() if holder == words[-2])) or "nothing"}
        if question.startswith("What is the"):
            return {to for what, direction, to in self.directions if (what, direction) == (words[3], words[4])}
        if question.startswith("What is"):
            return {what for what, direction, to in self.directions if (direction, to) == (words[2], words[-1])}
        if question.startswith("What did"):
            return {thing for who, thing, to in self.gifts if (who, to) == (words[2], words[-1])}
        if question.startswith("Who did"):
            return {to for who, thing, to in self.gifts if (who, thing) == (words[2], words[-2])}
        if question.startswith("Who gave"):
            return {who for who, thing, to in self.gifts if (thing, to) == (words[3], words[-1])}
        assert question.startswith("Who received")
        return {to for who, thing, to in self.gifts if thing == words[-1]}


@pytest.mark.parametrize("task", [f"qa{i}" for i in range(1, 11)])
def test_facts_are_told_and_determine_the_answers(task):
    answers = collections.Counter()
    for item in items_of(task):
        reader = Reader(item["text"])
        for question in item["questions"]:
            assert reader.answers(question["text"].strip().rstrip("?").split()) == set(question["answers"]), (item["text"], question)
            answers[question["answers"][0]] += 1
    assert len(answers) > 1


def test_recall_answers_stand_in_the_document(built_in):
    item = items_of("recall")[0]
    text = linnet("tokenize", "--decode", "-p", " ".join(map(str, item["ids"]))).stdout.decode()
    forms = {r"What is the (\w+) number of (\w+)\?": "The {} number of {} is {}.", r"What color is the (\w+) of (\w+)\?": "{1} has a {2} {0}.", r"Who is the (\w+) of (\w+)\?": "The {} of {} is {}."}
    for question in item["questions"]:
        lines = [form.format(*found.groups(), *question["answers"]) for form, found in ((f, re.match(p, question["text"])) for p, f in forms.items()) if found]
        assert len(lines) == 1 and text.count("\n" + lines[0] + "\n") == 1


# ---- symbols: ids rise with the symbols, so that ranks among those that occur are the symbols ----

def ranks(item, question):
    known = sorted({*item["ids"], *question["ids"], *question["expected"]})
    of = {token: rank for rank, token in enumerate(known)}
    return [[of[token] for token in ids] for ids in (item["ids"], question["ids"], question["expected"])]


@pytest.mark.parametrize("task,even", [("s5", False), ("a5", True)])
def test_products_of_permutations(task, even):
    group = [p for p in itertools.permutations(range(5)) if not even or sum(p[i] > p[k] for i in range(5) for k in range(i, 5)) % 2 == 0]
    for item in items_of(task):
        for question in item["questions"]:
            document, asked, expected = ranks(item, question)
            assert len({*document, *asked}) == len(group) + 1 and asked[-1] == 0
            product = range(5)
            for symbol in document + asked[:-1]:
                product = [group[symbol - 1][i] for i in product]
            assert expected == [1 + group.index(tuple(product))]


@pytest.mark.parametrize("task,modulus", [("parity", 2), ("modular", 7)])
def test_sums(task, modulus):
    for item in items_of(task):
        for question in item["questions"]:
            document, asked, expected = ranks(item, question)
            assert asked[-1] == 0 and expected == [1 + sum(s - 1 for s in document + asked[:-1]) % modulus]


def test_brackets_close():
    for item in items_of("dyck"):
        for question in item["questions"]:
            stack = []
            for symbol in sum(ranks(item, question), []):
                if symbol < 2:
                    stack.append(symbol)
                else:
                    assert stack.pop() == symbol - 2
            assert not stack and len(question["expected"]) > 0


def test_copies():
    for item in items_of("copy"):
        assert item["questions"][0]["expected"] == item["ids"]
    for item in items_of("reverse_copy"):
        assert item["questions"][0]["expected"] == item["ids"][::-1]
    for item in items_of("selective_copy"):
        blank = collections.Counter(item["ids"]).most_common(1)[0][0]
        assert item["questions"][0]["expected"] == [token for token in item["ids"] if token != blank] and len(item["questions"][0]["expected"]) == 16


@pytest.mark.parametrize("task", ["mqar", "induction"])
def test_what_followed_stands_once(task):
    for item in items_of(task):
        assert len(item["questions"]) == 10
        for question in item["questions"]:
            [key] = question["ids"]
            assert item["ids"].count(key) == 1
            assert question["expected"] == [item["ids"][item["ids"].index(key) + 1]]


def test_languages_have_the_baseline_that_is_told():
    for item in items_of("icl"):
        counts = collections.defaultdict(collections.Counter)
        for n in range(4):
            for i in range(n, len(item["ids"])):
                counts[tuple(item["ids"][i - n:i])][item["ids"][i]] += 1
        for question in item["questions"]:
            right, string = 0, question["ids"] + question["expected"]
            for i in range(1, len(string)):
                seen = next(counts[c] for c in (tuple(string[max(0, i - n):i]) for n in (3, 2, 1, 0)) if c in counts)
                right += min(seen, key=lambda s: (-seen[s], s)) == string[i]
            assert right / len(question["expected"]) == pytest.approx(question["baseline"])
            assert 0 <= question["ceiling"] <= 1


# ---- running ----

SMALL = ["-m", GOLDEN / "qwen3", "-l", "256", "-n", "40"]


def test_scores_and_speeds_are_reported():
    told = result("eval", "parity,copy", *SMALL)["rows"]
    assert [row["task"] for row in told] == ["parity", "copy"]
    for row in told:
        assert row["questions"] == 40 and 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["bytes_peak"] >= row["bytes_end"] > 0 and row["prompt_tokens_per_second"] > 0 and row["resident_peak"] > 0
    assert result("eval", "parity", "--aware", *SMALL)["rows"][0]["questions"] == 40
    assert len(linnet("eval", "parity", "--csv", *SMALL).stdout.splitlines()) == 2
    assert b"parity" in linnet("eval", "parity", *SMALL).stdout


def test_divergence_from_the_full_cache(built_in):
    told = result("eval", "kld", "-l", "512", "-w", "1", "--policy", "f16", "--policy", "q8_0", "--policy", "q4_0")["rows"]
    same, q8, q4 = told
    assert same["accuracy"] == 1 and abs(same["divergence"]) < 1e-6 and same["perplexity"] == pytest.approx(same["full_perplexity"])
    assert 0 < q8["divergence"] < q4["divergence"] and q4["accuracy"] < q8["accuracy"]
    assert q4["bytes_peak"] < q8["bytes_peak"] < same["bytes_peak"]


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_killed_run_goes_on(tmp_path):
    results = tmp_path / "results.jsonl"
    command = ["eval", "s5", "-m", GOLDEN / "qwen3", "-l", "1024", "-n", "120", "--results", results]
    running = subprocess.Popen([PROGRAM, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (results.exists() and results.stat().st_size) and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = results.read_bytes()
    kept = kept[:kept.rfind(b"\n") + 1]
    done = kept.count(b"\n")
    assert 0 < done <= 12
    results.write_bytes(kept + b'{"key": "torn')
    told = result(*command)["rows"][0]
    assert told["questions"] == 120
    assert results.read_bytes().startswith(kept) and len(records(results)) == 12
    whole = result(*command[:-2], "--results", tmp_path / "other.jsonl")["rows"][0]
    assert whole["right"] == told["right"]
    before = results.read_bytes()
    assert result(*command)["rows"][0]["right"] == told["right"] and results.read_bytes() == before


def test_full_disk_keeps_what_was_written(tmp_path):
    results = tmp_path / "results.jsonl"
    command = ["eval", "parity", "-m", GOLDEN / "qwen3", "-l", "256", "-n", "100", "-q", "--results", results]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    assert "results.jsonl" in one_sentence(linnet(*command, status=1, preexec_fn=limit))
    kept = results.read_bytes()
    kept = kept[:kept.rfind(b"\n") + 1]
    assert kept
    linnet(*command)
    assert results.read_bytes().startswith(kept) and len(records(results)) == 10


def test_one_run_at_a_time(tmp_path):
    results = tmp_path / "results.jsonl"
    with results.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "in use" in one_sentence(linnet("eval", "parity", *SMALL, "--results", results, "-q", status=1))


def test_ctrl_c_keeps_what_was_asked(tmp_path):
    results = tmp_path / "results.jsonl"
    command = [PROGRAM, "eval", "s5", "-m", GOLDEN / "qwen3", "-l", "1024", "-n", "100000", "--results", results]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (results.exists() and results.stat().st_size) and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130 and records(results)


def test_results_are_of_what_determined_them(tmp_path):
    results = tmp_path / "results.jsonl"
    for lines, options in enumerate([[], ["--seed", "2"], ["--exact"], ["--policy", "q8_0"], ["-t", "1"], ["--aware"], ["--piece", "32"]], 1):
        if options == ["-t", "1"] and "2 threads" not in results.read_text():
            continue
        linnet("eval", "parity", "-m", GOLDEN / "qwen3", "-l", "256", "-n", "10", "--results", results, *options)
        assert len(records(results)) == lines


def boxes(picture):
    for text in picture.iter("{http://www.w3.org/2000/svg}text"):
        if text.get("class") == "name":
            width = 7 * len(text.text)
            yield float(text.get("x")) - width, float(text.get("y")) - 10, width, 12


def test_page_and_picture(tmp_path, built_in):
    linnet("eval", "recall,kld", "-l", "512", "-n", "10", "-w", "1", "--policy", "f16", "--policy", "q8_0", "--policy", "q4_0", "-o", tmp_path)
    page = (tmp_path / "memory-evaluation.md").read_text()
    for words in ("## recall, 512 tokens", "## kld, 512 tokens", "| q4_0 |", "quality-against-bytes.svg"):
        assert words in page
    picture = xml.etree.ElementTree.parse(tmp_path / "quality-against-bytes.svg")
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    for words in ("recall, 512 tokens", "kld, 512 tokens", "f16", "q8_0", "q4_0", "frontier"):
        assert words in texts
    placed = list(boxes(picture))
    for a, b in itertools.combinations(placed, 2):
        assert a[0] >= b[0] + b[2] or b[0] >= a[0] + a[2] or a[1] >= b[1] + b[3] or b[1] >= a[1] + a[3]
    before = (tmp_path / "quality-against-bytes.svg").read_bytes()
    linnet("eval", "recall", "-l", "512", "-n", "10", "--policy", "f16", "-o", tmp_path)
    assert (tmp_path / "quality-against-bytes.svg").read_bytes() == before


# ---- refusals ----

@pytest.mark.parametrize("arguments", [["fly"], ["recall,fly"], ["recall", "--budget", "0"], ["recall", "--budget", "2"], ["recall", "--budget", "1/0"], ["recall", "--budget", "1,,2"],
                                       ["recall", "--policy", ""], ["recall", "-n", "0"], ["recall", "-l", "100"], ["recall", "-l", "x"], []])
def test_usage(arguments):
    done = linnet("eval", *arguments, status=2)
    assert done.stdout == b"" and len(done.stderr.decode().splitlines()) == 1


def test_what_cannot_be_asked_is_refused(tmp_path, built_in):
    assert "does not fit" in one_sentence(linnet("eval", "niah_multiquery", "-l", "256", "-q", status=1))
    assert "tokenizer" in one_sentence(linnet("eval", "passkey", "-m", GOLDEN / "qwen3", "-q", status=1))
    foreign = tmp_path / "foreign"
    foreign.write_text("not a result\n")
    assert "--results" in one_sentence(linnet("eval", "parity", *SMALL, "--results", foreign, "-q", status=1))
    assert foreign.read_text() == "not a result\n"
    assert one_sentence(linnet("eval", "parity", *SMALL, "--results", tmp_path / "no" / "where", "-q", status=1))
    assert "regular" in one_sentence(linnet("eval", "parity", *SMALL, "--results", "/dev/full", "-q", status=1))
    assert "no policy 'fly'" in one_sentence(linnet("eval", "parity", *SMALL, "--policy", "fly", "-q", status=1))
