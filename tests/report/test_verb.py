"""Journey: `moesaic report`, as it is typed."""

import subprocess
import sys

import pytest

from moesaic.cli.main import status


def test_report_writes_a_page_and_prints_where_it_is(make_run, tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "a"), make_run(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert status(["report", "a"]) == 0
    assert status(["report", "a", "b"]) == 0
    assert status(["report", "a", "b", "--to", "page.html"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["a/report/index.html", "a/report/vs-b.html", "page.html"]
    assert all((tmp_path / name).read_text().startswith("<!doctype html>") for name in printed)


def test_what_cannot_be_reported_is_said_in_one_line(make_run, tmp_path, capsys):
    run = str(make_run(tmp_path / "a"))
    assert status(["report", str(tmp_path)]) == 4
    assert status(["report", run, run, "--trace", "x"]) == 2
    assert status(["report", run, "--trace", str(tmp_path / "none")]) == 3
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 3 and "moesaic evaluate RECIPE" in said[0] and "--trace" in said[1] and "no such file" in said[2]
    )


@pytest.mark.slow
def test_a_report_needs_no_model(make_run, tmp_path):
    run = make_run(tmp_path / "a")
    script = "import sys; from moesaic.report import write_report; write_report(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=True)
    assert not {"tokenizers", "safetensors", "matplotlib.pyplot"} & set(done.stdout.split())
