"""Property: ctrl-C and SIGTERM: a training finishes its step, saves and goes; a second signal waits for nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rehearsal import PARTS, Order, copy, newest, trace

from moesaic.cli.main import INTERRUPTED, TERMINATED
from moesaic.errors import Interrupted
from moesaic.files import read_jsonl, read_manifest
from moesaic.runs import signals as stopping

pytestmark = pytest.mark.slow

SELDOM = ["checkpoint_seconds=1000"]


@pytest.mark.parametrize(("name", "status"), [("int", 130), ("term", 143)])
@pytest.mark.parametrize("verb", PARTS)
def test_a_signal_lets_the_step_end_and_be_saved(verb, name, status, ram: Path, order: Order, ready, unbroken):
    root = copy(ready[verb], ram / "signal")
    answer = order(verb, root, fault=f"step:5:{name}", overrides=SELDOM)
    assert answer["status"] == status
    assert read_manifest(newest(root, verb))["state"]["step"] == 5
    assert len(list(read_jsonl(next((root / "metrics" / PARTS[verb]).iterdir())))) == 5
    assert order(verb, root)["status"] == 0
    assert trace(root, PARTS[verb]) == unbroken[verb]


@pytest.mark.parametrize("trials", [5, pytest.param(50, marks=pytest.mark.faults)])
@pytest.mark.parametrize("verb", PARTS)
def test_signals_at_random_times_lose_nothing(verb, trials, ram, order, ready, unbroken):
    dice, root = random.Random(f"{verb} {trials}"), copy(ready[verb], ram / "signals")
    seconds = order(verb, copy(ready[verb], ram / "timed"))["seconds"]
    for _ in range(trials):
        number = dice.choice([2, 15])
        answer = order(verb, root, overrides=SELDOM, signals={number: dice.uniform(0, seconds)})
        # One that comes before anybody listens has Python's or the system's own answer.
        assert answer["status"] in (0, 128 + number, 98 if number == 2 else -15), answer
        if answer["status"] == 0:
            assert trace(root, PARTS[verb]) == unbroken[verb]
            copy(ready[verb], root)
    assert order(verb, root)["status"] == 0
    assert trace(root, PARTS[verb]) == unbroken[verb]


def test_a_second_signal_does_not_wait_for_the_step():
    with stopping.listening():
        with stopping.mood("patient"):
            signal.raise_signal(signal.SIGTERM)
            assert stopping.stopping()
            with pytest.raises(Interrupted) as caught:
                signal.raise_signal(signal.SIGINT)
        assert caught.value.exit_code == 130
        with pytest.raises(Interrupted):
            stopping.heed()
    assert not stopping.stopping()
    codes = [Interrupted(number).exit_code for number in stopping.SIGNALS]
    assert codes[:2] == [INTERRUPTED, TERMINATED] and codes == [128 + number for number in stopping.SIGNALS]


def test_what_is_not_training_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.listening(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is before


def test_a_process_of_the_pool_is_asked_as_often_as_one_likes(monkeypatch):
    monkeypatch.setattr(stopping, "_heard", None)
    with stopping.mood("patient"):
        stopping.obey(15)
        stopping.obey(15)
    with stopping.mood("hasty"):
        stopping.obey(15)
    monkeypatch.setattr(stopping, "_heard", None)
    with stopping.mood("hasty"), pytest.raises(Interrupted):
        stopping.obey(15)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waits for may stay in the table."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_ctrl_c_of_a_real_command_ends_all_its_processes_and_the_next_one_goes_on(ram, recipe, ready, unbroken):
    """A terminal's Ctrl-C reaches the whole group: parent, pool and all."""
    out = ram / "real"
    copy(ready["expert"], out / "small")
    arguments = ["train-expert", str(recipe), "--expert", "adds", "--out", str(out), "checkpoint_seconds=1000"]
    arguments.append("workers=2")  # one would need no pool
    command = [sys.executable, "-c", "from moesaic.cli.main import main; main()", *arguments]
    slow = [*command, "train.steps=100000", "train.lr=0.01"]
    with subprocess.Popen(slow, start_new_session=True, stderr=subprocess.PIPE, text=True) as running:
        log = out / "small/metrics/experts/adds/lr-0.01.jsonl"
        until = time.monotonic() + 60
        while not log.exists() or log.stat().st_size < 1000:
            assert time.monotonic() < until and running.poll() is None, running.stderr and running.stderr.read()
            time.sleep(0.01)
        pool = children(running.pid)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "interrupted; run the same command to continue"
    assert "Traceback" not in said
    assert pool
    until = time.monotonic() + 60
    while any(map(alive, pool)):
        assert time.monotonic() < until
        time.sleep(0.01)
    state = newest(out / "small", "expert")
    steps = read_manifest(state)["state"]["step"]
    assert steps == len(list(read_jsonl(log))) > 0
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "train.steps: this training was started with" in refused.stderr
    subprocess.run([*command, "--restart", "adds"], check=True, timeout=60)
    assert trace(out / "small", "experts/adds") == unbroken["expert"]
