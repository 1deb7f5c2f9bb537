import random
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
from encoding import encode
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.batches import Held, Packed, Schedule, Tokens, by_length, encode_all, pad
from moesaic.data.rows import Example
from moesaic.errors import DataError
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.testing import ByteTokenizer

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos


def example(prompt: str, response: str) -> Example:
    return Example(prompt, response, "g")


def rows_of(lengths: list[int]) -> list[Tokens]:
    """Rows whose ids tell them apart: row i is made of i alone."""
    return [Tokens([i] * length, 1, str(i)) for i, length in enumerate(lengths)]


def realistic(n: int) -> list[Tokens]:
    draw = random.Random(0)
    return rows_of([min(512, 2 + int(draw.lognormvariate(4.5, 0.8))) for _ in range(n)])


def logits_for(ids: torch.Tensor) -> torch.Tensor:
    return 20.0 * torch.nn.functional.one_hot(ids.clamp(min=0), 257).float()


# Encoding


def test_a_response_starts_with_a_line_break_and_ends_with_the_end():
    tokens = encode(example("ask", "say"), TOKENIZER, 100, 64)
    assert tokens == Tokens([*b"ask\nsay", EOS], 3, "g")


def test_of_plain_text_the_first_tokens_are_the_prompt_but_never_more_than_half():
    assert encode(example("", "x" * 50), TOKENIZER, 100, 8) == Tokens([*b"x" * 50, EOS], 8, "g")
    assert encode(example("", "x" * 9), TOKENIZER, 100, 64).prompt == 5
    assert encode(example("", "x"), TOKENIZER, 100, 64) == Tokens([*b"x", EOS], 1, "g")
    assert encode(example("", "x" * 9), TOKENIZER, 100, 0).prompt == 1


def test_what_is_cut_has_no_end():
    assert encode(example("", "0123456789"), TOKENIZER, 6, 2) == Tokens([*b"012345"], 2, "g", lost=5)
    assert encode(example("", "01234"), TOKENIZER, 6, 2) == Tokens([*b"01234", EOS], 2, "g")


@pytest.mark.parametrize(
    ("prompt", "response", "ids", "given"),
    [
        ("abcd", "xyz", [*b"abcd\nxyz", EOS], 4),
        ("abcdef", "xyz", [*b"bcdef\nxyz", EOS], 5),
        ("abcdefghijklm", "x", [*b"ghijklm\nx", EOS], 7),
        ("abcdefghijklm", "uvwxyz", [*b"ijklm\nuvwx"], 5),
        ("ab", "0123456789", [*b"ab\n0123456"], 2),
    ],
    ids=["fits", "prompt loses its start", "short response stays whole", "half each", "short prompt stays whole"],
)
def test_where_both_do_not_fit(prompt, response, ids, given):
    tokens = encode(example(prompt, response), TOKENIZER, 10, 64)
    assert tokens.ids == ids and tokens.prompt == given
    assert tokens.lost == max(0, len(prompt) + len(response) + 2 - 10)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


@given(st.just("") | texts, texts, st.integers(2, 60), st.integers(0, 80))
def test_every_row_has_a_prompt_and_something_scored(prompt, response, length, prompt_tokens):
    tokens = encode(example(prompt, response), TOKENIZER, length, prompt_tokens)
    whole = [*prompt.encode(), *(b"\n" if prompt else b""), *response.encode(), EOS]
    assert 0 < tokens.prompt < len(tokens.ids) <= length
    assert tokens.lost == len(whole) - len(tokens.ids)
    assert len(tokens.ids) == min(length, len(whole))
    assert (pad([tokens]).targets != UNSCORED).any()
    if tokens.lost:
        text = "".join(map(chr, tokens.ids))
        assert text in "".join(map(chr, whole)), "one run of the text"


def test_the_cut_are_counted():
    rows, cut = encode_all([example("ab", "c" * n) for n in range(1, 11)], TOKENIZER, 10, 64)
    assert [len(row.ids) for row in rows] == [5, 6, 7, 8, 9, 10, 10, 10, 10, 10]
    assert cut == 4


def test_what_leaves_nothing_to_score_is_refused():
    class Forgetful(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.replace("?", ""))

    for lost in (example("???", "say"), example("", "???")):
        with pytest.raises(DataError, match="expected at least one token of prompt and one after it"):
            encode(lost, Forgetful(), 10, 4)
    for short in (example("ask", "say"), example("", "say")):
        with pytest.raises(DataError, match="too short"):
            encode(short, TOKENIZER, 1, 4)


# Padding


def test_targets_are_the_next_token_and_neither_prompt_nor_pads_are_scored():
    batch = pad([Tokens([10, 11, 12, 13, 14], 2, "a"), Tokens([20, 21, 22], 1, "b")])
    assert batch.ids.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0]]
    assert batch.targets.tolist() == [[UNSCORED, 12, 13, 14], [21, 22, UNSCORED, UNSCORED]]


