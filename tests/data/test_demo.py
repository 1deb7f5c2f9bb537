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
from moesaic.data.demo.scenarios import read_scenarios
from moesaic.data.demo.shapes import Exchange, Groups, shaped
from moesaic.data.demo.tables import members, table
from moesaic.errors import DataError
from moesaic.sections.sources import DemoDomain

EVERY = [(domain, split) for domain in demo.DOMAINS for split in demo.SIZES]
LEAST = {"train": 300, "validation": 100, "test": 200}
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
FORMS = ("plain", "one exchange", "several exchanges")

# Rows that depend on no Python version, by domain and split: sha256 of their JSON.
GOLDEN = {
    "math train": "c470d76f9fe2c87e43628acd259b070b03ecfe16561c01e76f19ce3a3ca0f930",
    "math validation": "3f78f97f4ff968ae5a7eaf5d50d8cdba0c67b3f001e30354b168b5c2aae7149b",
    "math test": "07c04d7a1b642ce45df605ab8d16eaf0e75f17562e16440e774480106f8a9843",
    "dialogue train": "6b4a3e959b69ca26cdb115da668bcf18cf695eded2c5a3afdd83e25ed9ff641d",
    "dialogue validation": "021b659df8092a43b6331bb96214b4dea885270a3143a0575a75bbe8c7626fd3",
    "dialogue test": "1c30e9f0869f89058bee600abc3abb671c5d10fe98e1e6f4eeb775ca3953967c",
    "cooking train": "172dc473ee8f98374467957ebebf3635d3917cabd9d8e3b7e26df85e7a6dd003",
    "cooking validation": "7f6cc814c8e0e2c0bfef8ab37323468fdd1a092072f82b56ec5721464706cbfe",
    "cooking test": "07c39227ec090dca2fe8b9f7d513df46985f4f6395da7c594519fbeae887df0c",
}

