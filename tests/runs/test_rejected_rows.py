"""Bad rows of a run: listed once, for all files; counted in data.json; and no part of what results depend on."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import bench_of, opened

from moesaic import stages
from moesaic.artefacts.base import save_base
from moesaic.errors import DataError
from moesaic.files import read_jsonl
from moesaic.recipe import Recipe, parse
from moesaic.runs.progress import Silent
from moesaic.runs.rejected_rows import take_stock
from moesaic.stages import verbs
from moesaic.stages.experts import ExpertPart
from moesaic.tasks import Run, open_run
from moesaic.tasks.models import Models
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Template, Tokenizer

RECIPE = {
    "name": "small",
    "base": {"size": "nano", "vocab_size": 300, "pretrain": {"steps": 1, "data": "more.jsonl"}},
    "experts": {
        "adds": {"kind": "lora", "data": {"train": "adds.jsonl", "test": "tests.jsonl"}},
        "far": {"kind": "lora", "path": "someone/adapter", "examples": ["asks.jsonl"]},
    },
    "router": {"kind": "keyword"},
    "evaluate": {"unseen": "other.jsonl"},
}
FILES = ("adds.jsonl", "asks.jsonl", "more.jsonl", "other.jsonl", "tests.jsonl")
SKIP = ("bad_rows=skip", "max_bad=9")


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Every file with one bad row: the first has it in line 2, the next in line 3, ..."""
    for number, name in enumerate(FILES, 2):
        good = [json.dumps({"prompt": f"{name} {n}", "response": "say"}) for n in range(30)]
        (tmp_path / name).write_text("\n".join([*good[: number - 1], '{"text": null}', *good[number - 1 :]]) + "\n")
    (tmp_path / "someone" / "adapter").mkdir(parents=True)  # which is looked for first, and opened last
    return tmp_path


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    return parse(RECIPE, overrides, folder / "recipe.yaml")


def take_stock_of(run: Run, told: Notes) -> None:
    take_stock(run.dir, run.materials.rejects, lambda: run.materials.files, told)


def test_every_file_that_the_recipe_names_is_listed_and_counted_before_anything_is_made(texts):
    root, told = texts / "runs", Notes()
    root.mkdir()
    run = opened(recipe_in(texts, *SKIP), root)
    take_stock_of(run, told)
    listed = [row for _, row in read_jsonl(root / "rejects.jsonl")]
    assert [(row["path"], row["line"]) for row in listed] == [(name, line) for line, name in enumerate(FILES, 2)]
    assert {(row["field"], row["reason"], row["text"]) for row in listed} == {
        ("text", "wrong type; expected text; got null", '{"text": null}')
    }
    assert told.notes == [f"1 of 31 rows of {texts / name} skipped: see rejects.jsonl" for name in FILES]

    verbs.report_data(bench_of(run, told))
    facts = json.loads((root / "data.json").read_text())
    assert {Path(name).name: counts for name, counts in facts["files"].items()} == {
        name: {"read": 31, "used": 30, "skipped": {"wrong type": 1}} for name in FILES
    }
    assert sum(facts["rows"].values()) == 90, "with what is for the base and the router only left out"


def test_what_is_skipped_is_as_if_it_had_never_been_there(texts, tmp_path_factory):
    skipping = opened(recipe_in(texts, *SKIP), texts / "runs").materials
    clean = tmp_path_factory.mktemp("clean")
    for name in FILES:
        rows = (texts / name).read_text().splitlines(keepends=True)
        (clean / name).write_text("".join(row for row in rows if "null" not in row))
    never = opened(recipe_in(clean), clean / "runs").materials
    assert skipping.domains == never.domains and skipping.unseen == never.unseen
    assert skipping.domains["adds"].digest == never.domains["adds"].digest


def test_no_rejects_leave_no_list_and_an_old_one_goes(texts):
    (texts / "rejects.jsonl").write_text("{}\n")
    take_stock_of(opened(recipe_in(texts), texts), Notes())
    assert not (texts / "rejects.jsonl").exists(), "what stops at the first bad row skips none"
    (texts / "rejects.jsonl").write_text("{}\n")
    for name in FILES:
        (texts / name).write_text((texts / name).read_text().replace('{"text": null}\n', ""))
    told = Notes()
    take_stock_of(opened(recipe_in(texts, *SKIP), texts), told)
    assert not (texts / "rejects.jsonl").exists() and told.notes == []


def test_too_many_are_listed_too_and_the_error_says_where(texts):
    run = opened(recipe_in(texts, "bad_rows=skip", "max_bad=4"), texts)
    with pytest.raises(DataError, match=r"too many unusable rows.* at most 4 in all files .max_bad.; got 5; .*rejects"):
        take_stock_of(run, Notes())
    assert len(list(read_jsonl(texts / "rejects.jsonl"))) == 5


