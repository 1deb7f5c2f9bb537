"""Property: every wrong recipe is one error that names its line, its field, what was expected and what to do."""

import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesaic.cli.main import status
from moesaic.errors import RecipeError
from moesaic.recipe import read

GOOD = """\
name: four-domains
base:
  size: nano
  pretrain: {steps: 20}
train:
  steps: 50
  lr: [1e-3, 3e-3]
experts:
  math:
    kind: lora
    rank: 4
    layers: 1..
    data:
      train: math.jsonl
      validation: 0.2
      test: [{path: math_test.jsonl, limit: 9}]
  chat:
    kind: lora
    path: someone/adapter
    examples: prompts.jsonl
router:
  kind: mlp
  feature: hidden@1
  hidden: [64]
  loss: {balance: 1e-2}
  compare:
    - kind: keyword
    - {kind: linear, feature: hidden_last}
mixture: {site: linear, level: sequence}
evaluate:
  metrics: [perplexity]
  joint: {steps: 70}
"""

LORA, TT = "    kind: lora\n    rank", "    kind: tt_lora\n"
Q = f"{TT}    targets: [q_proj]\n"

BAD = [
    # a part of GOOD, what stands in its place, the line and the field that the error names, and a phrase of it
    ("name: four-domains", "nmae: four-domains", 1, "nmae", "unknown key; did you mean 'name'? (and 1 more)"),
    ("      test: [{path: math_test.jsonl, limit: 9}]\n", "", 13, "experts.math.data.test", "that nothing learns from"),
    (
        *("train: math.jsonl\n      validation: 0.2\n      test: [{path: math_test.jsonl, limit: 9}]", "demo: maths"),
        *(14, "experts.math.data.demo"),
        "expected 'code', 'prose', 'math', 'dialogue' or 'cooking'; got 'maths'; did you mean 'math'?",
    ),
    *(
        ("  kind: mlp\n  feature", f"  kind: tree\n  groups:\n    {groups}\n  feature", line, field, said)
        for groups, line, field, said in [
            (
                "exact: [math]\n    open: [chta]",
                25,
                "router.groups.open[0]",
                "no such expert; expected one of math, chat; got 'chta'; did you mean 'chat'?",
            ),
            ("exact: [math]\n    open: [chat, math]", 25, "router.groups.open[1]", "the expert is in a group already"),
            ("exact: [math]\n    open: [math]", 25, "router.groups.open[0]", "got 'math'; it is in group 'exact'"),
            ("exact: [math]\n    maths: []", 25, "router.groups.maths", "expected 1 or more"),
            ("exact: [math, chat]", 23, "router.groups", "too few groups; expected two or more; got exact"),
        ]
    ),
    ("name: four-domains", "name: my run", 1, "name", "not a name for a run; expected 1 to 96"),
    ("name: four-domains", "name: com1.txt", 1, "name", "Windows"),
    ("name: four-domains", "name: four.", 1, "name", "must not end with a dot"),
    ("name: four-domains", "name: 2024", 1, "name", "expected text; got 2024; put it in quotes"),
    ("name: four-domains", "seed: 1", 1, "name", "missing"),
    ("name: four-domains", "seed: -1\nname: x", 1, "seed", "expected 0 or more; got -1"),
    ("name: four-domains", "seed: true\nname: x", 1, "seed", "expected a whole number; got True"),
    ("name: four-domains", "name: x\nworkers: 0", 2, "workers", "expected 1 or more; got 0"),
    ("name: four-domains", "name: x\nbad_rows: ignore", 2, "bad_rows", "expected 'stop' or 'skip'; got 'ignore'"),
    ("name: four-domains", "name: x\nmax_bad: 3", 2, "max_bad", "has no effect here; it goes with bad_rows: skip"),
    ("name: four-domains", "name: x\nbad_rows: skip\nmax_bad: -1", 3, "max_bad", "expected 0 or more; got -1"),
    ("name: four-domains", "name: x\nbad_rows: skip\nmax_bad: 1.0", 3, "max_bad", "expected a whole number"),
    ("name: four-domains", "name: x\nname: y", 2, None, "key 'name' is written twice"),
    ("  steps: 50", "  steps: 50\n  steps: 50", 7, None, "key 'steps' is written twice"),
    ("    rank: 4", "    rank: 4\n    rank: 4", 12, None, "key 'rank' is written twice"),
    ("    rank: 4", '    rank: 4\n    "rank": 4', 12, None, "key 'rank' is written twice"),
    ("limit: 9", "limit: 9, limit: 9", 16, None, "key 'limit' is written twice"),
    ("{balance: 1e-2}", "{balance: 1e-2, balance: 1}", 25, None, "key 'balance' is written twice"),
    ("feature: hidden_last}", "feature: hidden_last, kind: mlp}", 28, None, "key 'kind' is written twice"),
    ("  steps: 50", "  <<: {steps: 3}\n  steps: 50", 6, "train.<<", "unknown key; expected one of"),
    ("train:\n", "pretraining: &a {steps: 9}\ntrain:\n  <<: *a\n", 5, "pretraining", "unknown key"),
    ("  steps: 50", "  steps: " + "9" * 5000, 6, "train.steps", "expected a whole number; got '999"),
    ("  steps: 50", "  steps: 9223372036854775808", 6, "train.steps", "expected 9223372036854775807 or less"),
    ("  steps: 50", "  clip: 1" + "0" * 5000 + ".0", 6, "train.clip", "expected a finite number"),
    ("  steps: 50", "  steps: 0x10", 6, "train.steps", "expected a whole number; got '0x10'"),
    ("  steps: 50", "  steps:\t50", 6, None, "found character '\\t'"),
    ("  size: nano", "  size: nanno", 3, "base.size", "unknown size; expected one of nano"),
    ("  size: nano", "  size: nano\n  path: a/b", 4, "base.path", "does not go with 'size', 'pretrain'"),
    ("  size: nano", "  szie: nano", 3, "base.szie", "did you mean 'size'?"),
    ("{steps: 20}", "{stesp: 20}", 4, "base.pretrain.stesp", "did you mean 'steps'?"),
    ("{steps: 20}", "{checkpoint: true}", 4, "base.pretrain.checkpoint", "unknown key; the key is 'recompute'"),
    ("{steps: 20}", "{data: [3]}", 4, "base.pretrain.data[0]", "expected a path"),
    ("  steps: 50", "  steps: 1.5", 6, "train.steps", "expected a whole number; got 1.5"),
    ("  steps: 50", "  steps: '50'", 6, "train.steps", "expected a whole number; got '50'"),
    ("  steps: 50", "  steps:", 6, "train.steps", "expected a whole number; got None"),
    ("  steps: 50", "  warmup: 2", 6, "train.warmup", "expected 1.0 or less; got 2"),
    ("  steps: 50", "  clip: .inf", 6, "train.clip", "expected a finite number; got inf"),
    ("  steps: 50", "  clip: 1e999", 6, "train.clip", "expected a finite number; got inf"),
    ("  steps: 50", "  weight_decay: .nan", 6, "train.weight_decay", "expected a finite number"),
    ("  steps: 50", "  weight_decay: no", 6, "train.weight_decay", "expected a number; got 'no'"),
    ("[1e-3, 3e-3]", "[1e-3, 0]", 7, "train.lr[1]", "expected more than 0"),
    ("[1e-3, 3e-3]", "[1e-3, 0.001]", 7, "train.lr[1]", "given twice"),
    ("[1e-3, 3e-3]", "[]", 7, "train.lr", "expected 1 or more"),
    ("[1e-3, 3e-3]", "fast", 7, "train.lr", "expected a number; got 'fast'"),
    ("  math:", "  Base:", 9, "experts.Base", "reserved"),
    ("  math:", "  oracle_best:", 9, "experts.oracle_best", "reserved"),
    ("  math:", "  maß:", 9, "experts.maß", "not a name for an expert"),
    ("  math:", "  CHAT:", 17, "experts.chat", "differs from expert 'CHAT' only in case"),
    ("    kind: lora\n    rank", "    rank", 9, "experts.math.kind", "missing; expected 'lora', 'tt_lora', 'ffn' or"),
    ("    kind: lora\n    rank", "    kind: loar\n    rank", 10, "experts.math.kind", "did you mean 'lora'?"),
    ("    rank: 4", "    rnk: 4", 11, "experts.math.rnk", "did you mean 'rank'?"),
    ("    rank: 4", "    colour: 4", 11, "experts.math.colour", "unknown key; expected one of kind, layers, data"),
    ("    rank: 4", "    targets: [q_proj, v_prj]", 11, "experts.math.targets[1]", "did you mean 'v_proj'?"),
    ("    rank: 4", "    targets: [q_proj, q_proj]", 11, "experts.math.targets[1]", "given twice: 'q_proj'"),
    ("    rank: 4", "    targets: []", 11, "experts.math.targets", "expected 1 or more"),
    ("    rank: 4", "    targets: q_proj", 11, "experts.math.targets", "expected a list; got 'q_proj'"),
    ("    rank: 4", "    train: {stepz: 4}", 11, "experts.math.train.stepz", "did you mean 'steps'?"),
    ("    rank: 4", "    train: {lr: [1, x]}", 11, "experts.math.train.lr[1]", "expected a number; got 'x'"),
    ("    rank: 4", "    examples: a.jsonl", 11, "experts.math.examples", "the router learns from data"),
    ("    rank: 4", "    factors: auto", 11, "experts.math.factors", "unknown key; it goes with kind: tt_lora"),
    ("    rank: 4", "    init: zero", 11, "experts.math.init", "unknown key; it goes with kind: tt_lora"),
    (LORA, "    kind: ffn\n    rank", 11, "experts.math.rank", "unknown key; it goes with kind: lora or tt_lora"),
    (LORA, "    kind: [lora]\n    rank", 10, "experts.math.kind", "'ffn' or 'model'; got ['lora']"),
    (LORA, "    knid: lora\n    rank", 10, "experts.math.knid", "unknown key; did you mean 'kind'?"),
    ("    rank: 4", "    sweep: {rnak: [4]}", 11, "experts.math.sweep.rnak", "did you mean 'rank'?"),
    (LORA, f"{TT}    init: zeros\n    rank", 11, "experts.math.init", "did you mean 'zero'?"),
    (LORA, f"{TT}    factors: publised\n    rank", 11, "experts.math.factors", "did you mean 'published'?"),
    (LORA, f"{TT}    factors: 0\n    rank", 11, "experts.math.factors", "expected 1 or more; got 0"),
    (LORA, f"{TT}    factors: 2.5\n    rank", 11, "experts.math.factors", "expected 'auto' or 'published'; got 2.5"),
    (
        *(LORA, f"{TT}    factors: {{q_proj: [[8], [8]]}}\n    rank", 11, "experts.math.factors"),
        "no factors for k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; name all targets",
    ),
    (
        *(LORA, f"{Q}    factors: {{q_porj: [[8], [8]]}}\n    rank", 12, "experts.math.factors.q_porj"),
        "no target of this expert; expected one of q_proj",
    ),
    (LORA, f"{Q}    factors: {{q_proj: [[8]]}}\n    rank", 12, "experts.math.factors.q_proj", "expected 2 or more"),
    (LORA, f"{Q}    factors: {{q_proj: [8, 8]}}\n    rank", 12, "experts.math.factors.q_proj[0]", "expected a list"),
    (LORA, f"{Q}    factors: {{q_proj: [[], [8]]}}\n    rank", 12, "experts.math.factors.q_proj[0]", "1 or more"),
    (LORA, f"{Q}    factors: {{q_proj: [[8], [0]]}}\n    rank", 12, "experts.math.factors.q_proj[1][0]", "1 or more"),
    ("    path: someone/adapter", "    path: a\n    init: zero", 20, "experts.chat.init", "it goes with kind: tt_lora"),
    (
        *("    kind: lora\n    path", "    kind: tt_lora\n    init: zero\n    path", 19, "experts.chat.init"),
        "its folder decides this",
    ),
    (
        *("    kind: lora\n    path", "    kind: tt_lora\n    factors: auto\n    path", 19, "experts.chat.factors"),
        "an expert with path is trained already",
    ),
    ("    layers: 1..", "    layers: 3..3", 12, "experts.math.layers", "an empty range of layers"),
    ("    layers: 1..", "    layers: '..'", 12, "experts.math.layers", "expected '2..', '2..6' or '..4'"),
    ("    layers: 1..", "    layers: 1", 12, "experts.math.layers", "expected text; got 1"),
    (
        "    layers: 1..",
        "    layers: 0..",
        12,
        "experts.math.layers",
        "adapts layers from 0, but the router reads hidden",
    ),
    ("    layers: 1..", "    alpha: 1", 9, "experts.math.layers", "set layers: 1.."),
    ("train: math.jsonl", "train: {pth: math.jsonl}", 14, "experts.math.data.train.pth", "did you mean 'path'?"),
    ("train: math.jsonl", "train: []", 14, "experts.math.data.train", "expected 1 or more"),
    ("train: math.jsonl", "train: [a, 3]", 14, "experts.math.data.train[1]", "expected a path, or a mapping with one"),
    ("train: math.jsonl", "train: ''", 14, "experts.math.data.train", "not empty"),
    ("train: math.jsonl", "demo: math", 15, "experts.math.data.validation", "does not go with 'demo'"),
    ("validation: 0.2", "validation: 1.0", 15, "experts.math.data.validation", "expected less than 1"),
    ("validation: 0.2", "validation: true", 15, "experts.math.data.validation", "expected a number; got True"),
    ("validation: 0.2", "score: prompt", 15, "experts.math.data.score", "expected 'response'"),
    ("test:", "tset:", 16, "experts.math.data.tset", "did you mean 'test'?"),
    ("limit: 9", "limit: 0", 16, "experts.math.data.test[0].limit", "expected 1 or more; got 0"),
    ("    path: someone/adapter", "    rank: 3", 17, "experts.chat", "neither data nor path"),
    ("    path: someone/adapter", "    path: a\n    rank: 3", 20, "experts.chat.rank", "its folder decides this"),
    ("    examples: prompts.jsonl", "    keywords: [hi]", 17, "experts.chat", "needs data or examples"),
    ("  kind: mlp", "  kind: mpl", 22, "router.kind", "did you mean 'mlp'?"),
    ("  kind: mlp", "  kind: linear", 24, "router.hidden", "a linear router has no hidden layers"),
    ("feature: hidden@1", "feature: hidden@0", 23, "router.feature", "unknown feature"),
    ("feature: hidden@1", "feature: hiden_mean", 23, "router.feature", "did you mean 'hidden_mean'?"),
    ("feature: hidden@1", "feature: text", 23, "router.feature", "a mlp router cannot read 'text'"),
    ("  hidden: [64]", "  selection: top_k", 21, "router.k", "missing; selection top_k needs k"),
    ("  hidden: [64]", "  selection: top_k\n  k: 3", 25, "router.k", "expected at most 2; got 3"),
    ("  hidden: [64]", "  k: 1", 24, "router.k", "selection top_1 has no k"),
    ("balance", "blance", 25, "router.loss.blance", "did you mean 'balance'?"),
    ("- kind: keyword", "- kind: keywrd", 27, "router.compare[0].kind", "did you mean 'keyword'?"),
    ("- kind: keyword", "- epochs: 3", 27, "router.compare[0].kind", "missing"),
    ("- kind: keyword", "- {kind: keyword, epochs: 3}", 27, "router.compare[0].epochs", "is not trained"),
    ("kind: linear, f", "kind: linear, prompt_tokens: 9, f", 28, "router.compare[1].prompt_tokens", "unknown key"),
    ("feature: hidden_last", "feature: text", 28, "router.compare[1].feature", "a linear router cannot read 'text'"),
    ("feature: hidden_last", "selection: top_k, k: 3", 28, "router.compare[1].k", "expected at most 2"),
    ("site: linear", "site: ffn", 29, "mixture.site", "('math') cannot be mixed at site ffn; expected site linear"),
    ("[perplexity]", "[perplexty]", 31, "evaluate.metrics[0]", "did you mean 'perplexity'?"),
    ("[perplexity]", "[]", 31, "evaluate.metrics", "expected 1 or more"),
    ("metrics: [perplexity]", "controls: some", 31, "evaluate.controls", "expected 'all'"),
    ("metrics: [perplexity]", "controls: [base, joit]", 31, "evaluate.controls[1]", "did you mean 'joint'?"),
    ("{steps: 70}", "70", 32, "evaluate.joint", "expected a mapping; got 70"),
    # two problems: the first in the order of the file
    ("    rank: 4", "    rank: x\n    rnk: 3", 11, "experts.math.rank", "(and 1 more)"),
    ("{steps: 70}", "{steps: x}\nseed: y\nwarm: 3", 32, "evaluate.joint.steps", "got 'x'; (and 2 more)"),
    ("    rank: 4", "    rnk: 3\n    rank: x", 11, "experts.math.rnk", "did you mean 'rank'? (and 1 more)"),
    # not YAML, or not plain YAML
    ("train:\n", "train:\n\tbatch: 3\n", 6, None, "found character '\\t'"),
    ("  steps: 50", "  steps: [50", 7, None, "not YAML"),
    ("  steps: 50", "  steps: *none", 6, None, "undefined alias"),
    ("  steps: 50", "  steps: !!python/name:os.system x", 6, None, "is not allowed"),
    ("{steps: 70}", "!!python/dict {steps: 70}", 32, None, "is not allowed"),
    ("  steps: 50", "  steps: !!int fifty", 6, None, "does not match its tag"),
    ("  steps: 50", "  steps: !!bool yes", 6, None, "does not match its tag"),
    ("  steps: 50", '  "\\0path": 50', 6, None, "NUL"),
    ("  steps: 50", "  [steps]: 50", 6, None, "a key that is not text"),
    ("  steps: 50", "  steps: 50\n---", 7, None, "single document"),
    ("  steps: 50", '  steps: "\\ud800"', 6, None, "surrogate"),
    ("  steps: 50", "  steps: \x01", 6, None, "a character that is not allowed: '\\x01'"),
    # lines are those of an editor, which breaks none at U+2028
    ("  steps: 50", "  # \u2028 \x85\n  steps: x", 7, "train.steps", "expected a whole number"),
]


