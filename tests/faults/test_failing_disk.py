"""Property: the disk fails at every call that changes it, or is too small: what stood still stands, and what
is said helps.
"""

import re
from pathlib import Path

import pytest
from rehearsal import FIRST, PARTS, Order, copy, part, standing, trace

from moesaic.errors import StorageError

FAULTS = ("kill", "ENOSPC", "EIO")
SHORT = 3  # so many of the calls are broken by each fault in a short test


def overrides(verb: str) -> list[str]:
    """A state is saved at the end of each training: more saves are more of the same calls."""
    return ["checkpoint_seconds=1000", "train.lr=0.01", "train.steps=3", "base.pretrain.steps=4", "router.epochs=1"]


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.faults)])
@pytest.mark.parametrize("verb", FIRST)
def test_at_every_call_a_fault_leaves_the_old_or_the_new(verb, every, ram: Path, order: Order, ready):
    """A second version is trained where one stands; the disk breaks at one call after the other."""
    place = PARTS[verb]
    at, changed = part(ready["done"], place), [*overrides(verb), "seed=1"]
    fresh = copy(ready["done"], ram / "fresh")
    assert order(verb, fresh, overrides=changed)["status"] == 0
    new, old = trace(fresh, place), standing(at)
    calls = order(verb, copy(ready["done"], ram / "counted"), overrides=changed, fault="disk:9999:EIO")
    total = calls["visits"]
    assert total > 40
    bad, broken = [], 0
    for start, fault in enumerate(FAULTS, 1):
        for number in range(1, total + 1) if every else range(start * 3, total + 1, total // SHORT):
            broken += 1
            root = copy(ready["done"], ram / "broken")
            answer = order(verb, root, overrides=changed, fault=f"disk:{number}:{fault}")
            expected = {-9} if fault == "kill" else {0, StorageError.exit_code}  # 0: what is only tidied up may wait
            if answer["status"] not in expected or not (standing(part(root, place)) or "").startswith(at.name):
                bad.append((fault, number, answer))
            if answer["status"] == StorageError.exit_code and not re.match(
                r"/\S+: storage failed: .*; ", answer["error"]
            ):
                bad.append((fault, number, answer))
            again = order(verb, root, overrides=changed)
            if again["status"] != 0 or trace(root, place) != new:
                bad.append((fault, number, again))
    assert not bad
    assert standing(at) == old
    print(f"{verb}: {total} calls, {broken} broken, no bad state")