IN_A_NEW_PROCESS = """
import hashlib, json
from moesaic.data import demo
rows = {f"{domain} {split}": demo.rows(domain, split) for domain in demo.DOMAINS for split in demo.SIZES}
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def form(row: dict) -> str:
    return FORMS[0] if "prompt" in row else FORMS[1] if len(row["messages"]) == 2 else FORMS[2]


def exchanges(row: dict) -> list[Exchange]:
    """The exchanges of a row in any shape."""
    if "prompt" in row:
        return [Exchange(row["prompt"], row["response"])]
    texts = [message["content"] for message in row["messages"]]
    return [Exchange(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def test_every_domain_says_where_it_comes_from() -> None:
    assert demo.DOMAINS == get_args(DemoDomain) == ("code", "prose", "math", "dialogue", "cooking")
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
def test_there_are_enough_rows_in_the_forms_that_every_domain_has(domain: str, split: str) -> None:
    rows = demo.rows(domain, split)
    assert LEAST[split] <= len(rows) <= demo.SIZES[split]
    assert all(row.keys() in ({"prompt", "response"}, {"messages"}) for row in rows)
    forms = Counter(map(form, rows))
    assert min(forms[name] for name in FORMS) > 0.03 * len(rows), forms
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
def test_a_module_a_topic_or_a_template_is_in_one_split_only(domain: str) -> None:
    group = {
        (first.ask, first.answer): name
        for name, conversations in demo.GROUPS[domain](0).items()
        for first, *_ in conversations
    }
    splits = [{group[exchanges(row)[0]] for row in demo.rows(domain, split)} for split in demo.SIZES]
    assert not any(one & other for one, other in combinations(splits, 2))
    assert all(len(names) > 3 for names in splits)


def test_rows_of_a_group_are_dealt_to_every_form_and_none_is_lost() -> None:
    given = [[Exchange(f"ask {number}", f"answer {number}")] for number in range(200)]
    for count in range(1, 20):
        rows = list(shaped(given[:count], "seed"))
        assert [exchange for row in rows for exchange in exchanges(row)] == [one for [one] in given[:count]]
    rows = list(shaped(given, "seed"))
    assert Counter(map(form, rows)).keys() == set(FORMS)
    assert list(shaped(given, "seed")) == rows != list(shaped(given, "another"))
    talk = [Exchange("Hello.", "Hello!"), Exchange("Bye.", "Goodbye.")]
    assert [exchanges(row) for row in shaped([talk], "seed")] == [talk]


def test_what_is_nearly_in_a_later_split_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "and so the fox went home to its den and slept until the sun was up again over the hill"
    told: Groups = {f"opening {n}": [[Exchange(f"Once {n}", answer)]] for n in range(900)}
    monkeypatch.setitem(demo.GROUPS, "prose", lambda seed: told)
    splits = demo.dealt.__wrapped__("prose", 0)
    assert len(splits["test"]) == demo.SIZES["test"] and not splits["validation"] and not splits["train"]


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
    at = next(number for number, row in enumerate(demo.rows("dialogue", "test")) if "messages" in row)
    demo.rows("dialogue", "test")[at]["messages"].clear()
    assert demo.rows("dialogue", "test")[at]["messages"]


def test_a_misspelt_name_is_refused_with_a_hint() -> None:
    with pytest.raises(DataError, match="did you mean 'dialogue'"):
        demo.rows("dialog", "train")
    with pytest.raises(DataError, match="did you mean 'validation'"):
        demo.rows("math", "validate")
    with pytest.raises(DataError, match="no such domain"):
        demo.provenance("poetry")


@pytest.mark.parametrize("split", demo.SIZES)
def test_code_is_functions_and_imports_that_parse(split: str) -> None:
    pairs = [exchange for row in demo.rows("code", split) for exchange in exchanges(row)]
    assert sum(map(parses, pairs)) > 0.9 * len(pairs)
    heads = Counter(ask.split()[0] for ask, _ in pairs)
    assert heads["def"] > 0.2 * len(pairs) and heads["import"] + heads["from"] > 0.005 * len(pairs)


def test_every_small_function_parses_and_has_as_many_names_as_wordings() -> None:
    written = table("tasks.yaml")
    assert len(written["tasks"]) >= 20
    for task in written["tasks"]:
        assert len(task["requests"]) == len(task["code"])
        slots = {slot: pool[0] for slot, pool in written["pools"].items()}
        for head in task["code"]:
            ast.parse(f"{head}\n{task['body']}".format(**slots))


def parses(pair: Exchange) -> bool:
    for text in (pair.answer, f"{pair.ask}\n{pair.answer}"):
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        return True
    return False


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
        for ask, answer in exchanges(row):
            assert len(ask) + len(answer) <= prose.LONG
            assert not re.search(r"::=|>>>|={4}|-{4}|\*{4}|\+-|\S {3,}\S", ask + answer)


def test_prose_repeats_no_text_of_the_reference() -> None:
    pairs = [exchange for split in demo.SIZES for row in demo.rows("prose", split) for exchange in exchanges(row)]
    stories = tuple(entry["answer"][-12:] for entry in table("stories.yaml")["exchanges"])
    assert all(pair.answer.endswith(stories) for pair, times in Counter(pairs).items() if times > 1)


@pytest.mark.parametrize("split", demo.SIZES)
def test_every_sum_is_right_and_is_of_the_numbers_that_are_given(split: str) -> None:
    for row in demo.rows("math", split):
        for ask, answer in exchanges(row):
            left, operator, right, result = EQUATION.fullmatch(answer).groups()
            assert Counter(re.findall(r"\d+", ask)) == Counter([left, right]), row
            assert int(result) == {"+": int(left) + int(right), "-": int(left) - int(right)}[operator]
            assert 1 <= int(right) < arithmetic.TEN and int(left) + int(right) * (operator == "+") <= arithmetic.TEN


@pytest.mark.parametrize("seed", [0, 1])
def test_every_fact_is_learned_and_every_sort_of_question_is_judged(seed: int) -> None:
    learned = {answer for row in demo.rows("math", "train", seed) for _, answer in exchanges(row)}
    facts = {f"{a} {sign} {b} = {c}" for sign, some in arithmetic.FACTS.items() for a, b, c in some}
    assert learned == facts
    words = [len(ask.split()) for row in demo.rows("math", "test", seed) for ask, _ in exchanges(row)]
    assert min(words) < 6 and max(words) > 10


def test_a_pool_is_a_list_or_a_range_of_numbers() -> None:
    assert list(members("20 to 50 by 10")) == [20, 30, 40, 50]
    assert list(members("-1 to 1")) == [-1, 0, 1]
    assert members(["2 to 3"]) == ["2 to 3"]
    with pytest.raises(ValueError, match="2 till 3"):
        members("2 till 3")


def test_every_question_names_its_numbers_and_known_things() -> None:
    written = table("problems.yaml")
    names = {name for names in written["pools"] for name in names.split()}
    for sort in arithmetic.DRAWN:
        for templates in written[sort].values():
            for template in templates:
                assert {"a", "b"} <= open_slots([template]) <= {"a", "b"} | names, template


@pytest.mark.parametrize("split", demo.SIZES)
def test_dialogues_alternate_and_leave_no_slot_open(split: str) -> None:
    for row in demo.rows("dialogue", split):
        turns = exchanges(row)
        assert 1 <= len(turns) <= 5, turns
        for _, text in turns:
            assert text
            assert not re.search(r"[\[\]{}|]|  | [.,?!]|[?!][.?!]|\.\.|^\W*[a-z]", text), text
        assert not any(re.search(r"[\[\]{}|]|  | [.,?!]", ask) for ask, _ in turns), turns


def test_dialogues_are_many_and_begin_in_many_ways() -> None:
    assert len(read_scenarios().scenarios) >= 15
    rows = demo.rows("dialogue", "train")
    openings = [exchanges(row)[0].ask for row in rows]
    for words, share in ((1, 0.25), (2, 0.1), (3, 0.05)):
        [(_, most)] = Counter(" ".join(text.split()[:words]) for text in openings).most_common(1)
        assert most < share * len(openings)
    assert Counter(len(exchanges(row)) for row in rows).keys() >= {1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("generator", [arithmetic, dialogue, code, prose])
def test_a_generator_repeats_itself_for_the_same_seed_only(generator: ModuleType) -> None:
    assert generator.groups(7) == generator.groups(7) != generator.groups(8)


def test_a_phrase_takes_one_wording_and_begins_with_a_capital() -> None:
    assert worded("[a [very |]fine|a good] day[|!]", Random(0)) in {
        f"{day} day{end}" for day in ("a very fine", "a fine", "a good") for end in ("", "!")
    }
    assert worded("Sure , [|] why not ?", Random(0)) == "Sure, why not?"
    assert filled("on {day}. {day}?", {"day": "monday"}) == "On monday. Monday?"
