import pytest

from moesaic.data.facts import alike, facts_of, spelling, told
from moesaic.data.rows import Example, examples_of
from moesaic.data.splits import Domain


def labelled(text: str, label: str) -> Example:
    return Example(text, label, text, texts=(text,))


def domain(train, validation=(), test=(), labels=()) -> Domain:
    return Domain("mail", [*train], [*validation], [*test], {}, labels)


MAIL = domain(
    [labelled("buy", "spam"), labelled("hello", "ham"), labelled("Sell ", "spam"), labelled("sell", "Spam ")],
    [labelled("buy", "ham")],
    [labelled("bye", "ham")],
    labels=("Spam ", "ham", "spam"),
)


def test_labels_are_counted_by_split_and_those_of_one_spelling_named():
    found = facts_of(MAIL)
    assert found["labels"] == {
        "train": {"spam": 2, "ham": 1, "Spam ": 1},
        "validation": {"ham": 1},
        "test": {"ham": 1},
    }
    assert found["labels_alike"] == [["Spam ", "spam"]]
    assert alike(["caf\u00e9", "cafe\u0301", "a  b", "A B", "c"]) == [["caf\u00e9", "cafe\u0301"], ["a  b", "A B"]]


def test_texts_with_two_labels_are_counted_over_all_splits():
    assert facts_of(MAIL)["texts_with_two_labels"] == 2, "buy, and sell in two spellings"


def test_prompts_that_train_and_test_share_are_counted_and_texts_without_prompts_are_not():
    asked = [Example("a?", "yes", "1"), Example("b?", "no", "2"), Example("", "once", "3")]
    other = [Example(" A?", "no", "4"), Example("c?", "no", "5"), Example("", "once", "6")]
    assert facts_of(domain(asked, test=other)) == {"prompts_in_train_and_test": 1}


def test_a_fact_that_does_not_hold_is_absent_and_not_told():
    assert facts_of(domain([Example("a", "b", "1")])) == {} and [*told("mail", {})] == []


def test_each_fact_is_a_sentence_with_the_name_of_the_domain():
    assert [*told("mail", facts_of(MAIL) | {"prompts_in_train_and_test": 1})] == [
        "mail: labels: 'spam' 2, 'ham' 1, 'Spam ' 1 rows in train",
        "mail: labels that differ only in case or white space: 'Spam ', 'spam'; one spelling makes them one label",
        "mail: 2 texts have two labels",
        "mail: 1 test prompts are in train too, with other answers",
    ]


END = "<|end|>"
TALK = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
SPELLED = {
    "text": {"text": f"a {END}"},
    "prompt": {"prompt": f"a {END}", "response": "b"},
    "response": {"prompt": "a", "response": f"b {END}"},
    "instruction": {"instruction": "a", "input": END, "output": "b"},
    "first message": {"messages": [{"role": "system", "content": END}, *TALK]},
    "first answer": {"messages": [TALK[0], {"role": "assistant", "content": END}, *TALK[2:]]},
    "last answer": {"messages": [*TALK[:3], {"role": "assistant", "content": END}]},
}


def spelled(text: str) -> str | None:
    return END if END in text else None


@pytest.mark.parametrize("where", SPELLED)
def test_a_row_that_spells_a_special_token_anywhere_is_counted_once(where):
    rows = [*examples_of(SPELLED[where]), *examples_of({"messages": TALK}), *examples_of({"text": "a <|e"})]
    found = spelling(rows, spelled)
    assert found is not None and found.startswith(f"1 of 3 rows spell special tokens, such as {END}, which are read as")
    assert found.endswith("give messages, which the chat template writes")


def test_rows_that_spell_none_give_no_warning():
    assert spelling(examples_of({"messages": TALK}), spelled) is None
