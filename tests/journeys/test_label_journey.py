"""Journey: rows with labels: two experts learn to classify, and the mixture says the right label wherever it
is asked.
"""

import json

import pytest

import moesaic

RECIPE = """\
name: labels
workers: 1
base: {{path: {base}, pool: mean}}
train: {{steps: 60, batch: 8, length: 24, lr: 3e-2, evaluate_every: 20}}
experts:
  size: {{kind: lora, rank: 2, data: {{columns: [text], labels: [small, big],
    train: size-train.jsonl, test: size-test.jsonl}}}}
  hue: {{kind: lora, rank: 2, data: {{columns: [text], labels: [warm, cold],
    train: hue-train.jsonl, test: hue-test.jsonl}}}}
router: {{kind: linear, feature: characters, epochs: 30, lr: 1e-2}}
evaluate: {{samples: 1, controls: [base]}}
"""
WORDS = {"size": (("tiny", "little"), ("giant", "huge")), "hue": (("red", "orange"), ("blue", "green"))}
LABELS = {"size": ("small", "big"), "hue": ("warm", "cold")}
TEXT = {"size": "{} stones roll {}", "hue": "{} paint dries {}"}


def rows(name: str, start: int, count: int) -> list[dict[str, object]]:
    return [
        {"text": TEXT[name].format(WORDS[name][n % 2][n // 2 % 2], n), "label": n % 2}
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def labelled(finished, tmp_path_factory):
    """A folder with a labelled recipe over the base of the finished run."""
    folder = tmp_path_factory.mktemp("labels")
    for name in WORDS:
        for split, some in (("train", rows(name, 0, 40)), ("test", rows(name, 100, 8))):
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "labels.yaml").write_text(RECIPE.format(base=json.dumps(str(finished[0] / "runs/small/base"))))
    return folder


def test_labels_are_right_on_the_command_line_and_in_python(labelled, command, apart, monkeypatch):
    monkeypatch.chdir(labelled)
    code, _, err = command("run", "labels.yaml")
    assert code == 0, err
    mixture = moesaic.load("runs/labels")
    assert isinstance(mixture, moesaic.ClassifyingMixture) and mixture.names == ("size", "hue")
    asked = [(name, row) for name in WORDS for row in rows(name, 100, 8)]
    found = mixture.classify([row["text"] for _, row in asked])
    assert [one.label for one in found] == [LABELS[name][row["label"]] for name, row in asked]
    assert [one.task for one in found] == [one.routing.chosen for one in found] == [name for name, _ in asked]
    told = [json.loads(command("classify", "runs/labels", row["text"], "--json").out) for _, row in asked[:2]]
    last = apart(labelled, "classify", "runs/labels", asked[-1][1]["text"], "--json")
    assert last.code == 0, last.err
    for one, answer in zip([*told, json.loads(last.out)], [*found[:2], found[-1]], strict=True):
        assert (one["label"], one["task"], one["chosen"]) == (answer.label, answer.task, answer.routing.chosen)
        assert one["probability"] == pytest.approx(answer.probability, rel=1e-4)
    evaluation = json.loads((labelled / "runs/labels/evaluation.json").read_text())
    assert evaluation["measure"] == "score" and evaluation["controls"]["router"]["score"]["all"] == 1.0

    code, _, err = command("generate", "runs/labels", "red paint")
    assert code == 5 and "use classify" in err
