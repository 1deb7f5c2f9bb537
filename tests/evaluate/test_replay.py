"""Does a router decide in a replay as in the mixture, is it compared by name and by hand, and is its base found?"""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.compose.mixture import save_mixture
from moesaic.errors import CompatibilityError, DataError, WeightsError
from moesaic.evaluate.replay import compare, replay
from moesaic.generate.trace import Decision, decision_of, read_trace, row_of
from moesaic.interop.decoders import write_decoder
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter, MLPRouter, TrainedRouter
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Template, Tokenizer

NAMES = ("sums", "birds")
WORDS = ["one", "two", "three", "wren", "owl", "finch", "hawk", "and", "a", "very", "long", "tale", "of", "swans"]
PROMPTS = [" ".join(WORDS[start : start + size]) for size in (1, 2, 5, 9) for start in range(0, 14 - size)]


def linear(num_features: int, experts: int = 2) -> MLPRouter:
    """A router sure enough of itself to part the prompts above."""
    torch.manual_seed(0)
    router = MLPRouter(num_features, experts, []).eval()
    router.outer.bias.data.zero_()
    router.temperature.fill_(0.2)
    return router


def save(
    folder: Path, router: TrainedRouter, reads: tuple[str, str], base: str, names=NAMES, select: Selection | None = None
) -> None:
    """Write a router of a kind that reads a feature."""
    folder.mkdir(parents=True)
    save_router(folder, StoredRouter(router, reads[0], names, reads[1], select or Selection(), {}), base, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "small")


def build(root: Path, template: Template | None = None) -> Path:
    """What a run leaves, as far as a replay asks: a base, a mixture, its router, and others to compare it with."""
    for name in ("base", "sums", "birds", "mixture"):
        (root / name).mkdir(parents=True)
    tokenizer = Tokenizer.train(PROMPTS, 280)
    tokenizer.template = template
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    save_base(root / "base", decoder, tokenizer, {})
    fingerprint = load_base(root / "base").fingerprint
    for seed, name in enumerate(NAMES):
        save_expert(root / name, toy_expert(decoder, seed, layers=range(1, 2)), fingerprint, {"name": name})
    save(root / "router", linear(32), ("linear", "hidden@1"), fingerprint, select=Selection(kind="soft"))
    rivals = root / "controls" / "routers"
    save(rivals / "mean", linear(32), ("linear", "hidden_mean"), fingerprint)
    save(rivals / "words", KeywordRouter([["one"], ["owl"]]), ("keyword", "text"), fingerprint)
    save(rivals / "other", linear(32, 3), ("linear", "hidden_last"), fingerprint, ("birds", "poems", "prose"))
    save(root / "elsewhere", linear(32), ("linear", "hidden_mean"), "0" * 64)
    save_mixture(root / "mixture", root / "base", {name: root / name for name in NAMES}, root / "router", {})
    return root


@pytest.fixture(scope="module")
def trace(run: Path) -> Path:
    path = run / "traffic.jsonl"
    with moesaic.load(run, trace=path, trace_texts=True) as mixture:
        mixture.generate(PROMPTS[:20], max_new_tokens=1)
        for prompt in PROMPTS[20:]:
            mixture.generate(prompt, max_new_tokens=1)
    return path


def rewritten(trace: Path, path: Path, *changes: dict) -> Path:
    """A copy whose first rows are changed, one by each change."""
    rows = [row_of(one) for one in read_trace(trace)]
    for row, change in zip(rows, changes, strict=False):
        row |= change
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n" for row in rows))
    return path


# --- the same decisions as in a mixture -------------------------------------------------------------------------------


def test_the_router_that_made_a_trace_agrees_with_it_wholly(run, trace):
    found = replay(trace, run)
    assert (found["agreement"], found["differing"], found["left_out"]) == (1, [], {})
    assert found["rows"] == found["compared"] == len(PROMPTS)
    assert found["recorded"]["utilisation"] == found["replayed"]["utilisation"]
    assert min(found["recorded"]["utilisation"].values()) > 0.1, "both experts are asked"
    assert found["replayed"]["confidence"] == pytest.approx(found["recorded"]["confidence"], rel=1e-6)


