"""Run directories as `run` leaves them, their evaluations made by what judges real ones; and a real browser."""

import json
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesaic.evaluate.routers import router_report
from moesaic.evaluate.statistics import Scores, mean_nats
from moesaic.evaluate.verdict import judge
from moesaic.files import write_sealed

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RECIPE = "name: birds\nseed: 3\ntrain:\n  lr: [0.01, 0.03]\nexperts:\n  owl:\n    rank: 4\n  wren:\n    rank: 8\n"


def evaluation_of(names: tuple[str, str] = ("owl", "wren"), better: float = 0.0) -> dict[str, Any]:
    """What `evaluate` would write of two experts; `better` is taken from the nats of all of them."""
    random = np.random.default_rng(7)
    domains = [*([names[0]] * 12), *([names[1]] * 12), *(["unseen"] * 6)]
    groups = [str(row) for row in range(len(domains))]
    tokens = random.integers(5, 20, len(domains)).astype(float)
    own = {name: np.array([domain == name for domain in domains]) for name in names}

    def scored(nats: np.ndarray) -> Scores:
        return Scores((nats - better + random.normal(0, 0.05, len(domains))) * tokens, tokens, domains, groups)

    level = np.full(len(domains), 3.0)
    scores = {"base": scored(level), "uniform": scored(level - 0.1), "average": scored(level - 0.12)}
    scores |= {f"expert:{name}": scored(level + 0.2 - 0.7 * own[name]) for name in names}
    scores |= {"joint": scored(level - 0.3), "joint_wide": scored(level - 0.35), "router": scored(level - 0.48)}
    costs = {name: {"parameters": 1_234_567 + 1000 * n, "bytes": 4_938_268} for n, name in enumerate(scores)}
    labels, chosen = [0] * 12 + [1] * 12, [0] * 9 + [1] * 14 + [0]
    confidence = random.uniform(0.55, 1, len(labels))
    shares = np.array([[c, 1 - c] if who == 0 else [1 - c, c] for c, who in zip(confidence, chosen, strict=True)])
    report = router_report(labels, chosen, shares, list(names), random.integers(3, 90, len(labels)).tolist())
    outside = {"rows": 40, "abstained": 0.925, "auroc": 0.9625}
    kinds = {"noise": outside | {"rows": 10, "abstained": 1.0}, "chat": outside | {"rows": 30, "abstained": 0.9}}
    own_row = {"kind": "linear", "feature": "hidden_mean", "selection": "top_1", "examples": "all"}
    own_row |= {"nats": mean_nats(scores["router"]), "validation_macro_f1": 0.9375}
    own_row |= {"outside": outside, "worst_form": {"form": "case", "accuracy": 0.875}}
    report |= {"forms": {form: {"rows": 24, "accuracy": 0.875, "by_form_alone": 0.25} for form in ("message", "case")}}
    report["outside"] = outside | {"inside": {"rows": 24, "abstained": 1 / 24}, "kinds": kinds}
    brief = {key: report[key] for key in ("accuracy", "macro_f1", "utilisation", "utilisation_evenness")}
    pieces = [["How", None, None, None], [" many", names[0], 1.5, 2.75], [" owls", "base", 0.5, 0.5]]
    return {
        "stage_key": "0" * 64,
        "name": "birds",
        "seed": 3,
        "domains": list(names),
        "rows_sha256": {name: f"{number}" * 64 for number, name in enumerate((*names, "unseen"))},
        **judge(scores, costs=costs, seed=3, resamples=200),
        "router": own_row | report | {"tried": [own_row | brief, own_row | brief | {"kind": "keyword", "nats": 3.1}]},
        "parameters": {"total": 2_000_001, "base": 1_000_000, "experts": 999_000, "router": 1001, "active": 1_234_567},
        "samples": [
            {
                "domain": names[0],
                "prompt": "How many owls",
                "text": " Two.",
                "finish": "stop",
                "chosen": names[0],
                "weights": {names[0]: 0.75, names[1]: 0.25},
                "reference": "\nThree, I say.",
                "tokens": [*pieces, ["\nThree", names[1], 1.0, 1.3], [", I say.", names[0], 0.2, 0.21]],
            }
        ],
        "written": {
            names[0]: {
                contender: {"rows": 40.0, "exact_match": 0.025 * place, "rouge_l": 0.25 + place / 16}
                for place, contender in enumerate(("base", *(f"expert:{name}" for name in names), "router"))
            }
        },
        "truncated": {names[0]: 2, names[1]: 0, "unseen": 6},
        "timing": {
            "seconds": 4.25,
            "stages": {"data": 0.5, "base": 61.25, "experts": 100.0, "router": 3.5, "mixture": 0.1, "evaluation": 4.25},
            "tokens_per_second": {"base": 1028.4, "router": 565.3, "joint": 580.9, "joint_wide": 554.7},
        },
    }