def test_a_scored_prompt_leaves_only_the_first_token_out():
    batch = pad([Tokens([10, 11, 12, 13, 14], 4, "a"), Tokens([20, 21, 22], 2, "b")], score_prompt=True)
    assert batch.targets.tolist() == [[11, 12, 13, 14], [21, 22, UNSCORED, UNSCORED]]


def test_who_copies_its_input_does_not_win():
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    rows = [encode(example("0123", alphabet), TOKENIZER, 100, 8), encode(example("", alphabet[:9]), TOKENIZER, 100, 2)]
    for batch in (pad(rows), pad(rows, score_prompt=True)):
        scored = batch.targets != UNSCORED
        copied, foreseen = (token_nll(logits_for(seen), batch.targets) for seen in (batch.ids, batch.targets))
        assert (copied[scored] > 19).all() and (foreseen[scored] < 1e-3).all()
        assert (copied[~scored] == 0).all()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_each_token_after_the_prompt_is_scored_once(sizes):
    rows = [Tokens(list(range(1, p + r + 1)), p, "g") for p, r in sizes]
    batch = pad(rows)
    for row, ids, targets in zip(rows, batch.ids, batch.targets, strict=True):
        assert targets[targets != UNSCORED].tolist() == row.ids[row.prompt :]
        assert ids.tolist()[: row.prompt] == row.ids[: row.prompt], "a router finds the whole prompt in the input"
        for seen, target in zip(ids.tolist(), targets.tolist(), strict=True):
            assert target in (UNSCORED, seen + 1)


# Order


def groups(rows: list[Tokens]) -> list[str]:
    return [row.group for row in rows]


@pytest.mark.parametrize(("n", "batch"), [(1, 8), (5, 8), (8, 8), (100, 8), (300, 8), (257, 4)])
def test_each_row_comes_once_an_epoch(n, batch):
    schedule = Schedule(realistic(n), batch, 3)
    assert schedule.steps == -(-n // batch)
    for epoch in range(3):
        batches = [schedule(epoch * schedule.steps + at) for at in range(schedule.steps)]
        assert sorted(chain.from_iterable(map(groups, batches))) == sorted(map(str, range(n)))
        assert sorted(map(len, batches))[1:] == [batch] * (schedule.steps - 1)


def test_a_schedule_is_a_function_of_seed_and_step():
    rows = realistic(90)
    used = Schedule(rows, 4, 5)
    walked = [groups(used(step)) for step in range(60)]
    assert groups(Schedule(rows, 4, 5)(37)) == walked[37] == groups(used(37))
    assert [groups(used(step)) for step in reversed(range(60))] == walked[::-1]
    assert [groups(Schedule(rows, 4, 6)(step)) for step in range(60)] != walked
    assert walked[:23] != walked[23:46], "epochs differ"


def test_the_order_is_the_same_in_every_version():
    schedule = Schedule(rows_of([3] * 12), 4, 0)
    assert [groups(schedule(step)) for step in range(4)] == [
        ["11", "6", "8", "2"],
        ["0", "3", "9", "7"],
        ["1", "10", "4", "5"],
        ["2", "9", "3", "1"],
    ]


def test_batches_of_similar_length_come_in_no_order_of_length():
    schedule = Schedule(realistic(1600), 8, 0)
    widths = [max(len(row.ids) for row in schedule(step)) for step in range(schedule.steps)]
    rising = sum(a < b for a, b in pairwise(widths)) / len(widths)
    assert 0.4 < rising < 0.6


def test_little_is_padding():
    schedule = Schedule(realistic(1000), 16, 0)
    batches = [schedule(step) for step in range(schedule.steps)]
    real = sum(len(row.ids) - 1 for rows in batches for row in rows)
    assert 1 - real / sum(pad(rows).ids.numel() for rows in batches) < 0.15


def test_a_schedule_names_the_rows_of_a_batch_in_its_order():
    rows = [Tokens([1, 2, 3], 1, "same", source=f"a.jsonl:{line}") for line in range(1, 24)]
    schedule = Schedule(rows, 4, 0)
    for step in (0, 5, 6, 13):
        assert schedule.names(step) == [row.source for row in schedule(step)]
    assert sorted(name for step in range(6) for name in schedule.names(step)) == sorted(row.source for row in rows)


def test_where_a_row_was_read_travels_with_its_tokens_and_changes_nothing():
    for prompt in ("", "ask"):
        here, there = (replace(example(prompt, "say"), source=f"a.jsonl:{line}") for line in (1, 2))
        tokens = [encode(one, TOKENIZER, 20, 2) for one in (here, there)]
        assert [one.source for one in tokens] == ["a.jsonl:1", "a.jsonl:2"]
        assert tokens[0] == tokens[1]


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        Schedule([], 4, 0)


# Like length


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 7))
def test_batches_by_length_hold_every_index_once_and_keep_the_order_of_equals(lengths, batch):
    batches = list(by_length(lengths, batch))
    places = list(chain.from_iterable(batches))
    assert sorted(places) == list(range(len(lengths)))
    assert all((lengths[a], a) < (lengths[b], b) for a, b in pairwise(places))
    assert [len(some) for some in batches[:-1]] == [batch] * (len(batches) - 1)


