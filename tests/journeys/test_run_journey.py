"""Journey: from a recipe to a mixture: run, run again, change a setting, look at all of it, and take it elsewhere."""

import json
import shutil
from pathlib import Path

import moesaic

TENSORS = "*.safetensors"


def test_a_run_in_a_process_of_its_own_ends_with_a_verdict_and_with_what_to_type_next(finished):
    _, (code, out, err) = finished
    assert code == 0, err
    assert out.startswith("Use ") and out.endswith('Next: moesaic generate runs/small "..."\n')
    assert "Traceback" not in err and "Warning" not in err


def test_run_again_everything_is_skipped_and_every_byte_stays(here, command, files):
    before = files(here / "runs")
    code, out, err = command("run", "small.yaml")
    assert code == 0 and out.startswith("Use ")
    for part in ("base", "sums", "code", "birds", "joint", "joint_wide", "router", "mixture", "evaluation"):
        assert f"{part}: finished, skipped" in err
    after = files(here / "runs")
    assert after.keys() == before.keys() and [path for path in after if after[path] != before[path]] == []


PLACES = {
    "base": "base",
    "sums": "experts/sums",
    "code": "experts/code",
    "birds": "experts/birds",
    "joint": "controls/joint",
    "joint_wide": "controls/joint_wide",
    "router": "router",
}


def test_after_a_change_of_the_recipe_or_on_the_command_line_only_what_depends_on_it_is_made_again(own, command, files):
    def run(*settings: str) -> set[str]:
        before = {name: files(own / "runs/small" / place, TENSORS) for name, place in PLACES.items()}
        code, _, err = command("run", "small.yaml", *settings)
        after = {name: files(own / "runs/small" / place, TENSORS) for name, place in PLACES.items()}
        changed = {name for name in PLACES if before[name] != after[name]}
        assert code == 0 and changed.isdisjoint(name for name in PLACES if f"{name}: finished, skipped" in err)
        assert "mixture: finished, skipped" not in err and "evaluation: finished, skipped" not in err
        return changed

    recipe = own / "small.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 30, lr: 1e-2", "epochs: 30, lr: 2e-2"))
    assert run() == {"router"}
    assert run("experts.code.rank=4") == {"code", "joint", "joint_wide"}
    asked = moesaic.read_recipe("small.yaml", ["experts.code.rank=4"])
    assert isinstance(asked, moesaic.Recipe) and asked.experts["code"].rank == 4
    assert moesaic.inspect("runs/small/experts/code").facts["rank"] == 4


def test_out_puts_the_same_bytes_elsewhere(here, command, files, tmp_path):
    assert command("run", "small.yaml", "--out", tmp_path / "else", "--quiet").code == 0
    assert files(tmp_path / "else/small", TENSORS) == files(here / "runs/small", TENSORS)


def test_python_runs_the_recipe_to_the_same_bytes(here, files, tmp_path):
    evaluation = moesaic.run(moesaic.read_recipe("small.yaml"), tmp_path / "small")
    assert files(tmp_path / "small", TENSORS) == files(here / "runs/small", TENSORS)
    there = json.loads(Path("runs/small/evaluation.json").read_text())
    assert evaluation["controls"].keys() == there["controls"].keys()
    assert evaluation["controls"]["router"]["nats"] == there["controls"]["router"]["nats"]


def test_what_was_made_is_asked_shown_and_planned(here, command, prompts, tmp_path):
    asked = [some[0] for some in prompts.values()]
    code, out, _ = command("generate", "runs/small", *asked, "--max-new-tokens", 4, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["prompt"] for one in told] == asked
    assert all([*one["weights"]] == ["sums", "code", "birds"] for one in told)
    mixture = moesaic.load("runs/small")
    assert isinstance(mixture, moesaic.WritingMixture) and mixture.names == ("sums", "code", "birds")
    answers = mixture.generate(asked, max_new_tokens=4, sampling=moesaic.Sampling())
    assert [one.text for one in answers] == [one["text"] for one in told]
    assert [one.routing.chosen for one in answers] == [one["chosen"] for one in told]

    code, out, _ = command("evaluate", "small.yaml")
    evaluation = json.loads(Path("runs/small/evaluation.json").read_text())
    router = next(line for line in out.splitlines() if line.startswith("mixture <--"))
    assert code == 0 and f"{evaluation['controls']['router']['nats']['all']:.3f}" in router

    code, out, _ = command("report", "runs/small", "--to", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and out.strip() == str(tmp_path / "page.html")
    assert all(name in page for name in mixture.names)

    code, out, _ = command("inspect", "runs/small", "--json")
    assert code == 0 and json.loads(out)["kind"] == moesaic.inspect("runs/small").kind == "run"

    code, out, _ = command("plan", "runs/small/mixture", "--json")
    planned = json.loads(out)
    assert code == 0 and planned["resident"] == moesaic.plan("runs/small/mixture").resident > 0


def test_a_run_that_was_moved_answers_as_before(own, command, tmp_path):
    before = command("generate", "runs/small", "the wren sings", "--max-new-tokens", 4)
    shutil.move(own / "runs/small", tmp_path / "moved")
    shutil.rmtree(own)
    tmp_path.joinpath("own").mkdir()
    after = command("generate", tmp_path / "moved", "the wren sings", "--max-new-tokens", 4)
    assert before.code == 0 and after == before
