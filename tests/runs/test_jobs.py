"""Work in processes: results and reports arrive, errors come back whole, nobody who died is waited for or left."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from moesaic.errors import DataError, MoesaicError
from moesaic.hardware import LOCAL_RANK
from moesaic.runs.jobs import Jobs, Report
from moesaic.runs.progress import Silent


class Heard(Silent):
    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.ends: list[str] = []
        self.notes: list[str] = []

    def row(self, task, row) -> None:
        self.rows.append((task, row["step"]))

    def note(self, text) -> None:
        self.notes.append(text)

    def end(self, task, text) -> None:
        self.ends.append(f"{task}: {text}")


def counts(report: Report) -> int:
    report.begin(3)
    for step in range(3):
        report.row({"step": step + 1})
    report.end("counted")
    return os.getpid()


def whispers(report: Report) -> None:
    report.note("heard")


def fails(report: Report) -> None:
    raise DataError("a bad row", path="rows.jsonl", line=7, field="prompt", hint="mend it")


def dies(report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def answers_much(report: Report) -> bytes:
    return bytes(1 << 29)


def fails_after(seconds: float, report: Report) -> None:
    time.sleep(seconds)
    fails(report)


def ends_twice(report: Report) -> None:
    counts(report)
    report.end("again")


def sleeps(report: Report) -> None:
    time.sleep(600)


@pytest.mark.slow
def test_results_reports_and_errors_come_back():
    heard = Heard()
    with Jobs(2, heard) as jobs:
        found = jobs.run({"a": counts, "b": counts})
        assert os.getpid() not in found.values()
        assert sorted(heard.rows) == [(task, step) for task in "ab" for step in (1, 2, 3)]
        assert sorted(heard.ends) == ["a: counted", "b: counted"]
        with pytest.raises(DataError) as caught:
            jobs.run({"bad": fails})
    assert str(caught.value) == "rows.jsonl:7: prompt: a bad row; mend it"


def waits(report: Report) -> str:
    time.sleep(1)
    return os.environ[LOCAL_RANK]


@pytest.mark.slow
def test_every_process_of_a_pool_has_a_number_of_its_own():
    with Jobs(3, Silent()) as jobs:
        assert sorted(jobs.run(dict.fromkeys("abc", waits)).values()) == ["0", "1", "2"]
    assert LOCAL_RANK not in os.environ


def test_one_worker_needs_no_process_of_its_own_and_computes_with_one_thread():
    heard, before = Heard(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Jobs(1, heard) as jobs:
            found = jobs.run({"a": counts, "b": counts, "threads": lambda report: torch.get_num_threads()})
            assert found == {"a": os.getpid(), "b": os.getpid(), "threads": 1}
            assert heard.ends == ["a: counted", "b: counted"]
            with pytest.raises(DataError):
                jobs.run({"bad": fails})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pieces_that_are_done_are_counted_under_a_task_and_notes_begin_with_the_name(workers):
    heard = Heard()
    with Jobs(workers, heard) as jobs:
        jobs.run({"a": whispers, "b": whispers}, "evaluation")
        assert heard.rows[-1] == ("evaluation", 2) and heard.ends == ["evaluation: 2 done"]
        assert sorted(heard.notes) == ["a: heard", "b: heard"]
        if workers == 1:
            assert heard.rows == [("evaluation", 1), ("evaluation", 2)]
        jobs.run({}, "nothing")
    assert heard.ends == ["evaluation: 2 done"]


@pytest.mark.slow
def test_a_killed_process_is_an_error_with_a_way_out():
    killed = "a process of the pool was killed: dies; if memory ran out, run again with workers=1"
    with pytest.raises(MoesaicError, match=killed), Jobs(2, Silent()) as jobs:
        jobs.run({"dies": dies})


@pytest.mark.slow
@pytest.mark.usefixtures("hang_limit")
def test_an_error_ends_what_still_runs_and_so_does_the_death_of_the_parent():
    with pytest.raises(DataError), Jobs(2, Silent()) as jobs:
        jobs.run({"sleeps": sleeps, "bad": fails})

    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_jobs import sleeps\n"
        "from moesaic.runs.jobs import Jobs\n"
        "from moesaic.runs.progress import Silent\n"
        "import threading, multiprocessing, time\n"
        "def tell():\n"
        "    while not multiprocessing.active_children(): time.sleep(0.05)\n"
        "    time.sleep(3); print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=tell, daemon=True).start()\n"
        "    with Jobs(2, Silent()) as jobs: jobs.run({'sleeps': sleeps})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, os.path.dirname(__file__)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(1200):
        if not alive(child):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {child} outlived its parent")


@pytest.mark.slow
@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6])
def test_an_error_does_not_cut_a_result_that_is_being_sent(seconds):
    with pytest.raises(DataError), Jobs(2, Silent()) as jobs:
        jobs.run({"first": counts, "second": counts})  # both processes are there
        jobs.run({"much": answers_much, "bad": partial(fails_after, seconds)})


def test_the_end_of_what_has_not_begun_is_an_error():
    with pytest.raises(RuntimeError, match="ends: the end of what has not begun"), Jobs(1, Silent()) as jobs:
        jobs.run({"ends": ends_twice})


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
