"""Installs into a folder and builds the example against it: by find_package with either library, and by pkg-config."""
import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import ROOT, SANITIZED

BUILD = os.environ.get("LINNET_BUILD", str(ROOT / "build/release"))
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(user LANGUAGES C)
find_package(linnet 0.1 REQUIRED)
foreach(kind linnet static)
  add_executable(answer_${kind} %s)
  target_link_libraries(answer_${kind} PRIVATE linnet::${kind})
endforeach()
"""
pytestmark = pytest.mark.skipif(SANITIZED, reason="a program of another build cannot load a sanitized library")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    # Installed in one place and moved to another: nothing may depend on where it was.
    first, moved = tmp_path_factory.mktemp("install") / "first", tmp_path_factory.mktemp("moved") / "prefix"
    subprocess.run(["cmake", "--install", BUILD, "--prefix", first], check=True, capture_output=True)
    shutil.move(str(first), moved)
    return moved


def run(command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_everything_is_there(prefix):
    for path in ("bin/linnet", "include/linnet/linnet.h", "share/man/man1/linnet.1", "share/bash-completion/completions/linnet",
                 "share/zsh/site-functions/_linnet", "share/fish/vendor_completions.d/linnet.fish"):
        assert (prefix / path).exists(), path
    assert run([prefix / "bin/linnet", "version"]).startswith("linnet ")


def answer(program, prefix, tmp_path, **options):
    model = prefix / "share/linnet/linnet-fledgling-q8_0.gguf"
    if not model.exists():
        return
    (tmp_path / "text").write_text("It was a cold\nThe ticket number of Ada is 48213.\n evening, and the wind went round the house.\n")
    assert run([program, model, tmp_path / "text", "What is the ticket number of Ada?"], **options) == "48213\n"


def test_find_package(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(PROJECT % (ROOT / "examples/answer.c"))
    run(["cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(["cmake", "--build", tmp_path / "build"])
    for kind in ("linnet", "static"):
        answer(tmp_path / f"build/answer_{kind}", prefix, tmp_path)


@pytest.mark.parametrize("static", [False, True])
def test_pkg_config(prefix, tmp_path, static):
    found = next(prefix.rglob("linnet.pc")).parent
    environment = {**os.environ, "PKG_CONFIG_PATH": str(found)}
    flags = run(["pkg-config", "--cflags", "--libs", *(["--static"] if static else []), "linnet"], env=environment).split()
    if static:
        flags = [str(next(prefix.rglob("liblinnet.a"))) if flag == "-llinnet" else flag for flag in flags]
    run(["cc", "-std=c17", ROOT / "examples/answer.c", *flags, "-o", tmp_path / "answer"])
    library = str(next(prefix.rglob("liblinnet.so")).parent)
    answer(tmp_path / "answer", prefix, tmp_path, env={**os.environ, "LD_LIBRARY_PATH": "" if static else library})
