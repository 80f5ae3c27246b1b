"""What the tests of the program share. LINNET_PROGRAM names the program; the built-in model is what it runs."""
import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("LINNET_PROGRAM", str(ROOT / "build/release/cli/linnet"))
GOLDEN = ROOT / "tests/golden/models"
BUILT_IN = ROOT / "share/linnet/linnet-fledgling-q8_0.gguf"
SANITIZED = bool(os.environ.get("LINNET_SANITIZE"))


def linnet(*arguments, status=0, input=None, **options):
    """Runs the program; standard output and error come back as bytes. Every run must end with the expected status."""
    command = [PROGRAM, *map(str, arguments)]
    if isinstance(input, str):
        input = input.encode()
    options.setdefault("stdin", None if input is not None else subprocess.DEVNULL)
    if input is not None:
        del options["stdin"]
    done = subprocess.run(command, input=input, capture_output=True, timeout=600, **options)
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')}"
    return done


def one_sentence(done):
    """A failure is told in one line that begins with the program's name; no result is printed."""
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("linnet")]
    assert len(lines) == 1, done.stderr.decode()
    assert done.stdout == b""
    return lines[0]


def result(*arguments, **options):
    return json.loads(linnet(*arguments, "--json", **options).stdout)


@pytest.fixture
def built_in():
    if not BUILT_IN.exists():
        pytest.skip("the built-in model is not in this tree")
    return BUILT_IN
