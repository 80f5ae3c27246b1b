"""run: what goes where, how it stops, and that the bound on memory holds."""
import json
import pathlib
import re
import resource
import signal
import subprocess
import time

import pytest
from conftest import PROGRAM, SANITIZED, linnet, one_sentence, result

STORY = ["run", "--raw", "-p", "Once upon a time", "--temp", "0"]
FACTS = "It was a cold\nThe ticket number of Ada is 48213.\n evening, and the wind went round the house until the morning came.\n"


def test_only_the_text_goes_to_standard_output(built_in):
    done = linnet(*STORY, "-m", built_in, "-n", "12")
    told = result(*STORY, "-m", built_in, "-n", "12")
    assert done.stdout.decode() == told["text"] + "\n"
    assert told["tokens"] == {"prompt": 5, "generated": 12} or told["tokens"]["generated"] == 12
    assert told["stopped"] == "length"
    errors = done.stderr.decode()
    assert "memory plan" in errors and "tokens/s" in errors and "allocated at most" in errors
    assert linnet(*STORY, "-m", built_in, "-n", "12", "-q").stderr == b""


def test_document_and_question(built_in):
    told = result("run", "-m", built_in, "-f", "-", "-p", "What is the ticket number of Ada?", "--temp", "0", input=FACTS)
    assert told["text"] == "48213" and told["stopped"] == "end"


def test_stop_text_is_not_printed(built_in):
    text = result(*STORY, "-m", built_in, "-n", "40")["text"]
    word = text.split()[6]
    first = text.index(word)
    told = result(*STORY, "-m", built_in, "-n", "40", "--stop", "never there", "--stop", word)
    assert told["text"] == text[:first] and told["stopped"] == "stop"
    # In the middle of a token, and across tokens.
    part = text[first - 2 : first + 2]
    told = result(*STORY, "-m", built_in, "-n", "40", "--stop", part)
    assert told["text"] == text[: text.index(part)]


def test_seed_and_threads(built_in):
    warm = ["run", "-m", built_in, "--raw", "-p", "Once upon a time", "-n", "24", "--temp", "1"]
    texts = {seed: result(*warm, "--seed", seed)["text"] for seed in (1, 2, 3)}
    assert len(set(texts.values())) > 1
    for threads in (1, 2):
        assert result(*warm, "--seed", "1", "-t", threads)["text"] == texts[1]


def test_context_is_a_bound(built_in):
    sentence = one_sentence(linnet("run", "-m", built_in, "--raw", "-f", "-", "-c", "16", status=1, input="word " * 100))
    assert "16" in sentence and "-c" in sentence
    told = result(*STORY, "-m", built_in, "-c", "16", "-n", "-1")
    assert told["stopped"] == "context" and told["tokens"]["prompt"] + told["tokens"]["generated"] in (16, 17)


def test_any_bytes_are_a_prompt(built_in):
    for data in (b"\xff\xfe\x80", b"\xc3", b"a\x00b"):
        json.loads(linnet("run", "-m", built_in, "--raw", "-f", "-", "-n", "4", "--json", input=data).stdout)
    one_sentence(linnet("run", "-m", built_in, "--raw", "-f", "-", status=1, input=b""))
    one_sentence(linnet("run", "-m", built_in, "-f", "/nowhere/text", status=1))


