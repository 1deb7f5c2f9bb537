"""Tests of scores on unseen documents: nothing wins that does not predict text."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moesaic.config import sized
from moesaic.errors import DataError
from moesaic.lab.documents import RowNats, Unseen
from moesaic.lab.paired import bits_per_byte
from moesaic.model.decoder import Decoder, initialise
from moesaic.ops.losses import Targets, token_nll
from moesaic.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat", "a dog and a cat", "naïve café", "her mat"]
SURE = 30.0

Logits = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 270)


def documents(tokenizer: Tokenizer, texts: list[str] = TEXTS) -> list[list[int]]:
    return [[*tokenizer.encode(text), tokenizer.eos] for text in texts]


def uniform(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*ids.shape, 270)


def copier(ids: torch.Tensor) -> torch.Tensor:
    """Is sure that the next token is the one just read: wins where targets are not shifted."""
    return SURE * F.one_hot(ids, 270).float()


def late(ids: torch.Tensor) -> torch.Tensor:
    """Is sure that the next token is the one before the last: wins where targets are shifted the wrong way."""
    return SURE * F.one_hot(ids.roll(1, 1), 270).float()


def ending(ids: torch.Tensor) -> torch.Tensor:
    """Is sure that every text ends: wins where special tokens or padding are scored."""
    return SURE * F.one_hot(torch.zeros_like(ids), 270).float()


def perfect(texts: list[list[int]]) -> Logits:
    """Knows what follows each beginning of the texts."""
    following = {tuple(ids[: end + 1]): ids[end + 1] for ids in texts for end in range(len(ids) - 1)}

    def logits(ids: torch.Tensor) -> torch.Tensor:
        rows = [[following.get(tuple(row[: end + 1]), 0) for end in range(len(row))] for row in ids.tolist()]
        return SURE * F.one_hot(torch.tensor(rows), 270).float()

    return logits


def of(logits: Logits) -> RowNats:
    return lambda ids, targets: token_nll(logits(ids), targets).sum(1)


def bits(unseen: Unseen, logits: Logits, batch: int = 2) -> float:
    return bits_per_byte(unseen.scored(of(logits), batch)[0], unseen.bytes)


@pytest.mark.parametrize("cheat", [copier, late, ending])
def test_who_does_not_predict_the_next_token_is_worse_than_who_knows_nothing(
    cheat: Logits, tokenizer: Tokenizer
) -> None:
    unseen = Unseen.of(documents(tokenizer), tokenizer, 64)
    assert bits(unseen, cheat) > bits(unseen, uniform) > 100 * bits(unseen, perfect(documents(tokenizer)))


def test_the_score_of_who_knows_nothing_is_that_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    texts = documents(tokenizer)
    unseen = Unseen.of(texts, tokenizer, 64)
    nats, counts = unseen.scored(of(uniform), 3)
    assert counts.tolist() == [len(ids) - 2 for ids in texts], "neither the first token nor the end is scored"
    assert nats == pytest.approx(counts * math.log(270))
    first = [len(tokenizer.decode(ids[:1]).encode()) for ids in texts]
    assert unseen.bytes.tolist() == [len(text.encode()) - one for text, one in zip(TEXTS, first, strict=True)]


def test_neither_padding_nor_the_batch_nor_the_end_token_changes_a_score(tokenizer: Tokenizer) -> None:
    decoder = initialise(Decoder(sized("nano", 270)), torch.Generator().manual_seed(1))

    def rows(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return decoder(ids, targets=Targets.of(targets)).rows

    texts = documents(tokenizer)
    alone, together = (Unseen.of(texts, tokenizer, 64).scored(rows, batch)[0] for batch in (1, 4))
    assert alone == pytest.approx(together, rel=1e-5)
    without_end = Unseen.of([ids[:-1] for ids in texts], tokenizer, 64)
    assert without_end.scored(rows, 1)[0] == pytest.approx(alone, rel=1e-5)


def test_long_documents_are_scored_in_pieces_and_every_token_once(tokenizer: Tokenizer) -> None:
    texts = documents(tokenizer)
    whole, pieces = Unseen.of(texts, tokenizer, 64), Unseen.of(texts, tokenizer, 3)
    assert len(pieces.rows) > len(whole.rows) == len(texts)
    for one in (whole, pieces):
        assert one.scored(of(uniform), 2)[1].tolist() == [len(ids) - 2 for ids in texts]
    assert np.array_equal(whole.bytes, pieces.bytes)


def test_a_document_without_a_scored_byte_is_left_out_and_nothing_at_all_is_refused(tokenizer: Tokenizer) -> None:
    short = [[5, tokenizer.eos]]
    assert len(Unseen.of([*short, *documents(tokenizer)], tokenizer, 8).bytes) == len(TEXTS)
    with pytest.raises(DataError, match="no unseen text to score"):
        Unseen.of(short, tokenizer, 8)
