"""Ctrl-C and SIGTERM: a training finishes its step and saves, all else ends at once; so does all at a second signal.

Knows nothing about what is saved. Signals reach one thread of a process, so what they say is kept here, for all of it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from moesaic.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Mood = Literal["idle", "hasty", "patient"]
"""What a first signal meets: nobody works, work that may end anywhere, or a training that asks between its steps."""

_mood: Mood = "idle"
_heard: int | None = None


def stopping() -> bool:
    """Whether somebody asked to stop."""
    return _heard is not None


def heed() -> None:
    """Ends the work where somebody asked to stop."""
    if _heard is not None:
        raise Interrupted(_heard)


def hear(number: int, frame: FrameType | None = None) -> None:
    """What a signal does."""
    global _heard
    first, _heard = _heard is None, number
    if _mood == "hasty" or (_mood == "patient" and not first):
        raise Interrupted(number)


def obey(number: int, frame: FrameType | None = None) -> None:
    """The same in a process of the pool, which has no patience to lose: what kills it at once is its parent."""
    global _heard
    first, _heard = _heard is None, number
    if _mood == "hasty" and first:
        raise Interrupted(number)


@contextmanager
def mood(mine: Mood) -> Iterator[None]:
    """How signals are met in here."""
    global _mood
    before, _mood = _mood, mine
    try:
        yield
    finally:
        _mood = before


@contextmanager
def listening() -> Iterator[None]:
    """Signals are heard in here; in a thread that gets none, nothing changes."""
    global _heard
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, hear) for number in SIGNALS}
    _heard = None
    try:
        with mood("hasty"):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard = None
