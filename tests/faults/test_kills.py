"""Property: killed at any moment and started again, a training leaves what it would have left: bits, curve, log."""

import random
from pathlib import Path

import pytest
from rehearsal import PARTS, Order, copy, trace

SHORT, LONG = 4, 100


@pytest.mark.slow
@pytest.mark.parametrize("kills", [SHORT, pytest.param(LONG, marks=pytest.mark.faults)])
@pytest.mark.parametrize("verb", PARTS)
def test_killed_at_random_it_ends_as_if_nothing_had_happened(verb, kills, ram: Path, order: Order, ready, unbroken):
    dice, killed, ended = random.Random(f"{verb} {kills}"), 0, 0
    root = copy(ready[verb], ram / "killed")
    seconds = order(verb, copy(ready[verb], ram / "timed"))["seconds"]
    while killed < kills or not ended:
        # Every other kill comes early, so that trainings are taken up more than once before they end.
        after = dice.uniform(0, seconds * dice.choice([0.5, 1.1]))
        answer = order(verb, root, signals={9: after} if killed < kills else {})
        killed += answer["status"] == -9
        assert answer["status"] in (0, -9), answer["error"]
        if answer["status"] == 0:
            ended += 1
            assert trace(root, PARTS[verb]) == unbroken[verb]
            assert not (root / "checkpoints").exists(), "what is finished needs no state"
            copy(ready[verb], root)
    print(f"{verb}: {killed} kills, {ended} trainings ended, all the same")
