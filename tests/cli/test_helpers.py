"""Small models beside the model: --draft and --predict of run and eval, inside the bound on memory, and what they are refused with."""
import pathlib

import pytest
from conftest import linnet, one_sentence, result

NESTLING = pathlib.Path(__file__).parents[2] / "share" / "linnet" / "linnet-nestling-q8_0.gguf"
FACT = "\nThe ticket number of Ada is 48213.\n"
PROSE = (pathlib.Path(__file__).parents[2] / "share" / "linnet" / "document.txt").read_text()
ASK = ["-f", "-", "-p", "What is the ticket number of Ada?", "--temp", "0", "-n", "12"]


@pytest.mark.parametrize("policy", ["speckv", "specpc"])
def test_draft(built_in, policy):
    document = PROSE[:6000] + FACT  # among the last tokens, which both keep
    bound = 32 << 20
    told = result("run", "-m", built_in, *ASK, "--policy", policy, "--draft", NESTLING, "--cache", "3M", "--memory", bound, input=document)
    assert told["text"] == "48213"
    assert told["memory"]["peak_allocated"] <= bound and told["memory"]["plan"]["pages"] <= 3 << 20
    sentence = one_sentence(linnet("run", "-m", built_in, *ASK, "--policy", policy, status=1, input=document))
    assert "--draft" in sentence
    model = pathlib.Path(__file__).parents[1] / "golden" / "models" / "qwen3"
    sentence = one_sentence(linnet("run", "-m", built_in, *ASK, "--policy", policy, "--draft", model, "-q", status=1, input=document))
    assert "vocabulary" in sentence


def test_predict(built_in):
    document = PROSE[:3000] + FACT + PROSE[3000:6000]
    bound = 48 << 20
    told = result("run", "-m", built_in, *ASK, "--predict", NESTLING, "--memory", bound, input=document)
    assert told["text"] == "48213" and told["memory"]["peak_allocated"] <= bound
    assert "maps" in one_sentence(linnet("run", "-m", built_in, *ASK, "--predict", built_in, "-q", status=1, input=document))
    done = linnet("eval", "recall", "-m", built_in, "-l", "768", "-n", "10", "--policy", "f16", "--predict", NESTLING, "--csv", "-q")
    assert float(done.stdout.decode().splitlines()[1].split(",")[8]) >= 0.8