def test_interrupt_keeps_what_was_generated(built_in):
    command = [PROGRAM, *STORY, "-m", str(built_in), "-n", "-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    tokens = re.search(rb"generated +(\d+) tokens", errors).group(1).decode()
    whole = linnet(*STORY, "-m", built_in, "-n", tokens, "-q").stdout
    assert len(first) == 20 and whole.startswith((first + rest).rstrip(b"\n"))
    assert b"ended by interrupted" in errors and b"allocated at most" in errors


@pytest.mark.skipif(SANITIZED, reason="sanitizers take memory of their own")
@pytest.mark.parametrize("precision", ["auto", "f32", "q8_0"])
def test_the_memory_bound_holds(built_in, precision, tmp_path):
    (tmp_path / "text").write_text("The wind went round the house until the morning came. " * 400)
    arguments = ["run", "-m", built_in, "--raw", "-f", tmp_path / "text", "-n", "8", "--precision", precision]
    sentence = one_sentence(linnet(*arguments, "-q", "--memory", "8M", status=1))
    figure = int(re.search(r"--memory (\d+)", sentence).group(1))
    for limit in (figure, 2 * figure):
        command = [PROGRAM, *map(str, arguments), "--memory", str(limit), "--json", "-q"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        most = 0
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                break
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            most = max(most, 1024 * int(found.group(1)) if found else 0)
            time.sleep(0.005)
        memory = json.loads(process.stdout.read())["memory"]
        assert process.wait() == 0
        assert max(most, memory["anonymous_resident"]) <= limit
        assert memory["peak_allocated"] <= limit
        assert memory["plan"]["total"] <= limit


@pytest.mark.skipif(SANITIZED, reason="sanitizers take memory of their own")
def test_the_system_itself_holds_the_bound(built_in, tmp_path):
    """The kernel refuses private writable memory beyond the budget: heap, stacks of threads, data of libraries."""
    (tmp_path / "text").write_text("The wind went round the house until the morning came. " * 400)
    arguments = ["run", "-m", built_in, "--raw", "-f", tmp_path / "text", "-n", "8", "-q"]
    sentence = one_sentence(linnet(*arguments, "--memory", "8M", status=1))
    figure = int(re.search(r"--memory (\d+)", sentence).group(1))
    command = [PROGRAM, *map(str, arguments), "--memory", str(figure)]
    limited = lambda: resource.setrlimit(resource.RLIMIT_DATA, (figure, figure))
    bounded = subprocess.run(command, capture_output=True, preexec_fn=limited, timeout=120)
    assert bounded.returncode == 0, bounded.stderr.decode()
    assert bounded.stdout == linnet(*arguments, "--memory", str(figure)).stdout


@pytest.mark.skipif(SANITIZED, reason="sanitizers take memory of their own")
def test_activations_in_bounded_bytes(built_in, tmp_path):
    """The same bytes of activations for any length of the prompt, and the system refuses any more."""
    sentence = one_sentence(linnet("plan", "-m", built_in, "-c", "4000", "--activations", "1K", status=1))
    smallest = int(re.search(r"--activations (\d+)", sentence).group(1))
    workspaces = set()
    for repeats in (40, 250):
        (tmp_path / "text").write_text("The wind went round the house until the morning came. " * repeats)
        arguments = ["run", "-m", built_in, "--raw", "-f", tmp_path / "text", "-n", "4", "-q", "--activations", smallest]
        plan = result(*arguments)["memory"]["plan"]
        workspaces.add(plan["workspace"])
        assert plan["workspace"] <= smallest
        bound = plan["total"] + (1 << 20)  # the ids of the prompt
        limited = lambda: resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
        command = [PROGRAM, *map(str, arguments), "--precision", plan["precision"]]
        bounded = subprocess.run(command, capture_output=True, preexec_fn=limited, timeout=300)
        assert bounded.returncode == 0, bounded.stderr.decode()
    assert len(workspaces) == 1


def test_the_demonstration(built_in):
    """linnet run without options: the right answer within half of what float32 keys and values would take."""
    if SANITIZED:
        pytest.skip("takes minutes under sanitizers")
    share = built_in.parent
    if not (share / "document.txt").exists():
        pytest.skip("the built-in document is not in this tree")
    facts = dict(line.split("\t") for line in (share / "facts.txt").read_text().splitlines())
    told = result("run")
    assert told["text"] == facts[(share / "question.txt").read_text().strip()]
    assert told["tokens"]["prompt"] >= 16000
    plan, tokens = told["memory"]["plan"], told["tokens"]["prompt"]
    assert told["memory"]["limit"] <= 1.1 * 8192 / 2 * plan["context"] and plan["context"] >= tokens
    assert told["memory"]["anonymous_resident"] <= told["memory"]["limit"]


def test_devices(built_in):
    """The same text wherever a model runs; where there is no GPU, one sentence says so, and `auto` takes the processor."""
    short = [*STORY, "-m", built_in, "-n", "12"]
    text = result(*short)["text"]
    told = result(*short, "--device", "auto")
    assert told["text"] == text
    if told["memory"]["plan"]["device"] == "cpu":
        assert "GPU" in one_sentence(linnet(*short, "--device", "cuda", status=1))
    else:
        assert result(*short, "--device", "cuda")["text"] == text
        assert "policies" in one_sentence(linnet(*short, "--device", "cuda", "--policy", "h2o", status=1))
    assert "abacus" in one_sentence(linnet(*short, "--device", "abacus", status=1))
