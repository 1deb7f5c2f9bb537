"""Journey: one real run through the command line, and the other verbs on what it made."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest

from moesaic.artefacts.inspect import inspect


@pytest.fixture
def here(finished, monkeypatch):
    monkeypatch.chdir(finished[0])


def test_run_says_what_to_use_and_what_to_type_next(finished):
    _, (code, out, _) = finished
    assert code == 0
    assert out.startswith("Use ")
    for heading in ("Nats per token", "Routers tried", "Samples", "Time", "Files"):
        assert f"\n{heading}" in out
    assert "sums, routed to " in out and "runs/small/evaluation.json" in out
    assert out.endswith('Next: moesaic generate runs/small "..."\n')
    assert max(map(len, out.splitlines())) <= 100


def test_run_tells_what_it_does_on_stderr_in_plain_lines(finished):
    _, (_, out, err) = finished
    assert "base  validation " in err and "sums  validation " in err and "evaluation: " in err
    assert "features" not in err and "Warning" not in err and "\x1b" not in err + out


def test_again_everything_is_skipped(here, moesaic):
    for verb, what in (
        ("pretrain", "base"),
        ("train-expert", "birds"),
        ("train-router", "router"),
        ("compose", "mixture"),
    ):
        code, out, err = moesaic(verb, "small.yaml")
        assert code == 0 and f"{what}: finished, skipped" in err and "small" in out


def test_verify_expert(here, moesaic):
    code, out, _ = moesaic("verify-expert", "small.yaml", "--expert", "birds")
    heading, birds, _ = out.splitlines()
    assert code == 0 and heading.split() == ["expert", "validation", "base", "gain"]
    name, nats, base, gain = birds.split()
    assert name == "birds" and float(gain) == pytest.approx(float(base) - float(nats), abs=2e-3)


def test_generate(here, moesaic):
    code, out, _ = moesaic("generate", "runs/small", "one two", "wren owl", "--max-new-tokens", 3, "--expert", "birds")
    assert code == 0
    assert out.count("[birds (birds 100%); stopped at the token limit after 3 tokens]") == 2
    assert out.startswith("> one two\n")


def test_generate_from_stdin(here, moesaic, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("one\n\nzwölf\n".encode())))
    code, out, _ = moesaic("generate", "runs/small/mixture", "--max-new-tokens", 2, "--json")
    made = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["prompt"] for one in made] == ["one", "zwölf"]
    assert made[0].keys() == {"prompt", "text", "chosen", "probabilities", "weights", "finish", "tokens"}
    assert made[0]["weights"].keys() == {"sums", "birds"}


def test_stdin_without_a_prompt_is_an_error(here, moesaic, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n  \n")))
    code, out, err = moesaic("generate", "runs/small")
    assert (code, out) == (3, "") and "error: <stdin>: no prompt; give a prompt as an argument" in err


@pytest.mark.parametrize(("line", "code"), [(b"\xff\n", 3), (b"one " * 200, 2)])
def test_a_bad_line_of_stdin_is_named(here, moesaic, monkeypatch, line, code):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n" + line)))
    found, _, err = moesaic("generate", "runs/small", "--max-new-tokens", 2)
    assert found == code and "error: <stdin>:2: " in err


TALK = [
    {"role": "user", "content": "one two"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "four"},
]


def test_generate_answers_a_conversation_of_a_file_or_of_stdin(here, moesaic, monkeypatch, tmp_path):
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(TALK).encode())))
    made = []
    for file in (tmp_path / "talk.json", "-"):
        code, out, _ = moesaic("generate", "runs/small", "--messages", file, "--max-new-tokens", 3, "--json")
        assert code == 0
        made.append(json.loads(out))
    assert made[0] == made[1] and made[0]["messages"] == TALK and "prompt" not in made[0]
    code, out, _ = moesaic("generate", "runs/small", "--messages", tmp_path / "talk.json", "--max-new-tokens", 3)
    assert code == 0 and out.startswith("> four\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "talk.json: not usable as JSON"),
        ('{"role": "user"}', "talk.json: not usable as JSON: expected a list of objects"),
        ('[{"role": "user"}]', "talk.json: messages[0].content: missing"),
        (json.dumps(TALK[:2]), "talk.json: messages: nothing to answer"),
        (None, "talk.json: the file cannot be read"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_by_name(here, moesaic, tmp_path, content, said):
    if content is not None:
        (tmp_path / "talk.json").write_text(content)
    code, _, err = moesaic("generate", "runs/small", "--messages", tmp_path / "talk.json")
    assert code == 3 and said in err
    code, _, err = moesaic("generate", "runs/small", "hi", "--messages", tmp_path / "talk.json")
    assert code == 2 and "not both" in err


def test_generate_streams_on_a_terminal(here, moesaic, monkeypatch):
    plain = moesaic("generate", "runs/small", "one two", "--max-new-tokens", 5)[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = moesaic("generate", "runs/small", "one two", "--max-new-tokens", 5)
    assert out.split("\n")[0] == plain.split("\n")[1] and "\x1b[2m[" in out


def test_generate_refuses_an_unknown_expert(here, moesaic):
    code, _, err = moesaic("generate", "runs/small", "hi", "--max-new-tokens", 2, "--expert", "brids")
    assert code == 2 and "did you mean 'birds'?" in err


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("runs/small", "run"),
        ("runs/small/mixture", "mixture"),
        ("runs/small/base", "base"),
        ("runs/small/router", "router"),
        ("runs/small/experts/sums", "expert"),
    ],
)
def test_inspect(here, moesaic, path, kind):
    code, out, _ = moesaic("inspect", path)
    assert code == 0 and out.startswith(kind) and "yes: every file has the hash" in out
    raw = json.loads(moesaic("inspect", path, "--json")[1])
    assert raw["kind"] == kind and raw["verified"]


def test_a_run_holds_the_files_of_its_mixture_once(here):
    root = Path("runs/small")
    parts = {
        "base": "base",
        "router": "router",
        **{f"experts/{name}": f"experts/{name}/best" for name in ("sums", "birds")},
    }
    for inside, own in parts.items():
        for file in sorted((root / own).glob("*.safetensors")):
            assert file.samefile(root / "mixture" / inside / file.name)


def test_inspect_a_mixture_names_its_parts(here, moesaic):
    out = moesaic("inspect", "runs/small/mixture")[1]
    assert "linear on embedding_mean, top_1" in out and "lora, rank 2, alpha 4" in out
    assert "experts     sums, birds\n" in out and "base/model.safetensors" in out
    assert re.search(r"abstains +never: every prompt goes to an expert\n", out)
    assert inspect(Path("runs/small/mixture")).facts["experts"] == ["sums", "birds"]


def test_inspect_shows_where_a_text_would_go(here, moesaic):
    out = moesaic("inspect", "runs/small", "--text", "wren owl")[1]
    assert out.splitlines()[-1].startswith("routed to ")
    weights = json.loads(moesaic("inspect", "runs/small", "--text", "wren owl", "--json")[1])["routing"]["weights"]
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(("part", "kind"), [("experts/sums/best", "PEFT adapter"), ("base", "Hugging Face model")])
def test_inspect_takes_a_foreign_folder_at_its_word(here, moesaic, tmp_path, part, kind):
    shutil.copytree(f"runs/small/{part}", tmp_path / "foreign")
    (tmp_path / "foreign/manifest.json").unlink()
    code, out, _ = moesaic("inspect", tmp_path / "foreign")
    assert code == 0 and out.startswith(kind) and "verified" in out and "no: " in out


def test_inspect_finds_damage(here, moesaic, tmp_path):
    shutil.copytree("runs/small/mixture", tmp_path / "damaged")
    with open(tmp_path / "damaged/base/model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    code, _, err = moesaic("inspect", tmp_path / "damaged")
    assert code == 4 and "the file was changed or damaged" in err


def test_nothing_to_inspect(here, moesaic, tmp_path):
    code, _, err = moesaic("inspect", tmp_path)
    assert code == 4 and "nothing to inspect here" in err


def test_a_folder_without_a_mixture_is_told_what_it_is(moesaic, tmp_path):
    for name in ("demo", "small"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text("name: x")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for path, verbs, said in [
        ("runs", ("generate", "inspect"), "it holds runs: demo, small; name one"),
        ("runs/demo", ("generate", "inspect"), "this run is not finished: continue it with `moesaic run`"),
        (
            "adapter",
            ("generate",),
            "the expert does not name its base; name its folder or its id of the hub with --base",
        ),
    ]:
        for verb in verbs:
            code, _, err = moesaic(verb, tmp_path / path, *(["hi"] if verb == "generate" else []))
            assert code == 4 and said in err, err


@pytest.mark.slow
def test_an_expert_of_another_base_is_refused(here, moesaic, tmp_path):
    elsewhere = ("seed=1", "--out", tmp_path, "--quiet")
    data = "{train: sums-train.jsonl, test: sums-test.jsonl}"
    foreign = f"experts.sums={{kind: lora, path: runs/small/experts/sums/best, data: {data}}}"
    assert moesaic("pretrain", "small.yaml", *elsewhere)[0] == 0
    code, _, err = moesaic("compose", "small.yaml", foreign, *elsewhere)
    assert code == 2 and "there is no expert 'birds' yet" in err, "the order of the verbs comes first"
    assert moesaic("train-expert", "small.yaml", foreign, "--expert", "birds", *elsewhere)[0] == 0
    code, _, err = moesaic("compose", "small.yaml", foreign, *elsewhere)
    assert code == 2 and "there is no router yet" in err
    assert moesaic("train-router", "small.yaml", foreign, *elsewhere)[0] == 0
    code, _, err = moesaic("compose", "small.yaml", foreign, *elsewhere)
    assert code == 5 and "the expert was trained on another base" in err
