"""Neutral prompts of a run: none of an expert's own, fewer are some of more, and a guard sees its own share of all."""

import json

from small_runs import opened

from moesaic.data.forms import OTHERS
from moesaic.data.neutral import neutral
from moesaic.recipe import parse
from moesaic.stages.prompt_forms import neutral_prompts, nobodys
from moesaic.stages.routers import seen_by


def run_of(folder, prompts):
    """A run with an expert of these prompts and one of others; nothing is trained."""
    files = {"own": prompts, "other": [f"What is {number} and {number + 3}?" for number in range(40)]}
    for name, some in files.items():
        rows = [json.dumps({"prompt": one, "response": f"It is {place}."}) for place, one in enumerate(some)]
        for split, part in (("train", rows[4:]), ("test", rows[:4])):
            (folder / f"{name}_{split}.jsonl").write_text("\n".join(part))
    data = {name: {split: f"{name}_{split}.jsonl" for split in ("train", "test")} for name in files}
    experts = {name: {"kind": "lora", "data": some} for name, some in data.items()}
    recipe = {"name": "run", "base": {"path": "shipped:tiny"}, "data_root": str(folder), "train": {"steps": 1}}
    router = {"kind": "linear", "feature": "hidden_mean"}
    return opened(parse({**recipe, "experts": experts, "router": router}), folder / "run")


def test_a_guard_sees_its_share_of_the_neutral_rows_that_were_read_for_all(tmp_path):
    run = run_of(tmp_path, [f"Sing of owl {number}." for number in range(40)])
    few, more = ([one.group for one in neutral_prompts(run, "train", most)] for most in (10, 50))
    assert len(few) == 10 and len(more) == 50 and {*few} < {*more}
    forms = 1 + len(OTHERS)
    assert seen_by(run, 10, "train", 50 * forms).tolist() == [group in few for group in more] * forms


def test_a_prompt_of_an_expert_is_not_neutral_however_it_is_spelt(tmp_path):
    theirs = [one for one in neutral("train")["general"] if len(one.prompt) > 20][:60]
    run = run_of(tmp_path, [f" {one.prompt.upper()}\n" for one in theirs])
    left, gone = nobodys(run, "train"), {one.group for one in theirs[4:]}
    expected = {kind: [one for one in rows if one.group not in gone] for kind, rows in neutral("train").items()}
    assert {kind: len(rows) for kind, rows in left.items()} == {kind: len(rows) for kind, rows in expected.items()}
    assert not gone & {one.group for one in neutral_prompts(run, "train", 10**6)}
