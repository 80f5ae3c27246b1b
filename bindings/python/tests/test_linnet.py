"""The Python module. LINNET_LIBRARY names the library; the golden models and the built-in one are what it runs."""
import os
import pathlib

import numpy
import pytest

if os.environ.get("LINNET_SANITIZE"):
    pytest.skip("an interpreter without sanitizers cannot load a sanitized library", allow_module_level=True)
import linnet

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILT_IN = ROOT / "share/linnet/linnet-fledgling-q8_0.gguf"
IDS = [5, 1, 17, 3, 3, 40, 2]


@pytest.fixture(scope="module")
def small():
    return linnet.Model(ROOT / "tests/golden/models/qwen3")


@pytest.fixture(scope="module")
def built_in():
    if not BUILT_IN.exists():
        pytest.skip("the built-in model is not in this tree")
    return linnet.Model(BUILT_IN)


def test_session(small, tmp_path):
    assert small.architecture == "qwen3" and small.vocabulary > 0
    session = small.session(64, precision="f32", exact=True)
    assert session.logits is None and len(session) == 0 and len(session.tokens) == 0
    last = session.feed(IDS)
    assert last.shape == (small.vocabulary,) and last.dtype == numpy.float32
    assert list(session.tokens) == IDS
    session.save(tmp_path / "session")
    fork = session.fork()
    after = session.feed([7])
    assert len(fork) == len(IDS)
    assert numpy.array_equal(fork.feed([7]), after)
    session.rewind(0)
    rows = session.feed_logits(IDS)
    assert rows.shape == (len(IDS), small.vocabulary)
    assert numpy.abs(rows[-1] - last).max() < 1e-4 * last.std()
    loaded = small.session(64, precision="f32", exact=True)
    loaded.load(tmp_path / "session")
    assert list(loaded.tokens) == IDS
    assert numpy.array_equal(loaded.feed([7]), after)


def test_plan_and_errors(small):
    plan = small.plan(1000, precision="q8_0" if small.key_size % 32 == 0 else "f16")
    assert plan["context"] == 1000 and plan["total"] > plan["pages"]
    with pytest.raises(linnet.Error) as caught:
        small.session(4).feed(IDS)
    assert caught.value.status == "full"
    with pytest.raises(linnet.Error) as caught:
        linnet.Model(ROOT / "nowhere.gguf")
    assert caught.value.status == "file" and "nowhere" in str(caught.value)
    with pytest.raises(linnet.Error):
        small.session(1000, memory=1000)
    with pytest.raises(ValueError):
        small.session(4, precision="q33")
    with pytest.raises(ValueError):
        small.session(4).feed([[1, 2]])


def test_device(small):
    assert small.plan(100)["device"] == "" and small.plan(100, device="cpu")["device"] == ""
    with pytest.raises(linnet.Error, match="no such device"):
        small.plan(100, device="no such device")


def test_handles_outlive_their_names():
    session = linnet.Model(ROOT / "tests/golden/models/qwen3").session(16)
    assert session.feed([1, 2]) is not None


def test_text(built_in):
    tokenizer = built_in.tokenizer
    for text in ("Once upon a time", "Grüße, 東京 \U0001f600", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(b"\xff\xfe")) == b"\xff\xfe"
    alone = linnet.Tokenizer(BUILT_IN)
    assert list(alone.encode("Once upon a time")) == list(tokenizer.encode("Once upon a time"))
    assert len(alone) == built_in.vocabulary
    assert tokenizer.chat([{"role": "user", "content": "x"}]) == "<|user|>x<|assistant|>"


def test_answer(built_in):
    tokenizer, session = built_in.tokenizer, built_in.session(1024, memory=64 << 20)
    document = "It was a cold\nThe ticket number of Ada is 48213.\n evening, and the wind went round the house.\n"
    session.feed(tokenizer.encode(document))
    question = tokenizer.chat([{"role": "user", "content": "What is the ticket number of Ada?"}])
    session.feed(tokenizer.encode(question, special=True))
    assert "".join(session.generate(16, temperature=0)) == "48213"
    assert 0 < built_in.memory_peak < 64 << 20


def test_policy(small):
    model = small
    assert "keydiff" in linnet.policies()
    with pytest.raises(linnet.Error):
        model.plan(600, policy="no such policy")
    session = model.session(600, policy="keydiff", cache=model.plan(600, policy="keydiff")["pages"])
    session.feed(numpy.arange(300) % model.vocabulary)
    assert session.plan["policy"].startswith("keydiff:")
    usage = session.usage
    assert 0 < usage["pages"] <= usage["pages_peak"] <= session.plan["pages"] and usage["kept"] > 0
