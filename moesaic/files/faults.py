"""Faults on demand: `MOESAIC_FAULT=fsync:3:EIO` makes the third fsync of a process fail. For rehearsing disasters.

Knows nothing about who recovers, or how. Where the variable is unset, a point costs one comparison.
"""

import errno
import os
import signal
from dataclasses import dataclass

from moesaic.errors import RecipeError

VARIABLE = "MOESAIC_FAULT"
DISK = ("mkdir", "write", "fsync", "rename", "link", "symlink", "chmod", "truncate", "unlink")
POINTS = (*DISK, "disk", "step", "loss")
"""Where a fault can strike: a call that changes the disk, any of them, the start of a training step, its loss."""

SIGNALS = {"kill": "SIGKILL", "int": "SIGINT", "term": "SIGTERM"}
VALUES = ("nan", "inf")
KINDS = (*SIGNALS, "oom", *VALUES)
"""What can happen: a signal to this process, no memory, a number to compute with; or an errno by its name."""


@dataclass
class Fault:
    """At which visit of a point, counted from 1, what happens."""

    point: str
    visit: int
    kind: str
    visits: int = 0


def parse(text: str) -> Fault:
    """`point:visit:kind`, as the variable has it."""
    point, visit, kind = [*text.split(":"), "", "", ""][:3]
    if (
        point not in POINTS
        or not visit.isascii()
        or not visit.isdigit()
        or (kind not in KINDS and kind not in dir(errno))
    ):
        expected = f"POINT:VISIT:KIND, of {', '.join(POINTS)}; 1, 2, ...; {', '.join(KINDS)} or an errno such as ENOSPC"
        raise RecipeError("not a fault", field=VARIABLE, expected=expected, got=text)
    return Fault(point, int(visit), kind)


armed = parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def reach(point: str) -> str | None:
    """Be at a point: nothing happens, unless a fault is due. Returns the fault's kind where it is a value."""
    if armed is None:
        return None
    return strike(armed, point)


def strike(fault: Fault, point: str) -> str | None:
    """What `reach` does where a fault is armed."""
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
