"""The command line itself: help, manual page, completions, and what is refused with status 2."""
import shutil
import subprocess

import pytest
from conftest import linnet

VERBS = "run chat plan inspect convert tokenize logits perplexity bench eval calibrate version help".split()


def test_overview_lists_the_verbs():
    for arguments in ([], ["help"], ["--help"]):
        text = linnet(*arguments).stdout.decode()
        assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb):
    text = linnet(verb, "--help").stdout.decode()
    assert text.startswith(f"linnet {verb}: ")
    assert "-h, --help" in text
    assert linnet("help", verb).stdout.decode() == text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [
    ["fly"], ["help", "fly"], ["run"], ["run", "-m", "model", "x"], ["run", "--fly"], ["run", "-z"], ["run", "-p"], ["run", "-p", "x", "-n", "many"],
    ["run", "-p", "x", "--memory", "12Q"], ["run", "-p", "x", "--memory", "-1"], ["run", "-p", "x", "--precision", "q5_0"],
    ["run", "-p", "x", "--stop", ""], ["run", "-p", "x", "--top-p", "2"], ["run", "-p", "x", "--seed", "-1"],
    ["convert"], ["convert", "x"], ["inspect"], ["inspect", "a", "b"], ["tokenize"], ["tokenize", "-p", "a", "-f", "b"],
    ["logits", "-i", "1"], ["perplexity"], ["bench", "-p", "1,,2"], ["bench", "fly"], ["bench", "attention", "--sizes", "4"], ["eval"], ["eval", "fly"], ["completion", "tcsh"],
])
def test_usage_errors(arguments):
    if arguments == ["run"]:
        arguments = ["run", "-m", "model"]
    done = linnet(*arguments, status=2)
    assert done.stdout == b""
    assert len(done.stderr.decode().splitlines()) == 1


def test_version():
    text = linnet("version").stdout.decode()
    assert text.startswith("linnet ") and "architectures:" in text


def test_manual_page_is_clean_troff():
    page = linnet("help", "--man").stdout
    for verb in VERBS:
        assert f".SS linnet {verb}".encode() in page
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=page, capture_output=True, check=True)
        assert done.stderr == b""


def test_bash_completion():
    script = linnet("completion", "bash").stdout.decode()

    def complete(*words):
        line = " ".join(f"'{word}'" for word in words)
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; compopt() {{ :; }}; _linnet; echo \"${{COMPREPLY[*]}}\""
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert complete("linnet", "to") == ["tokenize"]
    assert complete("linnet", "run", "--prec") == ["--precision"]
    assert complete("linnet", "run", "--precision", "b") == ["bf16"]
    assert complete("linnet", "convert", "--type", "q") == ["q8_0", "q4_0"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_completions_parse(shell):
    script = linnet("completion", shell).stdout
    assert b"--precision" in script or b"-l precision" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, check=True)
