"""Journey: the verbs one after another make what `run` makes at once."""

import json

TENSORS = "*.safetensors"


def test_step_by_step_the_same_bytes_are_made(here, command, apart, files, tmp_path):
    at = ("small.yaml", "--out", tmp_path)
    for verb in ("pretrain", "train-expert", "verify-expert", "train-router"):
        code, out, err = command(verb, *at)
        assert code == 0, err
        assert verb != "verify-expert" or [line.split()[0] for line in out.splitlines()[1:4]] == [
            "sums",
            "code",
            "birds",
        ]
    code, out, err = apart(here, "compose", *at)
    assert (code, out) == (0, f"{tmp_path / 'small/mixture'}\n"), err
    assert command("evaluate", *at).code == 0
    assert command("report", tmp_path / "small").code == 0
    made, meant = files(tmp_path / "small", TENSORS), files(here / "runs/small", TENSORS)
    assert made.keys() == meant.keys() and [path for path in made if made[path] != meant[path]] == []
    judged, there = (
        json.loads((root / "evaluation.json").read_text()) for root in (tmp_path / "small", here / "runs/small")
    )
    assert judged["controls"] == there["controls"] and judged["verdict"] == there["verdict"]
    assert (tmp_path / "small/report/index.html").is_file()


def test_a_step_too_early_says_which_comes_first(here, command, tmp_path):
    code, _, err = command("compose", "small.yaml", "--out", tmp_path)
    assert code == 2 and "there is no expert 'sums' yet; train it first" in err
    code, _, err = command("train-expert", "small.yaml", "--out", tmp_path)
    assert code == 2 and "there is no base yet" in err and "moesaic pretrain" in err
