"""The demo data: its shape, its sizes, that it is the same every time, and that its sums are right.

Knows no particular row: code and prose differ from one Python version to the next.
"""

import ast
import json
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from random import Random
from types import ModuleType
from typing import get_args

import pytest

from moesaic.data import demo
from moesaic.data.demo import code, dialogue, prose, stdlib
from moesaic.data.demo import math as arithmetic
from moesaic.data.demo.phrases import filled, open_slots, worded
from moesaic.data.demo.problems import read_problems
from moesaic.data.demo.scenarios import read_scenarios
from moesaic.data.demo.tables import members
from moesaic.errors import DataError
from moesaic.sections.sources import DemoDomain

EVERY = [(domain, split) for domain in demo.DOMAINS for split in demo.SIZES]
LEAST = {"train": 600, "validation": 100, "test": 200}
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
CONSTANTS = {"2", "3", "5", "20", "60", "100"}  # that a solution may use without the question naming them

# Rows that depend on no Python version, by domain and split: sha256 of their JSON.
GOLDEN = {
    "math train": "3df66c24e9f40d879e748f638aabd8aafe3ac0faa43ae9f4f735af35e827f968",
    "math validation": "a6aa2d80c40f016ace0d8bd2a8ad374ae60b539023e766039cd057bfd6ffdb79",
    "math test": "be309250718dc44127189cbf87ee6cbaff358340a7779058aaaa9dd7357ada63",
    "dialogue train": "0433e8c17e860ff87b31d2e7df8a4ea7a6414a67c2084b870f286af8bbf05b50",
    "dialogue validation": "a504e89590182240326e6db641f6155c24ce222fdf36ea1f6746b56703c29f87",
    "dialogue test": "1aee10833a4b0e1063ebffe50e640aaa57d492f6a93c78e37b9efde5088c26ee",
}

