"""inspect, convert, plan, logits and perplexity on the small golden models and on files that are broken."""
import json
import os
import resource
import signal

import numpy
import pytest
from conftest import GOLDEN, SANITIZED, linnet, one_sentence, result


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    linnet("convert", GOLDEN / "qwen3", "-o", path, "--type", "f32")
    return path


def test_inspect(small):
    text = linnet("inspect", small).stdout.decode()
    assert "general.architecture" in text and "qwen3" in text and "a token of context takes" in text
    told = result("inspect", small)
    assert told["keys"]["general.architecture"] == "qwen3"
    assert told["parameters"] == sum(int(numpy.prod(tensor["size"])) for tensor in told["tensors"])
    token = told["bytes_per_token"]
    assert token["f32"] == 2 * token["f16"] == 2 * token["bf16"]
    folder = result("inspect", GOLDEN / "qwen3")
    assert folder["parameters"] == told["parameters"]


def test_missing_and_broken_files(small, tmp_path):
    for verb in (["inspect"], ["convert", "-o", tmp_path / "out"], ["plan", "-m"], ["logits", "-o", tmp_path / "out", "-i", "1", "-m"]):
        assert "nowhere" in one_sentence(linnet(*verb, tmp_path / "nowhere.gguf", status=1))
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(small.read_bytes()[:-1000])
        one_sentence(linnet(*verb, broken, status=1))
        broken.write_bytes(b"GGUF" + b"\xff" * 100)
        one_sentence(linnet(*verb, broken, status=1))
        broken.write_bytes(b"")
        one_sentence(linnet(*verb, broken, status=1))
    assert not (tmp_path / "out").exists()


def test_unknown_architecture_is_named_with_the_known(tmp_path):
    for name in os.listdir(GOLDEN / "qwen3"):
        data = (GOLDEN / "qwen3" / name).read_bytes()
        if name == "config.json":
            config = json.loads(data)
            config["model_type"], config["architectures"] = "ostrich", ["OstrichForCausalLM"]
            data = json.dumps(config).encode()
        (tmp_path / name).write_bytes(data)
    sentence = one_sentence(linnet("plan", "-m", tmp_path, status=1))
    assert "strich" in sentence and "llama" in sentence and "qwen3" in sentence


def test_full_disk_leaves_the_old_file(small, tmp_path):
    output = tmp_path / "model.gguf"
    output.write_bytes(b"old")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))

    one_sentence(linnet("convert", small, "-o", output, status=1, preexec_fn=limit))
    assert output.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.gguf"]
    one_sentence(linnet("logits", "-m", small, "-i", ",".join(["1"] * 100), "-o", tmp_path / "logits", status=1, preexec_fn=limit))
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_fewer_heads(tmp_path):
    path = tmp_path / "out.gguf"
    linnet("convert", GOLDEN / "llama-3", "-o", path, "--kv-heads", "1", "--mean")
    assert b"attention.head_count_kv" in linnet("inspect", path).stdout
    path.unlink()
    for more in (["--kv-heads", "7", "--mean"], ["--kv-heads", "1"]):  # no divisor; no tokenizer for the text
        one_sentence(linnet("convert", GOLDEN / "llama-3", "-o", path, *more, status=1))
        assert not path.exists()
    linnet("convert", GOLDEN / "llama-3", "-o", path, "--mean", status=2)


def test_plan_refuses_with_a_figure_that_suffices(small):
    arguments = ["plan", "-m", small, "-c", "5000"]
    plan = result(*arguments)
    assert plan["total"] == plan["model"] + plan["pages"] + plan["workspace"] + plan["overhead"]
    sentence = one_sentence(linnet(*arguments, "--memory", "1", status=1)) if plan["model"] < 1 else None
    done = linnet(*arguments, "--memory", plan["model"] + plan["overhead"], status=1)
    sentence = one_sentence(done)
    figure = int(sentence.split("--memory ")[1].split()[0])
    assert result(*arguments, "--memory", figure)["total"] <= figure
    linnet(*arguments, "--memory", figure - 1, status=1)


def test_logits_of_all_ways_in(small, tmp_path):
    ids = [5, 1, 17, 3, 3, 40, 2]
    files = []
    for name, given, input in (("list", ",".join(map(str, ids)), None), ("standard", "-", str(ids)),
                               ("file", tmp_path / "ids", None)):
        (tmp_path / "ids").write_text(" ".join(map(str, ids)))
        linnet("logits", "-m", small, "-i", given, "-o", tmp_path / name, "--exact", "--precision", "f32", input=input)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1] == files[2]
    rows = numpy.frombuffer(files[0], "<f4").reshape(len(ids), -1)
    pieces = tmp_path / "pieces"
    linnet("logits", "-m", small, "-i", "-", "-o", pieces, "--exact", "--precision", "f32", "--piece", "2", input=str(ids))
    other = numpy.frombuffer(pieces.read_bytes(), "<f4").reshape(rows.shape)
    assert numpy.abs(rows - other).max() <= 1e-4 * rows.std()


def test_logits_refuse_ids_out_of_range(small, tmp_path):
    one_sentence(linnet("logits", "-m", small, "-i", "1,99999999", "-o", tmp_path / "out", status=1))
    one_sentence(linnet("logits", "-m", small, "-i", "1,2,3", "-c", "2", "-o", tmp_path / "out", status=1))
    one_sentence(linnet("logits", "-m", small, "-i", "", "-o", tmp_path / "out", status=1))
    assert not (tmp_path / "out").exists()


def test_bench(small):
    told = result("bench", "-m", small, "-p", "16", "-n", "4", "-d", "0,8", "-r", "3")
    assert [(row["test"], row["depth"]) for row in told["rows"]] == [("pp16", 0), ("tg4", 0), ("pp16", 8), ("tg4", 8)]
    assert all(row["tokens_per_second"] > 0 and len(row["samples"]) == 3 for row in told["rows"])
    assert b"| pp16 " in linnet("bench", "-m", small, "-p", "16", "-n", "0", "-r", "1").stdout


def test_bench_attention():
    small = ["bench", "attention", "--lengths", "64,100", "--heads", "4", "--key-heads", "2", "--sizes", "16", "--seconds", "0", "-r", "1"]
    lines = [json.loads(line) for line in linnet(*small, "--works", "forward,backward_f32,ragged_f32", "--json").stdout.splitlines()]
    assert [row["work"] for row in lines[:3]] == ["peak_f32", "peak_bf16", "peak_read"] and lines[0]["gflops"] > 0
    names = [(row["work"], row["length"]) for row in lines[3:]]
    assert names == [(f"forward_{kind}_d16_{mask}", length) for mask in ("causal", "full") for kind in ("f32", "bf16") for length in (64, 100)] \
        + [(f"{kind}_f32_d16_causal", length) for kind in ("backward", "ragged") for length in (64, 100)]
    for row in lines[3:]:
        assert row["seconds"] > 0 and row["gflops"] > 0 and 0 < row["percent_of_peak"] < 200 and row["path"] != "?", row
    text = linnet(*small, "--works", "forward_bf16_d16_full").stdout.decode()
    assert text.count("| forward_bf16_d16_full ") == 2