def test_another_process_reads_the_same_rows_and_writes_nothing_else(texts):
    run = opened(recipe_in(texts, *SKIP), texts / "runs")
    again = open_run(run.address)
    assert again is not run and again.materials.domains == run.materials.domains
    assert [path.name for path in (texts / "runs").iterdir()] == ["rows"]


@pytest.mark.parametrize("verb", ["pretrain", "train_expert", "verify_expert", "train_router", "evaluate"])
def test_every_verb_that_reads_texts_lists_what_it_skips(texts, verb, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Models, "locate_all", stop)
    names = [["adds"]] if verb in ("train_expert", "verify_expert") else []
    with pytest.raises(KeyboardInterrupt):
        getattr(stages, verb)(recipe_in(texts, *SKIP), texts / "runs", *names, progress=Notes())
    assert len(list(read_jsonl(texts / "runs" / "rejects.jsonl"))) == len(FILES)


def test_composing_reads_no_texts_and_leaves_the_list(texts, monkeypatch):
    monkeypatch.setattr(verbs.Bench, "ensure", lambda *_: None)
    (texts / "runs").mkdir()
    (texts / "runs" / "rejects.jsonl").write_text("{}\n")
    (texts / "adds.jsonl").unlink()
    stages.compose(recipe_in(texts, *SKIP), texts / "runs")
    assert (texts / "runs" / "rejects.jsonl").read_text() == "{}\n"


def test_a_run_that_stops_at_bad_rows_finds_them_all_over_before_it_trains(texts):
    """Those of the router's examples, too, which are read last."""
    for name in set(FILES) - {"asks.jsonl"}:
        (texts / name).write_text((texts / name).read_text().replace('{"text": null}\n', ""))
    with pytest.raises(DataError, match=r"asks\.jsonl:3: text: wrong type"):
        stages.run(recipe_in(texts), texts / "runs")
    assert not (texts / "runs" / "base").exists()


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{{ m.role }}\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)


def asked(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": f"say {n}"} for n, role in enumerate(roles)]}) + "\n"


@pytest.fixture
def strict(texts) -> Path:
    """The same over a base whose chat template takes no system message, with two such rows in two of the files."""
    tokenizer = Tokenizer.train(["say what you say"], 270)
    tokenizer.template = Template(STRICT)
    (texts / "base").mkdir()
    save_base(texts / "base", tiny_decoder(1, torch.float32, num_layers=1, vocab_size=270), tokenizer, {})
    for name in ("adds.jsonl", "other.jsonl"):
        rows = (texts / name).read_text().replace('{"text": null}\n', "")
        (texts / name).write_text(
            asked("user", "assistant") + asked("system", "user", "assistant", "user", "assistant") + rows
        )
    return texts


def over_base(folder: Path, *overrides: str) -> Recipe:
    return recipe_in(folder, "base={path: base}", "train.length=64", *overrides)


def test_what_the_bases_chat_template_refuses_is_a_bad_row_like_any_other(strict):
    run = opened(over_base(strict, *SKIP), strict)
    take_stock_of(run, Notes())
    refused = {row["path"]: row for _, row in read_jsonl(strict / "rejects.jsonl") if row["field"] == "messages"}
    assert [*refused] == ["adds.jsonl", "other.jsonl"]
    for row in refused.values():
        assert row["line"] == 2 and row["text"] == asked("system", "user", "assistant", "user", "assistant").strip()
        assert row["reason"].startswith("the base's chat template does not take this conversation: no system messages")
    counts = run.materials.files[str(strict / "adds.jsonl")]
    assert counts == {
        "read": 32,
        "used": 31,
        "skipped": {"the base's chat template does not take this conversation": 1},
    }
    rows = run.task.test_rows
    assert len(rows["unseen"]) == 31, "those of one answer each; of the other, no answer is kept"
    assert open_run(run.address).materials.domains == run.materials.domains


def test_and_stops_the_run_before_it_trains_where_bad_rows_do(strict):
    with pytest.raises(DataError, match=r"adds\.jsonl:2: messages: the base's chat template .* no system messages"):
        _ = opened(over_base(strict), strict).materials.domains


def test_how_bad_rows_are_met_is_no_part_of_a_key(strict):
    for name in FILES:
        rows = (strict / name).read_text().splitlines(keepends=True)
        (strict / name).write_text("".join(row for row in rows if "null" not in row and "system" not in row))
    recipes = [over_base(strict, *some) for some in ((), SKIP, ("bad_rows=skip", "max_bad=0"))]
    assert len({ExpertPart(opened(recipe, strict), "adds").key for recipe in recipes}) == 1
