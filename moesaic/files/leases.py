"""A file that keeps its length for a moment, whoever would cut it off: the read leases of Linux (fcntl(2), F_SETLEASE).

Knows nothing about what is read meanwhile.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform == "linux":
    import fcntl


@contextmanager
def leased(fd: int) -> Iterator[bool]:
    """Whether a file that is open for reading only keeps its length inside the block: who opens it to write must wait.

    Linux promises that where the file is ours, lies on a disk of this machine and nobody has it open for writing. The
    block must be short: whoever waits is let in after a while all the same (45 s: /proc/sys/fs/lease-break-time).
    """
    if held := _taken(fd):
        try:
            yield held
        finally:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    else:
        yield held


def _taken(fd: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        # Who holds a lease is told by a signal that somebody waits: by one that is ignored, unlike SIGIO, which kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True
