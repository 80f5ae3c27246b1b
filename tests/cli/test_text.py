"""tokenize and perplexity: text in, text out."""
import math

import numpy
import pytest
from conftest import linnet, one_sentence, result

TEXTS = [b"Once upon a time", "Grüße, 東京 \U0001f600 ٣".encode(), b"\xff\xfe broken \xc3", b"a\x00b", b"", b"  \n\n\t x", b"<|user|>hello"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(built_in, text):
    ids = linnet("tokenize", "-m", built_in, "-f", "-", input=text).stdout
    assert ids.endswith(b"\n") and ids.count(b"\n") == 1
    assert linnet("tokenize", "-m", built_in, "--decode", "-f", "-", input=ids).stdout == text


def test_special_tokens_only_when_asked(built_in):
    plain = linnet("tokenize", "-m", built_in, "-p", "<|user|>").stdout.split()
    special = linnet("tokenize", "-m", built_in, "--special", "-p", "<|user|>").stdout.split()
    assert len(special) == 1 < len(plain)
    assert linnet("tokenize", "-m", built_in, "--decode", "--special", "-p", special[0].decode()).stdout == b"<|user|>"


def test_bad_ids(built_in):
    for ids in ("x", "1 2 y", "99999999999999999999", "123456789"):
        one_sentence(linnet("tokenize", "-m", built_in, "--decode", "-p", ids, status=1))
    one_sentence(linnet("tokenize", "-m", built_in, "-f", "/nowhere/text", status=1))


def test_perplexity_is_what_the_logits_say(built_in, tmp_path):
    text = b"The old house stood at the end of the village, and nobody had lived in it for years. " * 8
    (tmp_path / "text").write_bytes(text)
    told = result("perplexity", "-m", built_in, "-f", tmp_path / "text", "-c", "64", "--exact", "--precision", "f32")
    ids = numpy.array(linnet("tokenize", "-m", built_in, "-f", "-", input=text).stdout.split(), dtype=int)
    losses, second = [], []
    for window in range(len(ids) // 64):
        part = ids[64 * window : 64 * window + 64]
        linnet("logits", "-m", built_in, "-i", "-", "-o", tmp_path / "logits", "--exact", "--precision", "f32",
               input=" ".join(map(str, part)))
        rows = numpy.frombuffer((tmp_path / "logits").read_bytes(), "<f4").reshape(64, -1).astype(numpy.float64)
        chosen = rows[numpy.arange(63), part[1:]]
        nll = numpy.log(numpy.exp(rows[:-1] - rows[:-1].max(axis=1, keepdims=True)).sum(axis=1)) + rows[:-1].max(axis=1) - chosen
        losses += list(nll)
        second += list(nll[32:])
    assert told["windows"] == len(ids) // 64 and told["tokens"] == len(losses)
    assert told["nll"] == pytest.approx(numpy.mean(losses), rel=1e-5)
    assert told["perplexity"] == pytest.approx(math.exp(numpy.mean(losses)), rel=1e-5)
    assert told["second_half"]["nll"] == pytest.approx(numpy.mean(second), rel=1e-5)


def test_perplexity_needs_a_window(built_in):
    one_sentence(linnet("perplexity", "-m", built_in, "-f", "-", status=1, input="too short"))
