"""Which words are prompts, which are options, and which verb did somebody mean?"""

import os
import subprocess
import sys
from threading import Timer

import pytest

from moesaic.cli.arguments import sorted_out

TAKING = {"--stop", "--expert", "-n"}

SORTED = [
    (["path", "-5 + 3 = ?"], [], ["path", "-5 + 3 = ?"]),
    (["-5", "-.5", "--", "-x"], [], ["-5", "-.5", "-x"]),
    (["- milk", "--json", "--help me, please"], ["--json"], ["- milk", "--help me, please"]),
    (["a", "--stop", "- b", "c"], ["--stop", "- b"], ["a", "c"]),
    (["--stop=- b", "-n", "3", "-"], ["--stop=- b", "-n", "3"], ["-"]),
    (["--stop"], ["--stop"], []),
    (["--json", "--", "--json"], ["--json"], ["--json"]),
    (["--raw a"], [], ["--raw a"]),
    (["—", "--", "-"], [], ["—", "-"]),
]


@pytest.mark.parametrize(("typed", "options", "words"), SORTED)
def test_options_are_told_from_prompts(typed, options, words):
    assert sorted_out(typed, TAKING) == (options, words)


def test_prompts_that_begin_with_a_dash_are_answered_in_their_order(moesaic):
    code, out, _ = moesaic("generate", "shipped:tiny", "a", "-5 + 3", "--max-new-tokens", "2", "- milk", "--raw b")
    prompts = [line for line in out.splitlines() if line.startswith("> ")]
    assert code == 0 and prompts == ["> a", "> -5 + 3", "> - milk", "> --raw b"]
    assert moesaic("generate", "shipped:tiny", "--max-new-tokens", "2", "--", "--json")[1].startswith("> --json\n")


def test_a_word_that_may_be_an_option_is_refused_with_the_way_to_ask_it(moesaic):
    for word in ("--hi", "-x"):
        code, _, err = moesaic("generate", "shipped:tiny", word)
        assert (
            code == 2
            and f"no such option: {word}" in err
            and "a prompt that begins with a dash stands behind --" in err
        )
    code, _, err = moesaic("generate", "shipped:tiny", "a", "--seed", "x")
    assert code == 2 and "behind --" not in err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("launch", None), ("serv", "serve"), ("geneate", "generate"), ("inspekt", "inspect"), ("x", None)],
)
def test_a_verb_is_suggested_only_if_it_is_near(moesaic, typed, meant):
    code, _, err = moesaic(typed)
    assert code == 2 and f"no such command '{typed}'" in err
    assert ("Did you mean" in err) == (meant is not None) and (meant or "") in err


def test_a_place_that_is_nowhere_is_refused_before_torch_is_imported(tmp_path):
    script = "import sys; from moesaic.cli.main import status; print(status(sys.argv[1:]), 'torch' in sys.modules)"
    for arguments, expected in (
        (["generate", "nowhere", "x"], "4 False"),
        (["classify", "nowhere", "x"], "4 False"),
        (["route", "nowhere", "x"], "4 False"),
        (["chat", "nowhere"], "4 False"),
        (["inspect", "nowhere"], "4 False"),
        (["run", "nowhere.yaml"], "2 False"),
        (["init", "recipe.yaml"], "0 False"),
    ):
        done = run_script(script, tmp_path, arguments)
        assert done.splitlines()[-1] == expected, arguments


def run_script(script, folder, arguments):
    return subprocess.run([sys.executable, "-c", script, *arguments], cwd=folder, capture_output=True, text=True).stdout


def test_a_shell_gets_the_verbs_that_begin_so(tmp_path):
    script = "from moesaic.cli.main import main; main()"
    asked = {"_MOESAIC_COMPLETE": "complete_bash", "COMP_WORDS": "moesaic gen", "COMP_CWORD": "1"}
    environment = {**os.environ, **asked}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["generate"]


def test_every_line_of_stdin_is_answered_before_the_next_one_is_read(tmp_path):
    command = [sys.executable, "-m", "moesaic", "generate", "shipped:tiny", "-", "--max-new-tokens", "3"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        limit = Timer(90, process.kill)  # an answer that never comes ends the reading
        limit.start()
        for prompt in ("Once", "- milk"):
            process.stdin.write(f"{prompt}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"> {prompt}\n"
            answer = "".join(iter(lambda: process.stdout.readline().strip("\n"), ""))
            assert "[base (base 100%); stopped at the token limit after 3 tokens]" in answer
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        limit.cancel()
