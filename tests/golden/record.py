"""Records what the golden recipes give now, and prints what changed since the last record.

    python tests/golden/record.py

writes NAME.json beside each NAME.yaml, and probe.json. Every recipe runs twice: under the pins, which gives the record,
and under other arithmetic, which shows the stage keys that depend on rounding and how far apart the figures come.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from comparing import Record, close_differences, exact_differences, record_of
from pinned import HERE, NAMES, OTHER, failure, run_all


def read(path: Path) -> Record:
    """Read a record; an empty one where none is committed yet."""
    nothing = {"stage_keys": {}, "weights": {}, "evaluation": {}, "contenders": []}
    return json.loads(path.read_text()) if path.exists() else nothing


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def record(name: str, pinned: Path, other: Path) -> list[str]:
    """Write the record of one recipe and return what changed, then what two arithmetics do not leave alike."""
    for folder in (pinned, other):
        if trace := failure(folder, name):
            return [f"not recorded: the run failed\n{trace}"]
    found, rounded = record_of(pinned / name / "run"), record_of(other / name / "run")
    path = HERE / f"{name}.json"
    changed = exact_differences(read(path), found)
    found["rounded_keys"] = sorted(
        part for part, key in found["stage_keys"].items() if rounded["stage_keys"].get(part) != key
    )
    write(path, found)
    return changed + [
        f"beyond the tolerance: {line}" for line in close_differences(found, rounded, found["rounded_keys"])
    ]


def main() -> None:
    with TemporaryDirectory() as pinned, TemporaryDirectory() as other:
        probe = run_all(Path(pinned))
        run_all(Path(other), OTHER)
        write(HERE / "probe.json", probe)
        for name in NAMES:
            lines = record(name, Path(pinned), Path(other))
            print(f"{name}: {len(lines)} changes", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