def refused(folder: Path, text: str | bytes) -> RecipeError:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    return caught.value


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of the recipe in a folder: one line, with exit status 2, before anything is made."""
    capsys.readouterr()
    assert status(["run", str(folder / "recipe.yaml"), "--out", str(folder / "runs")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 1500
    assert not (folder / "runs").exists()
    return err


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("part", "instead", "line", "field", "phrase"), BAD, ids=[repr(row[1]) for row in BAD])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_bad(
    tmp_path: Path, part: str, instead: str, line: int, field: str | None, phrase: str, newline: str, capsys: Any
) -> None:
    assert GOOD.count(part) >= 1
    error = refused(tmp_path, GOOD.replace(part, instead, 1).replace("\n", newline))
    assert (error.line, error.field) == (line, field), str(error)
    assert phrase in str(error)
    assert told(tmp_path, capsys) == f"error: {error}\n"


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "an empty recipe"),
        ("# nothing\n", "an empty recipe"),
        ("- name: x\n", ":1: not a recipe; expected a mapping of keys"),
        ("just text", ":1: not a recipe"),
        (b"name: \xff\n", ":1: not UTF-8"),
        (b"seed: 1\nname: \xe4\n", ":2: not UTF-8"),
        (b"#" * (2**20 + 1), "too large"),
        (BOMB, "more than 10000 values"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 10_000, "nested too deeply"),
        (GOOD.encode("utf-16"), ":1: not UTF-8; save the file as UTF-8"),
        (GOOD.encode("utf-16-be"), ":1: not YAML: a character that is not allowed: '\\x00'"),
        (b"\x1f\x8b\x08\x00", ":1: not UTF-8"),
        ("name: x\n\ufffe: 3\n", ":2: not YAML: a character that is not allowed"),
    ],
    ids=range(14),
)
def test_not_a_recipe(tmp_path: Path, text: str | bytes, phrase: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert phrase in str(refused(tmp_path, text))
    told(tmp_path, capsys)


def test_a_mark_at_the_beginning_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read(tmp_path / "recipe.yaml").name == "four-domains"


SIZE = 2**20 - 4000


def filled(unit: str, size: int = SIZE) -> str:
    return unit * (size // len(unit))


def lines(line: str, count: int) -> str:
    return "".join(line.format(n) for n in range(count))


HOSTILE = {
    # as large as a recipe may be
    "laughs": BOMB,
    "quadratic aliases": "a: &a [" + "x, " * 9_000 + "x]\nb: [" + "*a, " * 200_000 + "*a]\n",
    "aliases": "- &a [x, x, x]\n" + filled("- *a\n"),
    "merge keys": "a: &a {k: 1}\n" + lines("b{}: {{<<: *a}}\n", 40_000),
    "nested mappings": filled("{a: "),
    "empty keys": filled("?\n"),
    "equal keys": filled("a: 1\n"),
    "keys": lines("k{}: 1\n", 90_000),
    "numbers": GOOD.replace("[1e-3, 3e-3]", f"[{lines('1.{}, ', 90_000)}1]"),
    "blank lines": filled("\n"),
    "a long name": GOOD.replace("four-domains", "x" * (SIZE - len(GOOD))),
    "a name on many lines": GOOD.replace("four-domains", filled("x\n  ", SIZE - len(GOOD))),
    "a long key": f"? {'k' * SIZE}\n: 1\n",
    # below the limit of values, so that all of it is checked
    "many unknown keys": GOOD + lines("k{}: 1\n", 4_000),
    "many experts without a kind": GOOD.replace("experts:\n", "experts:\n" + lines("  e{}: {{}}\n", 4_900)),
    "many targets": GOOD.replace("    rank: 4", f"    targets: [{'x, ' * 3_000}x]"),
    "many rates": GOOD.replace("[1e-3, 3e-3]", f"[{lines('1.5{}, ', 9_000)}0]"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_recipe_is_one_line_and_soon(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert len(text) <= 2**20
    assert str(tmp_path / "recipe.yaml") in told(tmp_path, capsys)


def test_of_a_file_that_is_far_too_large_only_the_beginning_is_read(tmp_path: Path) -> None:
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(50 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(RecipeError, match="too large for a recipe; expected at most 1048576 bytes"):
            read(tmp_path / "recipe.yaml")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_what_is_missing_beside_an_alias_is_missing_where_the_alias_stands(tmp_path: Path) -> None:
    text = "train: &t {steps: 5}\nseed: x\nname: y\nexperts: {one: {data: {demo: math}, train: *t}}\n"
    assert refused(tmp_path, text).field == "seed", "the first problem, as the anchor before it is none"


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="a folder, not a file"):
        read(tmp_path)


KEYS = [
    (number, match)
    for number, text in enumerate(GOOD.splitlines(), start=1)
    for match in re.finditer(r"\w+(?=:)", text)
    if match.group() not in ("math", "chat")
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from(KEYS), st.data())
def test_any_misspelt_key_is_an_error_on_its_line(
    tmp_path: Path, key: tuple[int, re.Match[str]], data: st.DataObject
) -> None:
    number, match = key
    at = data.draw(st.integers(0, len(match.group()) - 1))
    wrong = match.group()[:at] + data.draw(st.sampled_from("ZQJ")) + match.group()[at + 1 :]
    lines = GOOD.splitlines()
    lines[number - 1] = match.string[: match.start()] + wrong + match.string[match.end() :]
    error = refused(tmp_path, "\n".join(lines))
    assert error.line == number
    assert error.field and error.field.endswith(wrong)
    assert "unknown key" in str(error)
