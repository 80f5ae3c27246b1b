"""chat with questions on standard input."""
from conftest import linnet, one_sentence

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


def test_load_refuses_what_is_no_conversation(built_in, tmp_path):
    (tmp_path / "talk").write_text("x")
    (tmp_path / "talk.json").write_text("[]")
    done = linnet(*CHAT, "-m", built_in, input=f"/load {tmp_path}/nowhere\n/load {tmp_path}/talk\n")
    assert done.stdout == b"" and done.stderr.decode().count("linnet: ") == 2


def test_full_context_is_told(built_in):
    done = linnet(*CHAT, "-m", built_in, "-c", "32", input="word " * 100 + "\n", status=1)
    assert "/clear" in one_sentence(done)