def test_its_probabilities_are_those_of_the_trace(run, trace, monkeypatch):
    seen = {}
    real = compare
    monkeypatch.setattr(
        "moesaic.evaluate.replay.compare",
        lambda rows, choices, *rest: seen.update(both=(rows, choices)) or real(rows, choices, *rest),
    )
    replay(trace, run / "mixture")
    rows, choices = seen["both"]
    for one, (chosen, confidence) in zip(rows.values(), choices, strict=True):
        assert (chosen, confidence) == (one.chosen, pytest.approx(one.confidence, rel=1e-6))
    assert len({round(confidence, 4) for _, confidence in choices}) > 20, "the prompts are told apart"


@pytest.mark.parametrize("rival", ["mean", "words"])
def test_another_router_decides_as_in_a_mixture_of_its_own(run, trace, tmp_path, rival):
    """The reference is a mixture with that router in it."""
    (tmp_path / "mixture").mkdir()
    router = run / "controls" / "routers" / rival
    save_mixture(tmp_path / "mixture", run / "base", {name: run / name for name in NAMES}, router, {})
    expected = [report.chosen for report in moesaic.load(tmp_path).route(PROMPTS)]
    found = replay(trace, router)
    recorded = [one.chosen for one in read_trace(trace)]
    assert [one["replayed"] for one in found["differing"]] == [
        new for old, new in zip(recorded, expected, strict=True) if old != new
    ]
    assert [one["line"] for one in found["differing"]] == [
        line for line, pair in enumerate(zip(recorded, expected, strict=True), 1) if pair[0] != pair[1]
    ]
    assert 0 < found["agreement"] < 1
    assert ("base" in found["replayed"]["utilisation"]) == (rival == "words"), "words abstain where they know none"


def test_conversations_are_replayed_as_they_were_written_by_the_template(tmp_path):
    made = build(tmp_path / "small", Template("{% for m in messages %}{{ m.role }} wren {{ m.content }}\n{% endfor %}"))
    talks = [[{"role": "user", "content": text}] for text in PROMPTS]
    with moesaic.load(made, trace=tmp_path / "talks.jsonl", trace_texts=True) as mixture:
        mixture.generate([*talks, *PROMPTS], max_new_tokens=1)
    found = replay(tmp_path / "talks.jsonl", made)
    assert (found["agreement"], found["compared"], found["left_out"]) == (1, 2 * len(PROMPTS), {})
    assert found["replayed"]["confidence"] == pytest.approx(found["recorded"]["confidence"], rel=1e-6)
    told = list(read_trace(tmp_path / "talks.jsonl"))
    pairs = zip(told[: len(PROMPTS)], told[len(PROMPTS) :], strict=True)
    assert all(talk.chosen == text.chosen for talk, text in pairs), "a text is a user message"
    other = replay(tmp_path / "talks.jsonl", made / "controls" / "routers" / "mean")
    assert {one["prompt"] for one in other["differing"]} <= {*PROMPTS}, "as people read them"


def test_texts_that_were_read_as_they_are_are_replayed_so(tmp_path):
    made = build(tmp_path / "small", Template("{% for m in messages %}{{ m.role }} wren {{ m.content }}\n{% endfor %}"))
    with moesaic.load(made, trace=tmp_path / "raw.jsonl", trace_texts=True) as mixture:
        mixture.generate(PROMPTS, max_new_tokens=1, raw=True)
        mixture.generate(PROMPTS, max_new_tokens=1)
    told = list(read_trace(tmp_path / "raw.jsonl"))
    assert [one.raw for one in told] == [True] * len(PROMPTS) + [False] * len(PROMPTS)
    found = replay(tmp_path / "raw.jsonl", made)
    assert found["agreement"] == 1
    assert found["replayed"]["confidence"] == pytest.approx(found["recorded"]["confidence"], rel=1e-6)


# --- what cannot be replayed ------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_replayed_are_counted_by_reason(run, trace, tmp_path):
    path = rewritten(
        trace,
        tmp_path / "some.jsonl",
        {"forced": True, "probabilities": None},
        {"prompt": ..., "prompt_sha256": "0" * 64},
        {"prompt": ..., "prompt_sha256": "1" * 64, "forced": True, "probabilities": None},
        {"prompt": "one two " * 500},
    )
    found = replay(path, run)
    assert found["left_out"] == {"forced": 2, "without text": 1, "longer than the context": 1}
    assert (found["rows"], found["compared"]) == (len(PROMPTS), len(PROMPTS) - 4)
    assert found["agreement"] == 1


