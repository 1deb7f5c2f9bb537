import os
import time

import pytest

from moesaic.errors import RecipeError
from moesaic.files import lock


def test_a_second_process_is_told_who_was_first_until_that_is_killed(tmp_path, crash):
    pid = crash(do="lock", root=tmp_path, leave=True)
    while not (tmp_path / "held").exists():
        time.sleep(0.001)
    with pytest.raises(RecipeError, match=f"in use by process {pid}; wait for it") as caught, lock(tmp_path):
        pass
    assert caught.value.exit_code == 2 and caught.value.path == tmp_path
    assert crash(do="lock", root=tmp_path) == 2
    assert crash(kill=pid) == -9
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_it_is_released_at_the_end_and_by_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(OSError, match="mine"), lock(tmp_path / "new" / "run"):
            raise OSError("mine")


def test_a_process_does_not_enter_twice(tmp_path):
    with lock(tmp_path), pytest.raises(RecipeError, match=f"in use by process {os.getpid()}"), lock(tmp_path):
        pass
