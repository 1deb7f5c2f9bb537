"""Journey: `moesaic adopt` as a user types it: made, changed, asked and inspected; and every wrong line of it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.cli.adopting import files, folders
from moesaic.cli.main import status
from moesaic.errors import RecipeError
from moesaic.files import MANIFEST
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

NAMES = ("sums", "birds", "more")
WORDS = {"sums": "one two three four five six seven", "birds": "wren owl finch hawk crow lark swan"}


def in_process(folder, *arguments):
    command = [sys.executable, "-c", "from moesaic.cli.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a base, three adapters and prompts for two of them."""
    folder = tmp_path_factory.mktemp("adopting")
    for name, words in WORDS.items():
        some = words.split()
        lines = [f"{some[i % 7]} {some[(i * 3) % 7]} {some[(i * 5) % 7]}" for i in range(10)]
        (folder / f"{name}.txt").write_text("\n".join(dict.fromkeys(lines)))
    tokenizer = Tokenizer.train(WORDS.values(), 270)
    decoder = tiny_decoder(1, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("model", *NAMES):
        (folder / name).mkdir()
    save_base(folder / "model", decoder, tokenizer, {})
    fingerprint = load_base(folder / "model").fingerprint
    for seed, name in enumerate(NAMES):
        save_expert(folder / name, toy_expert(decoder, seed), fingerprint, {"name": name})
    return folder


PROMPTS = ("--prompts", "sums=sums.txt", "--prompts", "birds=birds.txt")


@pytest.mark.slow
def test_adopted_from_the_command_line_it_answers(here):
    """In a process of its own."""
    made, out, err = in_process(here, "adopt", "sums", "birds", "--base", "model", "--out", "mine", *PROMPTS)
    asked, told, _ = in_process(here, "generate", "mine", "wren owl", "--max-new-tokens", "3", "--json")
    assert (made, asked, err) == (0, 0, "")
    assert out.startswith("adopted sums, birds\n") and "\nrouter: linear on hidden_mean\n" in out
    assert "held-out prompts" in out and out.endswith('Next: moesaic generate mine "..."\n')
    assert json.loads(told)["chosen"] in ("sums", "birds")


def test_it_is_changed_where_it_stands_and_inspect_says_how(here, moesaic, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    out = tmp_path / "out"
    code, said, _ = moesaic("adopt", "one=sums", "birds", "--base", "model", "--out", out)
    assert code == 0 and "not tested" in said and "the most similar experts are one and birds" in said
    code, said, _ = moesaic("adopt", "more", "--into", out, "--disable", "birds")
    assert code == 0 and said.startswith("adopted one, birds, more\n")
    (birds,) = (line for line in said.splitlines() if line.startswith("  birds"))
    assert birds.endswith(", disabled")
    code, said, _ = moesaic("inspect", out)
    assert (
        code == 0
        and "disabled    birds: never chosen" in said
        and "router     made from the weights of the experts alone" in said
    )
    code, said, _ = moesaic("adopt", "--into", out, "--enable", "birds", "--drop", "one", "--json")
    made = json.loads(said)
    assert code == 0 and made["names"] == ["birds", "more"] and made["disabled"] == []
    code, said, _ = moesaic("generate", out, "wren", "--max-new-tokens", 2)
    assert code == 0 and ("[birds" in said or "[more" in said)


def test_the_router_is_judged_on_prompts_of_enabled_experts_alone(here, moesaic, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    out, given = tmp_path / "out", (*PROMPTS, "--prompts", "more=sums.txt")
    said = moesaic("adopt", "sums", "birds", "more", "--base", "model", "--out", out, *given)[1]
    made = json.loads(moesaic("adopt", "--into", out, "--disable", "more", "--json")[1])["router"]
    of, right = (sum(made[key][name] for name in ("sums", "birds")) for key in ("of", "right"))
    assert f"sends {right + made['right']['more']} of {of + made['of']['more']} held-out prompts to their own" in said
    assert "to other experts" not in said
    said = moesaic("adopt", "--into", out, "--disable", "more")[1]
    told = f"sends {right} of {of} held-out prompts of the enabled experts to their own expert ({right / of:.1%})\n"
    assert told in said and "\n  of more" not in said
    assert "\n  sends prompts of more to other experts\n" in said


def test_groups_make_a_tree_that_is_told_and_wrong_ones_are_refused(here, moesaic, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    out, given = tmp_path / "out", (*PROMPTS, "--prompts", "more=sums.txt")
    groups = ("--group", "exact=sums,more", "--group", "text=birds")
    code, said, err = moesaic("adopt", "sums", "birds", "more", "--base", "model", "--out", out, *given, *groups)
    assert code == 0, err
    assert "\nrouter: tree on hidden_mean\n  exact: sums, more\n  text: birds\n  sends " in said
    assert "router     tree on hidden_mean, top_1" in moesaic("inspect", out)[1]
    code, said, err = moesaic("adopt", "--into", out, "--drop", "more")
    assert code == 0 and "\n  exact: sums\n  text: birds\n" in said, err
    for wrong in ("exact", "=sums", "exact="):
        code, _, err = moesaic("adopt", "sums", "birds", "--base", "model", "--out", tmp_path / "no", "--group", wrong)
        assert code == 2 and "--group: not a group of experts; expected NAME=EXPERT,EXPERT" in err
    code, _, err = moesaic("adopt", "sums", "--base", "model", "--out", tmp_path / "no", *groups[:2], *groups[:2])
    assert code == 2 and "--group: given twice" in err


def test_inspect_counts_the_parameters_of_foreign_experts(here, moesaic, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    for name in ("sums", "birds"):
        shutil.copytree(name, tmp_path / name)
        (tmp_path / name / MANIFEST).unlink()
    out, foreign = tmp_path / "out", [tmp_path / name for name in ("sums", "birds")]
    made = json.loads(moesaic("adopt", *foreign, "--base", "model", "--out", out, "--json")[1])
    counts = [facts["parameters"] for facts in made["experts"].values()]
    said = " ".join(moesaic("inspect", out)[1].split())
    assert f" of the base, {sum(counts):,} of the experts " in said and said.count("peft_type LORA") == 2
    assert all(f" parameters {count:,} " in said for count in counts)
    assert f" parameters {counts[0]:,} " in " ".join(moesaic("inspect", foreign[0])[1].split())


def test_inspect_of_an_adopted_folder_describes_its_mixture(here, moesaic, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    out = tmp_path / "out"
    made = json.loads(moesaic("adopt", "sums", "birds", "--base", "model", "--out", out, *PROMPTS, "--json")[1])
    said = moesaic("inspect", out)[1]
    assert said.startswith("mixture out\n") and "evaluated" not in said and "accuracy_held_out" not in said
    assert f"accuracy on held-out prompts {made['router']['accuracy']:.1%}, temperature " in said
    assert said == moesaic("inspect", out / "mixture")[1]
    (out / "recipe.yaml").write_text("name: out\n")
    assert moesaic("inspect", out)[1].startswith("run\n  evaluated  not yet\n\n  mixture out\n")


WRONG = [
    (["sums", "birds"], 2, "--out, --into: exactly one of the two is required"),
    (["sums", "birds", "--out", "x", "--into", "y"], 2, "exactly one of the two is required"),
    (["sums", "birds", "--out", "x"], 2, "--base: missing"),
    (["--base", "model", "--out", "x"], 2, "no experts"),
    (["sums", "birds", "--base", "model", "--out", "x", "--drop", "sums"], 2, "--drop: has no meaning with --out"),
    (["sums", "--into", "x", "--kind", "ffn"], 2, "--kind: has no meaning with --into"),
    (["sums", "birds", "--base", "model", "--out", "x", "--prompts", "sums.txt"], 2, "--prompts: not prompts of an"),
    (["sums", "birds", "--base", "model", "--out", "x", "--prompts", "sums=no.txt"], 3, "no.txt: no such file"),
    (["a=sums", "a=birds", "--base", "model", "--out", "x"], 2, "a: given twice"),
    (["a/b=sums", "birds", "--base", "model", "--out", "x"], 2, "give it a name: NAME=PATH"),
    (["a b=sums", "birds", "--base", "model", "--out", "x"], 2, "not a name for an expert"),
    (["sums", "model", "--base", "model", "--out", "x"], 5, "no linear differs"),
    (["sums", "nowhere", "--base", "model", "--out", "x"], 4, "nowhere: no such folder"),
    (["sums", "birds", "--base", "nowhere", "--out", "x"], 4, "nowhere: no such folder"),
    (["sums", "--into", "nowhere"], 4, "no mixture here"),
    (["sums", "birds", "--base", "model", "--out", "x", "--prompts", "cod=sums.txt"], 2, "--prompts: no such expert"),
]


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG)
def test_a_wrong_line_is_refused_with_its_status(here, moesaic, monkeypatch, arguments, status, said):
    monkeypatch.chdir(here)
    code, out, err = moesaic("adopt", *arguments)
    assert (code, out) == (status, "") and said in err, err
    assert not (here / "x" / "mixture").exists()


def test_a_folder_that_is_there_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert folders(["a=b", "c"]) == ["a=b", "c"]
    assert folders(["a=b", "x=c"]) == {"a=b": "a=b", "x": "c"}
    assert folders(["x=c/d=e", "runs/chat/best"]) == {"x": "c/d=e", "chat": "runs/chat/best"}
    with pytest.raises(RecipeError, match="given twice"):
        files(["a=x", "a=y"])


def test_a_kind_is_said_on_the_command_line_and_refused_where_it_means_nothing(here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    for seed, name in enumerate(("tuned", "other")):
        model = load_base(here / "model")
        with torch.no_grad():
            model.decoder.layers[seed].mlp.up_proj.weight.mul_(1.5)
            model.decoder.norm.weight.mul_(1.1)
        (here / name).mkdir()
        save_base(here / name, model.decoder, model.tokenizer, {})
    line = ["adopt", "sums=tuned", "birds=other", "--base", "model", "--out", "blocks", *PROMPTS, "--quiet"]
    assert status([*line, "--kind", "ffn"]) == 5
    assert "in 1 tensors: model.norm.weight by 10.00%" in capsys.readouterr().err
    assert status([*line, "--kind", "ffn", "--ignore-rest"]) == 0
    assert "1 tensors with other differences ignored" in capsys.readouterr().out
    assert status([*("never" if word == "blocks" else word for word in line), "--kind", "mlp"]) == 2
    assert status(["adopt", "more", "--into", "blocks", "--kind", "ffn"]) == 2
    assert "--kind: has no meaning with --into" in capsys.readouterr().err
    assert status(["inspect", "blocks"]) == 0
    assert "at every feed-forward block" in " ".join(capsys.readouterr().out.split())


def test_models_are_merged_into_the_folder_named_last(here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    (here / "second").mkdir()
    model = load_base(here / "model")
    with torch.no_grad():
        model.decoder.norm.weight.mul_(3)
    save_base(here / "second", model.decoder, model.tokenizer, {})
    assert status(["merge", "model", "second", "mean", "--weights", "3,1"]) == 0
    assert capsys.readouterr().out.strip() == "mean"
    before = load_base(here / "model").decoder.norm.weight
    torch.testing.assert_close(load_base(here / "mean").decoder.norm.weight, before * 1.5)
    for wrong in (["--weights", "one,two"], ["--only", "ffn"], ["--weights", "1"]):
        assert status(["merge", "model", "second", "never", *wrong]) == 2
    assert not (here / "never").exists()