def test_a_prompt_as_long_as_the_context_is_replayed(run, trace, tmp_path):
    tokenizer = load_base(run / "base").tokenizer
    text = "a"
    while len(tokenizer.encode(text)) < 64:
        text += "a"
    path = rewritten(trace, tmp_path / "some.jsonl", {"prompt": text}, {"prompt": text + "aaaa"})
    assert replay(path, run)["left_out"] == {"longer than the context": 1}


def test_a_trace_without_texts_cannot_be_replayed_and_says_what_to_do(run, tmp_path):
    path = tmp_path / "hashes.jsonl"
    with moesaic.load(run, trace=path) as mixture:
        mixture.generate(PROMPTS[:3], max_new_tokens=1)
    with pytest.raises(DataError, match="nothing to replay: 3 without text; record texts too: .*--trace-texts"):
        replay(path, run)
    path.write_text("")
    with pytest.raises(DataError, match="nothing to replay: no rows"):
        replay(path, run)


# --- where router and base are found ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("router", "base"),
    [
        ("", "mixture/base"),
        ("mixture", "mixture/base"),
        ("router", "base"),
        ("mixture/router", "mixture/base"),
        ("controls/routers/mean", "base"),
    ],
)
def test_the_base_is_the_one_that_stands_with_the_router(run, trace, router, base):
    assert Path(replay(trace, run / router)["base"]) == run / base


def test_of_several_bases_the_one_with_the_fingerprint_is_taken(run, trace, tmp_path):
    shutil.copytree(run / "base", tmp_path / "base")
    shutil.copytree(run / "router", tmp_path / "nearer" / "router")
    (tmp_path / "nearer" / "base").mkdir()
    tokenizer = load_base(run / "base").tokenizer
    save_base(tmp_path / "nearer" / "base", tiny_decoder(4, torch.float32, vocab_size=280), tokenizer, {})
    assert Path(replay(trace, tmp_path / "nearer" / "router")["base"]) == tmp_path / "base"


def test_a_run_over_a_base_from_elsewhere_has_a_copy_in_its_mixture(run, trace, tmp_path):
    for part in ("mixture", "controls"):
        shutil.copytree(run / part, tmp_path / part)
    found = replay(trace, tmp_path / "controls" / "routers" / "mean")
    assert Path(found["base"]) == tmp_path / "mixture" / "base"


def test_a_base_without_a_manifest_is_known_by_its_weights(run, trace, tmp_path):
    shutil.copytree(run / "mixture", tmp_path / "mixture")
    (tmp_path / "mixture" / "base" / "manifest.json").unlink()
    found = replay(trace, tmp_path / "mixture" / "router")
    assert Path(found["base"]) == tmp_path / "mixture" / "base" and found["agreement"] == 1


def test_a_base_in_shards_is_one_too(run, trace, tmp_path):
    base = load_base(run / "base")
    shutil.copytree(run / "router", tmp_path / "router")
    (tmp_path / "base").mkdir()
    write_decoder(tmp_path / "base", base.decoder, {"eos_token_id": base.tokenizer.eos}, limit=20_000)
    base.tokenizer.save(tmp_path / "base")
    assert not (tmp_path / "base" / "model.safetensors").exists()
    assert Path(replay(trace, tmp_path / "router")["base"]) == tmp_path / "base"


def test_a_published_router_is_found_by_its_link_from_anywhere(run, trace, tmp_path):
    (tmp_path / "here").symlink_to(run / "router")
    assert Path(replay(trace, tmp_path / "here")["base"]) == run / "base"


def test_where_no_base_fits_it_is_asked_for(run, trace, tmp_path):
    with pytest.raises(
        WeightsError, match=r"elsewhere: base_fingerprint: .*expected 000000000000; got another one in .*--base"
    ):
        replay(trace, run / "elsewhere")
    shutil.copytree(run / "router", tmp_path / "router")
    assert replay(trace, tmp_path / "router", base=run / "base")["agreement"] == 1
    with pytest.raises(CompatibilityError, match="trained on another base"):
        replay(trace, run / "elsewhere", base=run / "base")


