"""Counts of characters and of last words are those of plain loops, and tell what tokens hide."""

import re
from collections import Counter
from itertools import pairwise
from zlib import crc32

import pytest
import torch

from moesaic.model.text_counts import LAST, SIZE, characters, last_words, wording
from moesaic.sections.routers import RouterSpec
from moesaic.train.routers import Labelled, train_router

ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
TEXTS = ["", "a", "Aa", "The mat.", "über 木 \U0001f600", "a\nb\ud800", "word " * 300]


def bucket(run: str) -> int:
    mixed = len(run)
    for character, odd in zip(run, ODD, strict=False):
        mixed = ((mixed ^ ord(character)) * odd) % 2**32
        mixed ^= mixed >> 15
    return mixed * ODD[0] % 2**32 >> 20


@pytest.mark.parametrize("text", TEXTS)
def test_every_run_of_up_to_three_characters_is_counted_in_its_bucket(text):
    marked = "\x02" + text.strip() + "\x03"
    runs = [marked[at : at + n] for n in (1, 2, 3) for at in range(len(marked) - n + 1)]
    expected = torch.zeros(SIZE)
    for place, count in Counter(map(bucket, runs)).items():
        expected[place] = count**0.5
    torch.testing.assert_close(characters([text])[0], expected / expected.norm())


def test_buckets_are_used_alike():
    counts = Counter(bucket(chr(a) + chr(b)) for a in range(32, 127) for b in range(32, 127))
    assert len(counts) > 0.85 * SIZE, "9,025 pairs thrown at random leave a share of e^-2.2 empty"
    assert max(counts.values()) <= 12


def test_white_space_around_a_text_does_not_count_and_case_does():
    one, spaced, lower = characters(["The mat.", "  The mat.\n", "the mat."])
    assert one.equal(spaced)
    assert not one.equal(lower)


def test_a_linear_router_tells_the_cased_from_the_uncased_and_no_rare_run_decides():
    words = ["river", "stone", "candle", "window", "garden", "letter", "silver", "winter"]
    generator = torch.Generator().manual_seed(0)
    plain = [" ".join(words[i] for i in torch.randint(8, (5,), generator=generator)) for _ in range(160)]
    texts, labels = [*plain[:80], *(text.capitalize() for text in plain[80:])], torch.arange(160) // 80
    learned = torch.arange(160) % 2 == 0
    found = characters(texts)
    train, validation = Labelled(found[learned], labels[learned]), Labelled(found[~learned], labels[~learned])
    spec = RouterSpec(kind="linear", feature="characters", epochs=20, lr=1e-2)
    router, metrics = train_router(spec, train, validation, {}, 2, 0, lambda row: None)
    assert metrics["accuracy"] == 1.0
    assert router.get_buffer("deviation").unique().numel() == 1


@pytest.mark.parametrize("text", TEXTS)
def test_the_last_words_and_their_pairs_are_counted_in_lower_case(text):
    some = re.findall(r"\w+|[^\w\s]", text.strip()[-LAST:].lower())
    expected = torch.zeros(SIZE)
    for one, count in Counter([*some, *map(" ".join, pairwise(some))]).items():
        expected[crc32(one.encode("utf-8", "surrogatepass")) % SIZE] += count
    expected = expected.sqrt()
    torch.testing.assert_close(last_words([text])[0], expected / expected.norm().clamp_min(1))


def test_last_words_do_not_depend_on_what_stands_before():
    asked = ("What is the sum of three and four, and of all primes between them? " * 3).strip()
    alone, behind = last_words([asked[-LAST:], f"Hello! Good morning. {asked.upper()} "])
    assert torch.equal(alone, behind)
    both = wording([asked, "x"])
    assert torch.equal(both, torch.cat([characters([asked, "x"]), last_words([asked, "x"])], 1))
