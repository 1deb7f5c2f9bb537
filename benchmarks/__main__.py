"""`python -m benchmarks [PAGE ...]`: make the pages named, or all, and write them to benchmarks/results/PAGE.md.

A page of runs makes the runs that are missing in the folder of runs and takes those that are finished there.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.page import RESULTS, Options
from benchmarks.pages import PAGES, STEPS


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Make pages of benchmarks/results.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"default: all of {', '.join(PAGES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="folder of runs (default: runs/bench)")
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path(__file__).parents[2] / "shared",
        help="folder with models/ and data/ of other people (default: ../shared beside the repository)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of pages (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that a page can be made")
    parser.add_argument(
        "--next",
        action="append",
        default=[],
        choices=STEPS,
        help="further step of five-domains-smollm2 to run (default: none; finished ones are on the page); repeatable",
    )
    told = parser.parse_args(given)
    if unknown := [name for name in told.pages if name not in PAGES]:
        parser.error(f"no such page: {', '.join(unknown)}; expected one of {', '.join(PAGES)}")
    options = Options(told.runs.absolute(), told.shared.absolute(), told.quick, tuple(told.next))
    wanted = told.pages or list(PAGES)
    without = [name for name in wanted if PAGES[name].texts and not (options.shared / "data").is_dir()]
    if told.pages and without:
        parser.error(f"{', '.join(without)}: needs models and texts, but {options.shared} has no data/; give --shared")
    for name in without:
        print(f"{name}: left out, as {options.shared} has no data/; give --shared FOLDER", file=sys.stderr)
    told.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if name not in without:
            written = PAGES[name].make(options).written(name)
            (told.out / f"{name}.md").write_text(written, encoding="utf-8")
            print(written, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
