"""Does a decoder compute the same whatever it keeps, compiles or rounds?"""

import weakref
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from moesaic.data.batches import Batch
from moesaic.kinds import KINDS
from moesaic.kinds.gates import plain
from moesaic.sections.training import Pretrain, Train
from moesaic.testing import tiny_decoder, tiny_encoder
from moesaic.train import execution
from moesaic.train.execution import arrange, compile_layers
from moesaic.train.language import loss_of

T = TypeVar("T")
IDS = torch.randint(61, (3, 25), generator=torch.Generator().manual_seed(4))
BATCH = Batch(IDS[:, :-1], IDS[:, 1:])


def learned(dtype: torch.dtype = torch.float32, **settings) -> tuple[float, dict[str, torch.Tensor], int]:
    """A loss, its gradients, and the bytes that were kept for them."""
    how = Pretrain(**settings)
    decoder = tiny_decoder(dtype=torch.float32)
    arrange(decoder, how)
    compile_layers(decoder, how)
    (loss, count), kept = kept_by(lambda: loss_of(decoder, plain, dtype)(BATCH))
    (loss / count).backward()
    return loss.item() / count, {name: p.grad for name, p in decoder.named_parameters()}, kept


def kept_by(compute: Callable[[], T]) -> tuple[T, int]:
    """What a computation gives, and the bytes that are kept for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = compute()
    return made, sum(kept.values())


def test_recomputed_layers_give_the_same_bits_and_keep_less():
    loss, grads, kept = learned()
    again, same, less = learned(recompute=True)
    assert again == loss and all(torch.equal(same[name], grads[name]) for name in grads)
    assert less < 0.6 * kept


DATA = {"train": "train.jsonl", "test": "test.jsonl"}
SECTIONS = {"lora": {"rank": 4}, "tt_lora": {"rank": 2}, "ffn": {}, "model": {}}


def expert_learned(word: str, recompute: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """The loss of an untrained expert, its gradients, and the bytes that were kept for them."""
    kind, decoder = KINDS[word], tiny_decoder(dtype=torch.float32)
    spec = kind.section.model_validate({"kind": word, "data": DATA, **SECTIONS[word]})
    started = kind.begin(decoder.requires_grad_(False), kind.design(spec), None, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.requires_grad and name.endswith(".b"):
                weight.normal_(generator=torch.Generator().manual_seed(1))  # else A would have no gradient
    arrange(decoder, Train(recompute=recompute))
    loss, kept = kept_by(lambda: loss_of(decoder, started.gates)(BATCH)[0])
    loss.backward()
    return loss.item(), {name: p.grad for name, p in decoder.named_parameters() if p.requires_grad}, kept


@pytest.mark.parametrize("word", SECTIONS)
def test_an_expert_of_every_kind_learns_the_same_bits_from_recomputed_layers(word):
    loss, grads, kept = expert_learned(word, recompute=False)
    again, same, less = expert_learned(word, recompute=True)
    assert again == loss and grads.keys() == same.keys()
    for name, grad in grads.items():
        assert grad is not None and torch.equal(same[name], grad), name
    assert less < 0.6 * kept


def test_a_model_whose_layers_recompute_is_freed_with_its_last_name():
    decoder = tiny_decoder(dtype=torch.float32)
    arrange(decoder, Train(recompute=True))
    layer = weakref.ref(decoder.layers[0])
    del decoder
    assert layer() is None


def test_after_every_eighth_layer_freed_pages_are_returned_and_nothing_else_changes(monkeypatch):
    returned = []
    monkeypatch.setattr(execution, "return_pages", lambda *_: returned.append(1) and None)
    decoder = tiny_decoder(dtype=torch.float32, num_layers=17)
    arrange(decoder, Train())
    loss, _ = loss_of(decoder, plain)(BATCH)
    assert len(returned) == 2
    monkeypatch.undo()
    arrange(decoder, Train())
    again, _ = loss_of(decoder, plain)(BATCH)
    assert again.item() == loss.item()


def test_an_encoder_learns_the_same_bits_from_recomputed_layers():
    both = []
    for recompute in (False, True):
        encoder = tiny_encoder(dtype=torch.float32)
        arrange(encoder, Train(recompute=recompute))
        states, kept = kept_by(lambda encoder=encoder: encoder(IDS[:, :16]).hidden.square().sum())
        states.backward()
        grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        both.append((states.item(), grads, kept))
    (loss, grads, kept), (again, same, less) = both
    assert again == loss and all(torch.equal(same[name], grad) for name, grad in grads.items())
    assert less < 0.6 * kept


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside the compiler
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_give_the_same_to_rounding(recompute):
    loss, grads, _ = learned()
    again, same, _ = learned(compile=True, recompute=recompute)
    assert again == pytest.approx(loss, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(same[name], grad, rtol=1e-4, atol=1e-5)


def test_products_in_bfloat16_change_a_loss_by_less_than_a_hundredth():
    """Eight bits of mantissa: weights, their gradients and the loss stay float32."""
    loss, grads, _ = learned()
    rounded, close, _ = learned(torch.bfloat16)
    assert rounded != loss and rounded == pytest.approx(loss, rel=1e-2)
    for name, grad in grads.items():
        assert close[name].dtype == torch.float32
        assert (close[name] - grad).norm() < 0.1 * grad.norm(), name
