"""Does a dry step count what a real training step allocates?"""

import pytest
import torch

from moesaic.adapters import LoRA, attach
from moesaic.adapters.feedforward import FFN
from moesaic.adapters.feedforward import attach as attach_ffn
from moesaic.compose.dry_steps import Live, Step, dense, dry_step
from moesaic.config import published
from moesaic.kinds.gates import alone, plain
from moesaic.kinds.kind import Footprint
from moesaic.model.recomputing import recompute
from moesaic.ops.losses import Targets, summed_nll
from moesaic.testing import ALL_TARGETS, tiny_config, tiny_decoder

ROWS, TOKENS = 4, 200
CONFIG = tiny_config(num_layers=6, tie_embeddings=True, context=256)


def real(kind: str, again: bool) -> Step:
    """What a step with values allocates."""
    decoder, gates = tiny_decoder(0, torch.float32, num_layers=6, tie_embeddings=True, context=256), plain
    if kind != "model":
        decoder.requires_grad_(False)
        gates = alone
    if kind == "lora":
        attach(decoder, [LoRA.fresh(decoder, 4, 8.0, ALL_TARGETS, range(99), torch.Generator().manual_seed(0))])
    if kind == "ffn":
        attach_ffn(decoder, [FFN.of(decoder, range(99))])
    if again:
        recompute(decoder)
    trained = sum(4 * weight.numel() for weight in decoder.parameters() if weight.requires_grad)
    ids, own = torch.zeros(ROWS, TOKENS, dtype=torch.long), gates(ROWS)
    targets = Targets.of(ids)
    decoder.rope.reserve(TOKENS, decoder.norm.weight)
    with Live() as live:
        live.known = {tensor.untyped_storage()._cdata for tensor in (ids, *decoder.parameters(), *decoder.buffers())}
        hidden = decoder.norm(decoder.run(decoder.embed_tokens(ids), None, range(6), own)[0])
        kept = live.now
        summed_nll(decoder.lm_head, 61, hidden, targets)[0].backward()
    return Step(kept, live.most - kept, trained)


def footprint(kind: str) -> Footprint | None:
    decoder = tiny_decoder(0, torch.float32, num_layers=6)
    if kind == "lora":
        lora = LoRA.fresh(decoder, 4, 8.0, ALL_TARGETS, range(99), torch.Generator())
        return Footprint(pairs={path: (*a.shape, b.shape[1]) for path, (a, b) in lora.pairs.items()})
    return Footprint() if kind == "ffn" else None


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", ["lora", "ffn", "model"])
def test_a_step_of_every_kind_allocates_what_a_dry_step_counts(kind: str, again: bool) -> None:
    found, own = dry_step(CONFIG, footprint(kind), ROWS, TOKENS, torch.float32, again), real(kind, again)
    assert found.kept == pytest.approx(own.kept, rel=0.02)
    assert found.kept + found.more == pytest.approx(own.kept + own.more, rel=0.02)
    assert found.trained == own.trained


def test_layers_in_a_line_are_the_layers_one_by_one() -> None:
    """Six layers that are alike are extrapolated from three; an adapter that changes only one of them is not."""
    every = footprint("lora")
    assert every is not None and every.pairs is not None
    some = Footprint(pairs={path: shape for path, shape in every.pairs.items() if ".4." in path})
    step = dry_step(CONFIG, some, ROWS, TOKENS, torch.float32, False)
    assert step.trained == sum(4 * r * (i + o) for r, i, o in some.pairs.values())
    line = dry_step(CONFIG, every, ROWS, TOKENS, torch.float32, False)
    assert line.trained == 6 * step.trained and step.kept < line.kept


def test_logits_of_one_chunk_are_all_that_a_large_vocabulary_adds() -> None:
    small, large = (
        dry_step(tiny_config(vocab_size=size), footprint("lora"), 4, 2048, torch.float32, True)
        for size in (1000, 100_000)
    )
    assert small.kept == large.kept
    assert large.more < 2.1 * 4 * 2**23 < 4 * 2048 * 100_000 * 4


def test_a_dry_step_of_published_sizes_takes_no_memory_also_sparse_and_with_a_window() -> None:
    for name in ("gemma-3-270m", "mixtral-8x7b"):
        step = dry_step(published(name), None, 1, 64, torch.bfloat16, True)
        assert isinstance(step, Step) and step.kept > 0
    assert dense(published("mixtral-8x7b")).intermediate_size == 2 * 14336
