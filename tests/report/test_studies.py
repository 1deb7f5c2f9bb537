"""The page of a study: every figure that of study.json, every comparison, and sparse arms with their load."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.report.studies import PAGE, STUDY, forest, loads, write_study

ARMS = {"dense": 0.0, "moe": -0.05, "planted": 0.04}


def depth_of(arm: str, depth: int) -> dict[str, Any]:
    level = 2.0 + ARMS[arm] - 0.1 * depth
    decays = [
        {
            **{"tokens": tokens, "flops": 1e6 * tokens * depth, "seconds": tokens / 9000 * depth},
            **{"per_parameter": tokens / (50_000 * depth), "bits": level + 1e5 / tokens, "perplexity": 9.5 + level},
            **{"interval": [level - 0.02, level + 0.02 + 1e5 / tokens], "perplexity_interval": [9.0, 12.25]},
        }
        for tokens in (400_000, 1_000_000)
    ]
    curve = {"tokens": [1e5, 5e5, 1e6], "low": [4.0, 3.0, 2.5], "mean": [4.1, 3.1, 2.6], "high": [4.2, 3.2, 2.7]}
    load = [{"tokens": [1e5, 1e6], "worst": [2.5, 1.1]}, {"tokens": [1e5, 1e6], "worst": [1.5, 1.2]}]
    return {
        **{"depth": depth, "parameters": 90_000 * depth, "active": 50_000 * depth, "inner": 47_232 * depth},
        **{"flops_per_token": 300_000 * depth, "rate": 0.002, "speed": 9000 / depth},
        **{"decays": decays, "curve": curve, "load": load if arm == "moe" else []},
    }


def study_of(**changes: Any) -> dict[str, Any]:
    comparisons = [
        {
            **{"arm": arm, "matching": matching, "outcome": outcome, "why": "", "depths": [2, 3]},
            **{"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "smallest": 0.0125},
        }
        for matching in ("tokens", "seconds")
        for arm, outcome, mean in (("moe", "better", -0.05), ("planted", "worse", 0.04))
    ]
    young = {"arm": "young", "matching": "seconds", "outcome": "no verdict", "why": "under-trained", "depths": []}
    sentence = "At equal tokens, moe is better than dense; planted is worse than dense."
    return {
        **{"name": "birds", "seeds": [0, 1, 2], "sweep_seed": 3, "against": "dense", "level": 0.95, "depths": [2, 3]},
        **{"tokens": 1_000_000, "epochs": 1.25, "machine": {"processor": "Abacus", "instructions": None}},
        "corpus": {
            **{"tokens": 812_345, "texts": 4321},
            **{"judged": {"texts": 210, "bytes": 98_765}, "choosing": {"texts": 211, "bytes": 98_764}},
        },
        "matchings": {
            "tokens": {"title": "tokens", "words": "The same depth."},
            "seconds": {"title": "seconds", "words": "The same time."},
        },
        "arms": {
            arm: {"what": f"what {arm} is", "redraw": 0, "depths": [depth_of(arm, depth) for depth in (2, 3)]}
            for arm in ARMS
        },
        "sweeps": [
            {
                **{"arm": arm, "depth": 2, "best": 0.002, "interior": True},
                "tried": [[0.001, 3.0], [0.002, 2.9], [0.004, None]],
            }
            for arm in ARMS
        ],
        "comparisons": [*comparisons, young],
        "verdict": {"sentence": sentence, "reasons": ["At equal seconds, there is no verdict on young."]},
        **changes,
    }


def write(folder: Path, study: dict[str, Any]) -> str:
    (folder / STUDY).write_text(json.dumps(study))
    assert write_study(folder) == folder / PAGE
    return (folder / PAGE).read_text()


def test_the_page_shows_the_figures_of_the_study(seen, tmp_path: Path) -> None:
    study = study_of()
    page = seen(write(tmp_path, study))
    found = {one["data-key"]: float(one["data-value"]) for one, _ in page.figures}
    assert found["comparisons.0.mean"] == -0.05 and found["comparisons.3.smallest"] == 0.0125
    assert found["arms.moe.depths.1.decays.0.bits"] == study["arms"]["moe"]["depths"][1]["decays"][0]["bits"]
    assert found["corpus.judged.bytes"] == 98_765
    for text in (study["verdict"]["sentence"], "there is no verdict on young", "no verdict: under-trained", "interior"):
        assert text in page.text
    assert "Expert load" in page.text and "moe, 3 layers" in page.text and "planted, 3 layers" not in page.text


def test_a_study_of_dense_arms_says_that_there_is_no_load(seen, tmp_path: Path) -> None:
    study = study_of()
    del study["arms"]["moe"]
    study["comparisons"] = [one for one in study["comparisons"] if one["arm"] != "moe"]
    study["sweeps"] = [one for one in study["sweeps"] if one["arm"] != "moe"]
    assert "No arm of this study has experts." in seen(write(tmp_path, study)).text
    assert [*loads(study)] == []


def test_differences_lie_on_one_axis_with_zero_in_the_middle() -> None:
    axis = forest(study_of())
    assert axis["far"] == pytest.approx(0.06 * 1.05)
    moe, planted, *_, young = axis["rows"]
    assert moe.low < moe.mean < moe.high < 50 < planted.low and young is None


def test_hostile_names_stay_text(seen, tmp_path: Path) -> None:
    study = study_of(name="<script>alert(1)</script>")
    assert "<script>" not in write(tmp_path, study)
