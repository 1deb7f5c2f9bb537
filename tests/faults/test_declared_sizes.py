"""Property: a disk too small for the next version: the one that stands stands, and the error says what was
needed and where.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from rehearsal import FIRST, PARTS, Order, copy, part, standing, trace

from moesaic.errors import StorageError

CHANGED = ["seed=1", "train.steps=4", "base.pretrain.steps=4", "router.epochs=2"]
SHORT, LONG = 6, 24
ROOM = {"pretrain": 2_400_000, "expert": 300_000, "router": 100_000}
"""Bytes that are more than enough for a second version of each."""

Disk = Callable[[], AbstractContextManager[tuple[Path, Callable[[int], None]]]]
"""A disk, and a function that leaves so many bytes of it free."""


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A real disk whose size changes, where this process may mount one."""
    mount = shutil.which("mount") or "mount"

    @contextmanager
    def mounted() -> Iterator[tuple[Path, Callable[[int], None]]]:
        place = tmp_path / "disk"
        place.mkdir(exist_ok=True)
        done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1g", "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip(f"may not mount a disk here: {done.stderr.decode().strip()}")

        def leave(free: int) -> None:
            size = shutil.disk_usage(place).used + free
            subprocess.run([mount, "-o", f"remount,size={size}", str(place)], check=True)

        try:
            yield place, leave
        finally:
            subprocess.run(["umount", str(place)], check=True)

    return mounted


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SHORT, pytest.param(LONG, marks=pytest.mark.faults)])
@pytest.mark.parametrize("verb", FIRST)
def test_whatever_the_size_of_the_disk_a_sound_version_stands(verb, sizes, disk: Disk, order: Order, ready, ram):
    """From no room at all to enough: a second version is trained where one stands."""
    place = PARTS[verb]
    fresh = copy(ready["done"], ram / "fresh")
    assert order(verb, fresh, overrides=CHANGED)["status"] == 0
    new, old, full = trace(fresh, place), trace(ready["done"], place), 0
    for step in range(sizes):
        with disk() as (mounted, leave):
            root = copy(ready["done"], mounted / "run")
            leave(ROOM[verb] * step // (sizes - 1))
            answer = order(verb, root, overrides=CHANGED)
            assert answer["status"] in (0, StorageError.exit_code), answer
            assert standing(part(root, place)), "a sound version stands"
            if answer["status"]:
                full += 1
                said = r"/\S+: (no room for .*; expected [\d,]+ bytes|storage failed: .*); got [\d,]+ bytes free; "
                assert re.match(said, answer["error"]) or "more than" in answer["error"], answer["error"]
                assert str(root) in answer["error"]
                assert part(root, place).resolve().name == part(ready["done"], place).resolve().name
                assert {**trace(root, place), "curves": 0} == {**old, "curves": 0}, "and it is the old one"
                leave(1 << 28)
                assert order(verb, root, overrides=CHANGED)["status"] == 0
            assert trace(root, place) == new
    assert 0 < full < sizes, "some disks were too small, and one was not"
    print(f"{verb}: {sizes} sizes of disk, {full} of them too small")