IN_A_NEW_PROCESS = """
import hashlib, json
from moesaic.data import demo
rows = {f"{domain} {split}": demo.rows(domain, split) for domain in demo.DOMAINS for split in demo.SIZES}
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def test_there_are_four_domains_and_each_says_where_it_comes_from() -> None:
    assert demo.DOMAINS == get_args(DemoDomain) == ("code", "prose", "math", "dialogue")
    version = sys.version.split()[0].rstrip("+")
    for domain in demo.DOMAINS:
        sentence = demo.provenance(domain)
        assert sentence.endswith(".") and "\n" not in sentence
        assert (version in sentence) == (domain in ("code", "prose"))


@pytest.mark.parametrize("place", GOLDEN)
def test_the_generated_rows_are_the_same_byte_for_byte(place: str) -> None:
    rows = json.dumps(demo.rows(*place.split()), ensure_ascii=False)
    assert sha256(rows.encode()).hexdigest() == GOLDEN[place]


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "split"), EVERY)
def test_there_are_enough_rows_of_one_shape(domain: str, split: str) -> None:
    rows = demo.rows(domain, split)
    assert LEAST[split] <= len(rows) <= demo.SIZES[split]
    shape = {"prose": {"text"}, "dialogue": {"messages"}}.get(domain, {"prompt", "response"})
    assert all(row.keys() == shape for row in rows)
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert str(Path(sys.prefix)) not in json.dumps(rows)


@pytest.mark.slow
@pytest.mark.parametrize("domain", demo.DOMAINS)
def test_no_row_is_in_two_splits_whatever_the_seed(domain: str) -> None:
    for seed in (0, 1):
        splits = [{json.dumps(row).casefold() for row in demo.rows(domain, split, seed)} for split in demo.SIZES]
        assert not any(one & other for one, other in combinations(splits, 2))
    assert demo.rows(domain, "test", 0) != demo.rows(domain, "test", 1)


@pytest.mark.slow
@pytest.mark.parametrize("domain", demo.DOMAINS)
def test_a_module_a_topic_or_a_wording_is_in_one_split_only(domain: str) -> None:
    group = {json.dumps(row): name for name, rows in demo.GROUPS[domain](0).items() for row in rows}
    splits = [{group[json.dumps(row)] for row in demo.rows(domain, split)} for split in demo.SIZES]
    assert not any(one & other for one, other in combinations(splits, 2))
    assert all(len(names) > 5 for names in splits)


@pytest.mark.slow
def test_all_of_it_is_small_and_the_same_in_another_process() -> None:
    hashes = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", IN_A_NEW_PROCESS]
        done = subprocess.run(command, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, check=True, text=True)
        hashes.add(done.stdout)
    assert len(hashes) == 1
    assert sum(len(json.dumps(demo.rows(domain, split))) for domain, split in EVERY) < 5_000_000


def test_changing_a_row_does_not_change_the_next_answer() -> None:
    demo.rows("dialogue", "test")[0]["messages"].clear()
    assert demo.rows("dialogue", "test")[0]["messages"]


def test_a_misspelt_name_is_refused_with_a_hint() -> None:
    with pytest.raises(DataError, match="did you mean 'dialogue'"):
        demo.rows("dialog", "train")
    with pytest.raises(DataError, match="did you mean 'validation'"):
        demo.rows("math", "validate")
    with pytest.raises(DataError, match="no such domain"):
        demo.provenance("poetry")


@pytest.mark.parametrize("split", demo.SIZES)
def test_code_is_the_beginning_of_a_function(split: str) -> None:
    rows = demo.rows("code", split)
    for row in rows:
        assert code.PROMPT[0] <= len(row["prompt"]) <= code.PROMPT[1]
        assert code.RESPONSE[0] <= len(row["response"]) <= code.RESPONSE[1]
        assert row["prompt"].startswith(("def ", "async def ", "@")) and not row["prompt"].endswith("\n")
    assert sum(map(parses, rows)) > 0.85 * len(rows)


def parses(row: dict) -> bool:
    try:
        ast.parse(row["prompt"] + "\n" + row["response"])
    except SyntaxError:
        return False
    return True


def test_a_python_without_its_sources_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="source"):
        stdlib.modules.__wrapped__()


def test_a_python_without_its_reference_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="pydoc_data"):
        prose.paragraphs.__wrapped__()


@pytest.mark.parametrize("split", demo.SIZES)
def test_prose_is_free_of_code_grammar_and_rulers(split: str) -> None:
    for row in demo.rows("prose", split):
        assert prose.ROW <= len(row["text"]) <= prose.LONG
        assert not re.search(r"::=|>>>|={4}|-{4}|\*{4}|\+-|\S {3,}\S", row["text"])


def test_prose_repeats_no_paragraph() -> None:
    rows = [row["text"] for split in demo.SIZES for row in demo.rows("prose", split)]
    paragraphs = Counter(paragraph for text in rows for paragraph in text.split("\n\n") if len(paragraph) > 150)
    assert max(paragraphs.values()) == 1


@pytest.mark.parametrize("split", demo.SIZES)
def test_every_sum_is_right_and_uses_only_what_is_given(split: str) -> None:
    for row in demo.rows("math", split):
        *steps, last = row["response"].split("\n")
        given = CONSTANTS | set(re.findall(r"\d+", row["prompt"]))
        result = ""
        for line in steps:
            (left, operator, right, result), *more = EQUATION.findall(line)
            assert not more
            assert {left, right} <= given, row
            assert (
                int(result)
                == {
                    "+": int(left) + int(right),
                    "-": int(left) - int(right),
                    "*": int(left) * int(right),
                    "/": int(left) / int(right),
                }[operator]
            )
            given.add(result)
        assert last == f"Answer: {result}"


def test_a_pool_is_a_list_or_a_range_of_numbers() -> None:
    assert list(members("20 to 50 by 10")) == [20, 30, 40, 50]
    assert list(members("-1 to 1")) == [-1, 0, 1]
    assert members(["2 to 3"]) == ["2 to 3"]
    with pytest.raises(ValueError, match="2 till 3"):
        members("2 till 3")


def test_problems_are_many_and_every_question_names_its_numbers() -> None:
    pools, problems = read_problems()
    assert len(problems) >= 25
    names = open_slots("{" + key.replace(" ", "} {") + "}" for key in pools)
    for problem in problems:
        for question in problem.questions:
            assert open_slots([question]) - names == problem.numbers.keys(), question
        results = problem.numbers.keys() | {step.result for step in problem.steps}
        assert open_slots(step.saying for step in problem.steps) <= results | names | {"eq"}


@pytest.mark.parametrize("split", demo.SIZES)
def test_masked_questions_are_not_shared(split: str) -> None:
    here, others = set(), set()
    for other in demo.SIZES:
        questions = {re.sub(r"\d+", "0", row["prompt"]) for row in demo.rows("math", other)}
        (here if other == split else others).update(questions)
    assert not here & others


@pytest.mark.parametrize("split", demo.SIZES)
def test_dialogues_alternate_and_leave_no_slot_open(split: str) -> None:
    for row in demo.rows("dialogue", split):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(roles) // 2 <= 5
        for message in row["messages"]:
            assert message["content"]
            assert not re.search(r"[\[\]{}|]|  | [.,?!]|[?!][.?!]|\.\.|^\W*[a-z]", message["content"]), message


def test_dialogues_are_many_and_begin_in_many_ways() -> None:
    assert len(read_scenarios().scenarios) >= 15
    openings = [row["messages"][0]["content"] for row in demo.rows("dialogue", "train")]
    assert len(set(openings)) > 0.8 * len(openings)
    # A fifth begin with "I", which is no fixed phrase; what counts is that longer beginnings are rare.
    for words, share in ((1, 0.25), (2, 0.1), (3, 0.05)):
        [(_, most)] = Counter(" ".join(text.split()[:words]) for text in openings).most_common(1)
        assert most < share * len(openings)
    lengths = Counter(len(row["messages"]) for row in demo.rows("dialogue", "train"))
    assert lengths.keys() == {4, 6, 8, 10}


@pytest.mark.slow
@pytest.mark.parametrize("generator", [arithmetic, dialogue])
def test_a_generator_repeats_itself_for_the_same_seed_only(generator: ModuleType) -> None:
    assert generator.groups(7) == generator.groups(7) != generator.groups(8)


def test_a_phrase_takes_one_wording_and_begins_with_a_capital() -> None:
    assert worded("[a [very |]fine|a good] day[|!]", Random(0)) in {
        f"{day} day{end}" for day in ("a very fine", "a fine", "a good") for end in ("", "!")
    }
    assert worded("Sure , [|] why not ?", Random(0)) == "Sure, why not?"
    assert filled("on {day}. {day}?", {"day": "monday"}) == "On monday. Monday?"
