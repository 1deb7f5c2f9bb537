"""Faults on demand, for rehearsals: `MOESAIC_FAULT=fsync:3:EIO` makes the third fsync of a process fail.

Knows nothing about recovery. Where the variable is unset, a point costs one comparison.
"""

import errno
import os
import signal
from dataclasses import dataclass

from moesaic.errors import RecipeError

VARIABLE = "MOESAIC_FAULT"
DISK = ("mkdir", "write", "fsync", "rename", "link", "symlink", "chmod", "truncate", "unlink")
POINTS = (*DISK, "disk", "step", "loss")
"""Points where a fault can strike: a kind of call that changes the disk, any of them, a training step, its loss."""

SIGNALS = {"kill": "SIGKILL", "int": "SIGINT", "term": "SIGTERM"}
VALUES = ("nan", "inf")
KINDS = (*SIGNALS, "oom", *VALUES)
"""Kinds of faults: a signal to this process, no memory, a bad number; also any errno by its name."""


@dataclass
class Fault:
    """A fault of a `kind` at the `visit`-th visit of a point, counted from 1."""

    point: str
    visit: int
    kind: str
    visits: int = 0


def parse(text: str) -> Fault:
    """The fault that `point:visit:kind` describes."""
    point, visit, kind = [*text.split(":"), "", "", ""][:3]
    if not (point in POINTS and visit.isascii() and visit.isdigit() and kind in (*KINDS, *dir(errno))):
        expected = f"POINT:VISIT:KIND, of {', '.join(POINTS)}; 1, 2, ...; {', '.join(KINDS)} or an errno such as ENOSPC"
        raise RecipeError("not a fault", field=VARIABLE, expected=expected, got=text)
    return Fault(point, int(visit), kind)


armed = parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def reach(point: str) -> str | None:
    """Visit a point, where a fault may be due. Returns the fault's kind where that is a value."""
    return None if armed is None else strike(armed, point)


def strike(fault: Fault, point: str) -> str | None:
    """Count a visit of a point, and cause the fault where it is due."""
    if point != fault.point and not (fault.point == "disk" and point in DISK):
        return None
    fault.visits += 1
    if fault.visits != fault.visit:
        return None
    if fault.kind in SIGNALS:
        os.kill(os.getpid(), getattr(signal, SIGNALS[fault.kind]))
    elif fault.kind == "oom":
        raise MemoryError(f"{VARIABLE}={point}:{fault.visit}:oom")
    elif fault.kind not in VALUES:
        number = getattr(errno, fault.kind)
        raise OSError(number, os.strerror(number))
    return fault.kind
