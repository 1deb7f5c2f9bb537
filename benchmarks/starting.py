"""How long a command takes that needs no model: a new process each time, beside Python itself and typer.

What is imported for it is tested; how long that takes depends on the machine.
"""

import subprocess
import sys
from functools import partial

from benchmarks.timing import alternate

ROUNDS = 9
SCRIPTS = {
    "python": "pass",
    "import typer": "import typer",
    "moesaic --help": "import sys; sys.argv[1:] = ['--help']; from moesaic.cli.main import main; main()",
    "moesaic run --help": "import sys; sys.argv[1:] = ['run', '--help']; from moesaic.cli.main import main; main()",
    "import torch": "import torch",
}


def report(quick: bool) -> str:
    times = alternate({name: partial(start, script) for name, script in SCRIPTS.items()}, 1 if quick else ROUNDS, 1)
    lines = ["Seconds from start to end of a new process, medians of rounds in turns.", "", "| | s |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {seconds:.2f} |" for name, seconds in times.items())]) + "\n"


def start(script: str) -> None:
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