def data_of(names: tuple[str, str] = ("owl", "wren")) -> dict[str, Any]:
    rows = {f"{name}/{split}": 1000 + len(split) for name in names for split in ("train", "validation", "test")}
    pair = f"{names[0]}/train ~ {names[1]}/test"
    dropped = {names[0]: {"train: repeated": 7}}
    files = {"texts/owls.jsonl": {"read": 2014, "used": 2003, "skipped": {"not JSON": 4}}}
    return {"files": files, "rows": rows, "dropped": dropped, "duplicates": {pair: {"exact": 2, "near": 5}}}


def log_of(steps: int, every: int, measure: str, start: float) -> str:
    rows = [{"step": step, "loss": start / step, "lr": 0.01, "norm": 1.0, "rate": 9.0} for step in range(1, steps + 1)]
    for row in rows[every - 1 :: every]:
        row[measure] = start / row["step"] + 0.1 if measure == "validation" else 1 - 1 / row["step"]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return evaluation_of()


@pytest.fixture(scope="session")
def forge() -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """An evaluation and a data.json of experts with these names."""
    return lambda names, better=0.0: (evaluation_of(names, better), data_of(names))


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes a run directory into `folder`; `evaluation` and `data` in place of the usual ones."""

    def make(folder: Path, evaluation: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True)
        write_sealed(folder / "evaluation.json", evaluation or evaluation_of())
        (folder / "data.json").write_text(json.dumps(data or data_of()), encoding="utf-8")
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        for place, rates in {"base": ["0.003"], "experts/owl": ["0.01", "0.03"], "controls/joint": ["0.01"]}.items():
            for rate in rates:
                write(folder / "metrics" / place / f"lr-{rate}.jsonl", log_of(60, 20, "validation", 4 + float(rate)))
        for place in ("router", "controls/routers/linear-hidden_mean-all"):
            write(folder / "metrics" / place / "lr-0.001.jsonl", log_of(30, 10, "score", 1.5))
        return folder

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return make


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Pages as a browser has them after it ran what it would run, all at once; skips where there is no browser."""
    if BROWSER is None:
        pytest.skip("needs a browser, neither chromium nor google-chrome is installed: apt-get install chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]

    def dump(*pages: Path, width: int = 1280) -> list[str]:
        started = [
            subprocess.Popen(
                [
                    BROWSER,
                    *flags,
                    f"--window-size={width},900",
                    f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
                    page.as_uri(),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            for page in pages
        ]
        return [process.communicate(timeout=120)[0] for process in started]

    return dump


@pytest.fixture(scope="session")
def seen() -> type["Seen"]:
    return Seen


class Seen(HTMLParser):
    """A document taken apart: elements with attributes, the title, the text of each figure and of the page."""

    def __init__(self, document: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[dict[str, str], str]] = []
        self.title, self.text, self.within = "", "", ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self.within = tag
        if "data-value" in found:
            self.figures.append(({key: value or "" for key, value in found.items()}, ""))
            self.within = "a figure"

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "a figure":
            self.figures[-1] = (self.figures[-1][0], self.figures[-1][1] + data)
        if self.within == "title":
            self.title += data
        if self.within != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
