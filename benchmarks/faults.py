"""Disasters rehearsed: the tests marked `faults`, how many cases each has, how they ended and what they print.

Knows nothing about what is broken: tests/faults does.
"""

import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.page import Options, Page, measured_here

ROOT = Path(__file__).parents[1]
QUICK = "tests/faults/test_declared_sizes.py"


def page(options: Options) -> Page:
    """Run the tests in two processes and tabulate what they report."""
    with tempfile.TemporaryDirectory() as place:
        found = Path(place) / "found.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "faults", f"--junitxml={found}"]
        command += ["-o", "junit_logging=system-out", *([QUICK] if options.quick else ["tests"])]
        subprocess.run(command, cwd=ROOT, check=True)
        return measured_here(tabulated(ElementTree.parse(found)))


def tabulated(found: ElementTree.ElementTree) -> str:
    """A row for each test function: its cases by outcome, and what they printed."""
    outcomes, printed = defaultdict[str, Counter[str]](Counter), defaultdict[str, list[str]](list)
    for case in found.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}, {case.get('name', '').partition('[')[0]}"
        worse = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        outcomes[name][worse[0] if worse else "passed"] += 1
        printed[name] += [line for line in (case.findtext("system-out") or "").splitlines() if is_told(line)]
    seconds = sum(float(suite.get("time", 0)) for suite in found.iter("testsuite"))
    lines = [f"{seconds:.0f} s in two processes.", "", "| test | cases | what they print |", "|---|---|---|"]
    for name, counts in outcomes.items():
        cases = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        lines.append(f"| {name} | {cases} | {'; '.join(printed[name])} |")
    return "\n".join(lines) + "\n"


def is_told(line: str) -> bool:
    """Whether a line was printed by a test, and is no frame that pytest draws."""
    return bool(line.strip()) and not line.startswith("-")
