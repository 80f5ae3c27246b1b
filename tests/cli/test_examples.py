"""Builds the examples that need no model against the library of the build, and checks what they print."""
import os
import pathlib
import subprocess

import pytest
from conftest import ROOT, SANITIZED

LIBRARY = pathlib.Path(os.environ.get("LINNET_LIBRARY", ROOT / "build/release/liblinnet.so"))
pytestmark = pytest.mark.skipif(SANITIZED, reason="a program of another build cannot load a sanitized library")

# What each prints, computed by hand where a hand can: means of token numbers, pairs counted by formulas.
EXPECTED = {
    "attention": "tokens 0, 99: 0.000 49.437\ntokens 100, 299: 100.000 199.535\ntoken 299 in two parts: 199.535\n",
    "attention_bias": "alibi          692.237  pairs 524800\nfactors        692.237  pairs 524800\n"
                      "dense          692.237  pairs 524800\ncausal         349.660  pairs 524800\n"
                      "window         650.550  pairs 97450\nand prefix     623.171  pairs 101146\n"
                      "neighbourhood  700.003  pairs 50176\n",
    "attention_decode": "token by token: 259.51\nin one piece: 259.51\n"
                        "a cache of 520 tokens has room for 0 more, not for 1\n",
}


@pytest.mark.parametrize("cpu", ["", "portable"])
@pytest.mark.parametrize("name", EXPECTED)
def test_example(tmp_path, name, cpu):
    program = tmp_path / name
    subprocess.run(["cc", "-std=c17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}", ROOT / f"examples/{name}.c", LIBRARY,
                    "-lm", f"-Wl,-rpath,{LIBRARY.parent}", "-o", program], check=True)
    environment = {**os.environ, "LINNET_CPU": cpu} if cpu else os.environ
    assert subprocess.run([program], capture_output=True, text=True, check=True, env=environment).stdout == EXPECTED[name]
