"""`python -m benchmarks.mixtures NAME RUN...`: the evaluations of several seeds of one recipe -> results/NAME.md.

Reads evaluation.json of each run directory; makes nothing itself.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import heading

SHOWN = ("base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "router", "oracle", "oracle_best")


def report(evaluations: list[dict[str, Any]]) -> str:
    seeds = [str(evaluation["seed"]) for evaluation in evaluations]
    lines = [
        "Nats per token on the test rows of all domains, by seed; in brackets the contender minus the router with its",
        "paired 95% interval (bootstrap over source rows, stratified by domain).",
        "",
        f"| contender | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        "|---" * (len(seeds) + 1) + "|",
    ]
    experts = [name for name in evaluations[0]["controls"] if name.startswith("expert:")]
    for name in ("base", *experts, *SHOWN[1:]):
        lines.append(f"| {name} | {' | '.join(cell(evaluation['controls'][name]) for evaluation in evaluations)} |")
    rows = {
        "gap closed": [bracketed(evaluation["gap_closed"]) for evaluation in evaluations],
        "regret": [bracketed(evaluation["regret"]) for evaluation in evaluations],
        "router accuracy": [f"{evaluation['router']['accuracy']:.3f}" for evaluation in evaluations],
        "router macro-F1": [f"{evaluation['router']['macro_f1']:.3f}" for evaluation in evaluations],
        "verdict": [evaluation["verdict"]["use"] for evaluation in evaluations],
        "unseen: base / router": [unseen(evaluation) for evaluation in evaluations],
        "seconds": [f"{sum(evaluation['timing']['stages'].values()):.0f}" for evaluation in evaluations],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def cell(control: dict[str, Any]) -> str:
    versus = control["versus_router"]
    if versus is None:
        return f"**{control['nats']['all']:.3f}**"
    low, high = versus["interval"]
    return f"{control['nats']['all']:.3f} ({versus['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


def bracketed(estimate: dict[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def unseen(evaluation: dict[str, Any]) -> str:
    nats = {name: evaluation["controls"][name]["nats"].get("unseen") for name in ("base", "router")}
    return "none given" if nats["base"] is None else f"{nats['base']:.3f} / {nats['router']:.3f}"


if __name__ == "__main__":
    name, *runs = sys.argv[1:]
    found = [json.loads((Path(run) / "evaluation.json").read_text()) for run in runs]
    path = Path(__file__).parent / "results" / f"{name}.md"
    top = heading(f"mixtures {name}").replace("-m benchmarks mixtures", "-m benchmarks.mixtures")
    command = f"moesaic run recipes/{name}.yaml name={name}-SEED seed=SEED"
    runs_made = f"Each run: `{command}` (and `data_root=FOLDER` where it reads files)\n\n"
    path.write_text(top + runs_made + report(found))
    print(path.read_text())