def test_what_holds_no_router_is_named(run, trace, tmp_path):
    with pytest.raises(WeightsError, match="no router here; expected a router's folder, a mixture or a run directory"):
        replay(trace, tmp_path)
    for other in ("sums", "base"):
        with pytest.raises(WeightsError, match="another kind of artefact"):
            replay(trace, run / other)


# --- what is compared -------------------------------------------------------------------------------------------------


def test_experts_that_only_one_of_the_two_knows_are_named(run, trace):
    found = replay(trace, run / "controls" / "routers" / "other")
    assert (found["only_recorded"], found["only_replayed"]) == (["sums"], ["poems", "prose"])
    assert list(found["recorded"]["utilisation"]) == ["sums", "birds"]
    assert list(found["replayed"]["utilisation"]) == ["birds", "poems", "prose"]


def one_decision(chosen: str, share: float, correction: str | None, prompt: str = "x") -> Decision:
    shares = {name: share if name == chosen else 1 - share for name in NAMES}
    weights = {name: float(name == chosen) for name in NAMES}
    row = {"time": "2026-01-31T12:00:00Z", "prompt": prompt, "tokens": 1, "probabilities": shares, "weights": weights}
    silent = {"probabilities": None} if chosen == "base" else {}
    return decision_of(
        row | {"chosen": chosen, "forced": False, "mixture": "0" * 12, "correction": correction} | silent
    )


def test_a_comparison_by_hand():
    rows = {
        3: one_decision("sums", 0.9, "birds"),
        5: one_decision("sums", 0.7, "sums"),
        6: one_decision("birds", 0.8, None),
        9: one_decision("base", 0.0, "poems"),
    }
    found = compare(rows, [("birds", 0.6), ("sums", 0.8), ("birds", 1.0), ("birds", 0.2)], NAMES)
    assert (found["compared"], found["agreement"]) == (4, 0.5)
    assert found["recorded"] == {
        "utilisation": {"sums": 0.5, "birds": 0.25, "base": 0.25},
        "confidence": pytest.approx(0.8),
    }
    assert found["replayed"] == {"utilisation": {"sums": 0.25, "birds": 0.75}, "confidence": pytest.approx(0.65)}
    assert [(one["line"], one["recorded"], one["replayed"], one["correction"]) for one in found["differing"]] == [
        (3, "sums", "birds", "birds"),
        (9, "base", "birds", "poems"),
    ]
    judged = found["corrected"]
    assert (judged["rows"], judged["unknown"]) == (3, ["poems"])
    assert (judged["recorded"], judged["replayed"], judged["difference"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert compare({6: rows[6]}, [("birds", 1.0)], NAMES)["corrected"] is None


def test_the_interval_is_paired_and_positive_where_the_new_router_is_better():
    """Of 100 rows the old router has 60 right; the new one has these too, and 10 more."""
    rows = {n: one_decision("sums", 0.9, "sums" if n < 60 else "birds", prompt=f"prompt {n}") for n in range(100)}
    choices = [("sums" if n < 90 else "birds", 0.9) for n in range(100)]
    judged = compare(rows, choices, NAMES)["corrected"]
    assert judged["difference"] == pytest.approx(0.1)
    low, high = judged["interval"]
    error = math.sqrt(0.1 * 0.9 / 100)  # of the mean of the differences: 10 of 100 are 1, the others 0
    assert (low, high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=0.015)
    assert low > 0, "unpaired it would reach below"
    worse = compare({n: replace(one, chosen="birds") for n, one in rows.items()}, [("sums", 0.9)] * 100, NAMES)
    assert worse["corrected"]["difference"] == pytest.approx(0.2)


def test_rows_of_one_prompt_are_drawn_together():
    rows = {n: one_decision("sums", 0.9, "birds" if n < 50 else "sums", f"prompt {n // 50}") for n in range(100)}
    judged = compare(rows, [("birds", 0.9)] * 50 + [("sums", 0.9)] * 50, NAMES)["corrected"]
    assert judged["prompts"] == 2
    assert judged["interval"] == [0, 1], "two prompts are two pieces of evidence, however often they were asked"
