"""One mixture and one server that the tests of this room share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_server import Running, build, running


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces") / "traffic.jsonl"


@pytest.fixture(scope="session")
def served(mixture: Path, trace: Path) -> Iterator[Running]:
    """A server without a key, with a trace; tests share it."""
    with running(mixture, trace=trace, trace_texts=True) as one:
        yield one
