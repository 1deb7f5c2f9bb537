"""Property: each wrong input: its exit status and its one line (that it is one, the fixture `moesaic` checks)."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.cli import main
from moesaic.errors import CompatibilityError, DataError, GatesError, NonFiniteError, StorageError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu", "small.yaml"], "did you mean 'run'?"),
        (["run"], "missing argument 'RECIPE'"),
        (["run", "small.yaml", "--oot", "x"], "no such option: --oot (Possible options: --out)"),
        (["generate", "x", "--seed", "many"], "invalid value for '--seed'"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["run", "."], "a folder, not a file"),
        (["run", "small.yaml", "fast"], "not an override; expected key=value"),
        (["run", "small.yaml", "train.stepz=3"], "train.stepz: unknown key; did you mean 'steps'?"),
        (["run", "small.yaml", "router.kind=mpl"], "router.kind: wrong value"),
        (["train-expert", "small.yaml", "--expert", "brids"], "brids"),
        (["generate", "shipped:tiny", "hi", "--temperature", "-1"], "temperature: invalid sampling"),
    ],
)
def test_what_was_asked_for_is_wrong(recipe, moesaic, arguments, said):
    code, out, err = moesaic(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and said.lower() in err.lower()


def test_misspelt_key_in_the_file(recipe, moesaic):
    recipe.write_text(recipe.read_text().replace("epochs: 2", "epocs: 2"))
    assert moesaic("run", recipe.name)[::2] == (
        2,
        "error: small.yaml:8: router.epocs: unknown key; did you mean 'epochs'?\n",
    )


def test_bad_row(recipe, moesaic):
    rows = recipe.with_name("sums-train.jsonl")
    rows.write_text(rows.read_text() + '{"prompt": "cut of')
    code, _, err = moesaic("pretrain", recipe.name)
    assert code == 3 and "sums-train.jsonl:25: not JSON" in err


def test_a_folder_of_runs_that_cannot_be_written_is_told_with_the_option_that_names_another(recipe, moesaic):
    recipe.with_name("taken").write_text("a file")
    code, _, err = moesaic("pretrain", recipe.name, "--quiet", "--out", "taken")
    assert code == 6 and err.endswith("--out DIR writes the run elsewhere\n"), err
    recipe.with_name("runs").write_text("a file")
    code, _, err = moesaic("pretrain", recipe.name, "--quiet")
    assert code == 6 and "runs" in err and "--out DIR" in err, err


def test_missing_data(recipe, moesaic):
    recipe.with_name("birds-test.jsonl").unlink()
    code, _, err = moesaic("pretrain", recipe.name, "--quiet")
    assert code == 3
    told = "error: small.yaml:7: experts.birds.data.test: no such file: birds-test.jsonl; sources are relative to the"
    assert told in err
    code, _, err = moesaic("pretrain", recipe.name, "experts.birds.data.test=[birds-train.jsonl, none.jsonl]", "-q")
    assert code == 3 and "<command line>: experts.birds.data.test[1]: no such file: none.jsonl" in err


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("shipped:small", "no such model is shipped; expected shipped:tiny; got shipped:small"),
        ("no/where/base", "no such folder: no/where/base; give a folder"),
    ],
)
def test_a_base_that_is_nowhere_is_told_with_the_line_of_the_recipe(recipe, moesaic, place, said):
    recipe.write_text(recipe.read_text().replace("base: {", f"base: {{path: {place}}}\n#"))
    code, _, err = moesaic("run", recipe.name, "--quiet")
    assert code == 4 and err.startswith("error: small.yaml:3: base.path: ") and said in err, err
    code, _, err = moesaic("run", recipe.name, "--quiet", f"base.path={place}")
    assert code == 4 and err.startswith("error: <command line>: base.path: "), err


@pytest.mark.parametrize("verb", ["run", "evaluate"])
def test_text_metrics_without_their_package_are_refused_before_any_work(recipe, moesaic, monkeypatch, verb):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    code, _, err = moesaic(verb, recipe.name, "evaluate.generate.metrics=[exact_match, bleu]", "--out", "made")
    assert code == 3 and "evaluate.generate.metrics: sacrebleu is not installed" in err
    assert "pip install 'moesaic[metrics]'" in err
    assert not Path("made").exists()


def test_a_run_directory_that_cannot_be(recipe, moesaic):
    code, _, err = moesaic("pretrain", recipe.name, "--out", recipe)
    assert code == 6 and "storage failed" in err


@pytest.mark.parametrize("verb", ["generate", "inspect"])
def test_no_such_folder(recipe, moesaic, verb):
    code, _, err = moesaic(verb, "nowhere", *(["hi"] if verb == "generate" else []))
    assert code == 4 and "nowhere: no" in err


@pytest.mark.parametrize("error", [DataError, CompatibilityError, StorageError, NonFiniteError, GatesError])
def test_every_error_of_ours_gives_its_own_status(moesaic, monkeypatch, error):
    monkeypatch.setattr("moesaic.cli.artefacts.inspect", raising(error("what\nis wrong", path="here")))
    assert moesaic("inspect", "x") == (error.exit_code, "", "error: here: what is wrong\n")


def test_unforeseen(moesaic, monkeypatch, capsys):
    monkeypatch.setattr("moesaic.cli.artefacts.inspect", raising(ZeroDivisionError("two\nlines")))
    line = "error: internal: ZeroDivisionError: two lines; run with --debug and report it\n"
    assert moesaic("inspect", "x") == (1, "", line)
    assert main.status(["inspect", "x"], debug=True) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith(line)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "there"), 6, "there: storage failed"),
        (OSError(errno.EMFILE, "Too many open files"), 6, "see `ulimit -n`"),
        (ImportError("x.so: cannot open shared object file: Too many open files", path="x.so"), 6, "see `ulimit -n`"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 8, "ulimit -v"),
        (MemoryError(), 8, "no memory for this command; free some memory"),
        (SystemError("error return without exception set"), 8, "no memory"),
        (ImportError("x.so: failed to map segment from shared object"), 8, "no memory"),
        (RuntimeError("can't start new thread"), 8, "no memory"),
    ],
)
def test_every_error_of_the_system_gives_the_status_of_its_kind(moesaic, monkeypatch, error, status, said):
    monkeypatch.setattr("moesaic.cli.artefacts.inspect", raising(error))
    code, _, line = moesaic("inspect", "x")
    assert code == status and said in line and "internal" not in line


def test_an_unreadable_folder_is_named(moesaic, monkeypatch, tmp_path):
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.is_file", refused)
    code, _, err = moesaic("inspect", tmp_path)
    assert code == 6 and str(tmp_path) in err and "permission is missing" in err


def test_interrupted(moesaic, monkeypatch):
    monkeypatch.setattr("moesaic.cli.artefacts.inspect", raising(KeyboardInterrupt()))
    assert main.status(["inspect", "x"]) == 130


def test_a_reader_that_leaves_early_is_no_error():
    script = "import time; from moesaic.cli import main; main.app.command()(lambda: print('x' * 10**6)); main.main()"
    command = [sys.executable, "-c", script, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == main.BROKEN_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, which takes nothing")
def test_what_prints_by_rich_ends_alike_and_a_full_disk_behind_it_is_told():
    command = [sys.executable, "-c", "from moesaic.cli import main; main.main()", "plan", "llama-3-8b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == main.BROKEN_PIPE
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 6
    assert done.stderr == "error: cannot write to stdout: No space left on device; check where stdout goes\n"


def raising(error):
    def inspect(*_):
        raise error

    return inspect