# Packing


def numbered(lengths: list[int]) -> list[Tokens]:
    """Rows of consecutive numbers, no number twice."""
    start, rows = 0, []
    for length in lengths:
        rows.append(Tokens(list(range(start, start + length)), 1, str(start)))
        start += length
    return rows


def test_a_packed_epoch_scores_every_token_once_but_the_first_and_the_last_few():
    lengths = [2 + i % 17 for i in range(90)]
    packed = Packed(Held(numbered(lengths)), 8, 4, 1)
    batches = [packed(step) for step in range(packed.steps)]
    assert all(batch.ids.shape == batch.targets.shape == (4, 8) for batch in batches)
    inputs = torch.cat([batch.ids.flatten() for batch in batches])
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert torch.equal(inputs[1:], targets[:-1]), "targets are the next token, over the edges of pieces too"
    assert len(targets.unique()) == len(targets) == (sum(lengths) - 1) // 32 * 32
    starts = {row.ids[0] for row in numbered(lengths)}
    assert all(b == a + 1 or b in starts for a, b in zip(inputs.tolist(), targets.tolist(), strict=True))


@given(st.lists(st.integers(2, 40), min_size=12, max_size=30), st.integers(1, 4), st.integers(4, 12))
def test_packing_names_the_rows_that_a_batch_holds_a_part_of(lengths, batch, length):
    rows = [replace(row, source=row.group) for row in numbered(lengths)]
    packed = Packed(Held(rows), length, batch, 1)
    home = {number: row.source for row in rows for number in row.ids}
    for step in range(2 * packed.steps):
        drawn = packed(step)
        held = [*drawn.ids.flatten().tolist(), drawn.targets.flatten().tolist()[-1]]
        assert packed.names(step) == list(dict.fromkeys(home[number] for number in held))


def test_packing_is_a_function_of_seed_and_step():
    rows = numbered([9] * 40)
    used = Packed(Held(rows), 8, 4, 1)
    walked = [used(step).ids for step in range(40)]
    assert torch.equal(Packed(Held(rows), 8, 4, 1)(37).ids, walked[37])
    assert torch.equal(used(2).ids, walked[2])
    assert not torch.equal(Packed(Held(rows), 8, 4, 2)(0).ids, walked[0])
    assert not torch.equal(walked[0], walked[used.steps]), "epochs differ"


def test_little_text_makes_smaller_batches_and_too_little_is_refused():
    packed = Packed(Held(numbered([10, 7])), 8, 4, 0)
    assert packed.steps == 1 and packed(5).ids.shape == (2, 8)
    with pytest.raises(DataError, match="expected more than 8 tokens"):
        Packed(Held(numbered([8])), 8, 4, 0)
    with pytest.raises(DataError):
        Packed(Held([]), 8, 4, 0)


# Documents in packed rows


def test_apart_every_token_has_the_number_of_its_text_and_none_predicts_the_next_text():
    lengths = [2 + i % 7 for i in range(60)]
    together, apart = (Packed(Held(numbered(lengths)), 8, 4, 1, apart=some) for some in (False, True))
    home = {number: index for index, row in enumerate(numbered(lengths)) for number in row.ids}
    for step in range(2 * apart.steps):
        plain, batch = together(step), apart(step)
        assert plain.documents is None and torch.equal(plain.ids, batch.ids)
        for ids, targets, kept, documents in zip(batch.ids, plain.targets, batch.targets, batch.documents, strict=True):
            homes = [home[token] for token in ids.tolist()]
            assert [a == b for a, b in pairwise(homes)] == [a == b for a, b in pairwise(documents.tolist())]
            assert min(documents) >= 1, "0 is padding"
            same = torch.tensor([home[token] for token in targets.tolist()]) == torch.tensor(homes)
            assert torch.equal(kept, torch.where(same, targets, UNSCORED))


def test_targets_are_shifted_once_so_neither_a_copier_nor_a_shift_by_one_can_win():
    """Models that put all probability on the input, or on the token before it, are wrong at every scored place."""
    for apart in (False, True):
        batch = Packed(Held(numbered([5, 9, 3, 7, 8, 6, 12])), 6, 2, 3, apart=apart)(0)
        scored = batch.targets != UNSCORED
        before = batch.ids.roll(1, 1)
        assert not (batch.ids == batch.targets).any() and not (before == batch.targets)[scored].any()
        follows = batch.targets == batch.ids + 1
        assert follows[scored].all() if apart else follows.any()
        for ids, right in ((batch.ids, 0), (before, 0), (batch.targets.clamp_min(0), int(scored.sum()))):
            logits = torch.nn.functional.one_hot(ids, 64) * 1e4
            losses = token_nll(logits.double(), batch.targets)
            assert int((losses[scored] < 1).sum()) == right and not losses[~scored].any()


def test_a_text_is_read_as_often_as_there_are_epochs():
    packed = Packed(Held(numbered([9] * 40)), 8, 4, 1)
    assert (packed.tokens, packed.steps, packed.epochs(packed.steps)) == (360, 11, 352 / 360)
