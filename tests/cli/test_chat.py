"""chat with questions on standard input."""
import os
import pty
import select
import time

import pytest
from conftest import PROGRAM, SANITIZED, linnet, one_sentence

CHAT = ["chat", "--temp", "0", "-n", "16"]
FACTS = "It was a cold\nThe ticket number of Ada is 48213.\n evening.\nThe doctor of Cleo is Hugo.\n The wind went round the house.\n"


def test_turns_and_commands(built_in, tmp_path):
    (tmp_path / "facts").write_text(FACTS)
    saved = tmp_path / "talk"
    arguments = [*CHAT, "-m", built_in, "-f", tmp_path / "facts"]
    lines = ["What is the ticket number of Ada?", "/memory", f"/save {saved}", "/help", "/fly", "/save", "Who is the doctor of Cleo?", "/quit",
             "never asked"]
    done = linnet(*arguments, input="\n".join(lines) + "\n")
    answers = done.stdout.decode().splitlines()
    assert answers[0] == "48213" and len(answers) == 2
    errors = done.stderr.decode()
    assert "memory plan" in errors and "/load" in errors and "no command /fly" in errors and "needs the name" in errors
    again = linnet(*arguments, input=f"/load {saved}\nWho is the doctor of Cleo?\n")
    assert again.stdout.decode().splitlines() == answers[1:]
    assert "loaded" in again.stderr.decode()


def test_saved_under_a_policy(built_in, tmp_path):
    (tmp_path / "facts").write_text(FACTS)
    saved = tmp_path / "talk"
    arguments = [*CHAT, "-m", built_in, "-f", tmp_path / "facts", "--policy"]
    first = linnet(*arguments, "snapkv", input=f"What is the ticket number of Ada?\n/save {saved}\nWho is the doctor of Cleo?\n")
    answers = first.stdout.decode().splitlines()
    assert answers[0] == "48213" and len(answers) == 2
    again = linnet(*arguments, "snapkv", input=f"/load {saved}\nWho is the doctor of Cleo?\n")
    assert again.stdout.decode().splitlines() == answers[1:] and "loaded" in again.stderr.decode()
    other = linnet(*arguments, "h2o", input=f"/load {saved}\nWhat is the ticket number of Ada?\n")
    assert other.stdout.decode().splitlines()[0] == "48213" and "was saved under the policy snapkv" in other.stderr.decode()


def test_load_refuses_what_is_no_conversation(built_in, tmp_path):
    (tmp_path / "talk").write_text("x")
    (tmp_path / "talk.json").write_text("[]")
    done = linnet(*CHAT, "-m", built_in, input=f"/load {tmp_path}/nowhere\n/load {tmp_path}/talk\n")
    assert done.stdout == b"" and done.stderr.decode().count("linnet: ") == 2


def test_full_context_is_told(built_in):
    done = linnet(*CHAT, "-m", built_in, "-c", "32", input="word " * 100 + "\n", status=1)
    assert "/clear" in one_sentence(done)


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, *arguments):
        try:
            self.process, self.descriptor = pty.fork()
        except OSError as reason:
            pytest.skip(f"the system gives no terminal: {reason}")
        if not self.process:
            os.execv(PROGRAM, ["linnet", *map(str, arguments)])

    def until(self, text):
        seen, end = b"", time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([self.descriptor], [], [], 0.1)[0]:
                seen += os.read(self.descriptor, 4096)
        return seen

    def type(self, data):
        # A signal between the prompt and the program's read waits for the next key: no person types so fast.
        time.sleep(0.3)
        os.write(self.descriptor, data)

    def status(self):
        while True:
            try:
                if not os.read(self.descriptor, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_interrupts_on_a_terminal(built_in):
    terminal = Terminal("chat", "--temp", "0", "-n", "-1", "-m", built_in)
    terminal.until(b"> ")
    terminal.type(b"Tell me a story, Once upon a time there was a man who\r")
    terminal.until(b"who\r\n")
    terminal.type(b"\x03")  # ends the answer
    terminal.until(b"\n> ")
    terminal.type(b"half a line\x03")  # drops the line
    terminal.until(b"\n> ")
    terminal.type(b"/help\r")
    terminal.until(b"leaves\r\n> ")
    terminal.type(b"/quit\r")
    assert terminal.status() == 0


@pytest.mark.skipif(SANITIZED, reason="takes minutes under sanitizers")
def test_progress_is_a_bar_on_a_terminal(built_in, tmp_path):
    (tmp_path / "text").write_text("The wind went round the house until the morning came. " * 1000)
    terminal = Terminal("run", "-m", built_in, "--raw", "-f", tmp_path / "text", "-n", "1")
    terminal.until(b"\r[#")
    assert terminal.status() == 0
