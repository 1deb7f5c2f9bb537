"""Ctrl-C, SIGTERM and SIGHUP: a training ends after its step, all else at once, and all at a second signal.

Knows nothing about what is saved. Signals reach one thread of a process: this module holds their state for all threads.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from moesaic.errors import Interrupted

HANGUP: tuple[signal.Signals, ...] = () if sys.platform == "win32" else (signal.SIGHUP,)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *HANGUP)

Mood = Literal["idle", "hasty", "patient"]
"""The state that a signal meets: no work, work that may end anywhere, or a training that asks between its steps."""

_mood: Mood = "idle"
_heard: int | None = None


def stopping() -> bool:
    """Tell whether a signal asked to stop."""
    return _heard is not None


def heed() -> None:
    """End the work where a signal asked to stop."""
    if _heard is not None:
        raise Interrupted(_heard)


def hear(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal."""
    global _heard
    first, _heard = _heard is None, number
    if _mood == "hasty" or (_mood == "patient" and not first):
        raise Interrupted(number)


def obey(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal in a process that others end: of the pool, or of torchrun. A second signal changes nothing."""
    global _heard
    first, _heard = _heard is None, number
    if _mood == "hasty" and first:
        raise Interrupted(number)


@contextmanager
def mood(mine: Mood) -> Iterator[None]:
    """Set the reaction to signals."""
    global _mood
    before, _mood = _mood, mine
    try:
        yield
    finally:
        _mood = before


@contextmanager
def listening(once: bool = False) -> Iterator[None]:
    """Handle signals; in a thread that receives none, nothing changes. A command of `nohup` outlives its terminal.

    `once`: only the first signal counts.
    """
    global _heard
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    silenced = [number for number in HANGUP if signal.getsignal(number) is signal.SIG_IGN]
    before = {number: signal.signal(number, obey if once else hear) for number in SIGNALS if number not in silenced}
    _heard = None
    try:
        with mood("hasty"):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard = None
