"""Journey: experts of other kinds: feed-forward blocks and whole models are run, loaded, asked, and copied
elsewhere.
"""

import shutil

import pytest

import moesaic

RECIPE = """\
name: kinds
workers: 1
base: {{path: {base}}}
train: {{steps: 3, batch: 4, length: 64, lr: 1e-2}}
experts:
  sums: {{kind: {kind}, data: {{train: sums-train.jsonl, test: sums-test.jsonl}}}}
  birds: {{kind: {kind}, data: {{train: birds-train.jsonl, test: birds-test.jsonl}}}}
router: {{kind: linear, feature: embedding_mean, epochs: 30, lr: 1e-2}}
evaluate: {{limit: 4, samples: 1, controls: [base, average]}}
"""


@pytest.mark.parametrize("kind", ["ffn", "model"])
def test_what_was_run_answers_the_same_from_a_copy_elsewhere(here, command, apart, tmp_path, monkeypatch, kind):
    for name in ("sums", "birds"):
        for split in ("train", "test"):
            shutil.copy(here / f"{name}-{split}.jsonl", tmp_path)
    (tmp_path / "kinds.yaml").write_text(RECIPE.format(base=here / "runs/small/base", kind=kind))
    monkeypatch.chdir(tmp_path)
    code, out, err = command("run", "kinds.yaml")
    assert code == 0 and out.startswith("Use "), err
    mixture = moesaic.load("runs/kinds")
    assert mixture.names == ("sums", "birds")
    assert moesaic.plan("runs/kinds/mixture").site == kind
    prompts = ["add 1 to 3 and say the sum", "the owl sings in the old tree"]
    assert [one.chosen for one in mixture.route(prompts)] == ["sums", "birds"]
    drawn = {"max_new_tokens": 8, "sampling": moesaic.Sampling(temperature=1.0, seed=3)}
    answers = mixture.generate(prompts, **drawn)
    alone = [mixture.generate(prompts, **drawn, expert=name) for name in ("birds", "sums", "base")]
    assert [one[0].ids for one in alone].count(alone[0][0].ids) == 1
    saved = mixture.save_pretrained(tmp_path / "copy")
    shutil.move(saved, tmp_path / "moved")
    shutil.rmtree(tmp_path / "runs")
    again = moesaic.load(tmp_path / "moved")
    assert again.generate(prompts, **drawn) == answers
    typed = ("--max-new-tokens", 8, "--temperature", 1.0, "--seed", 3)
    if kind == "model":
        code, out, err = apart(tmp_path, "generate", "moved", *prompts, *typed)
    else:
        code, out, err = command("generate", "moved", *prompts, *typed)
    assert code == 0 and out.startswith(f"> {prompts[0]}\n"), err
    assert [line.split()[0] for line in out.splitlines() if line.startswith("[")] == ["[sums", "[birds"]


def test_settings_that_were_published_are_at_hand():
    published = moesaic.published_ttlora("roberta-base")
    assert published.parameters == 17664 and published.targets == ["query", "value"]
