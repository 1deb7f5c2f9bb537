"""Does a decoder compute the same whatever it keeps, compiles or rounds?"""

import pytest
import torch

from moesaic.data.batches import Batch
from moesaic.kinds.gates import plain
from moesaic.sections.training import Pretrain
from moesaic.testing import tiny_decoder
from moesaic.train.execution import arrange
from moesaic.train.language import loss_of

IDS = torch.randint(61, (3, 25), generator=torch.Generator().manual_seed(4))
BATCH = Batch(IDS[:, :-1], IDS[:, 1:])


def learned(dtype: torch.dtype = torch.float32, **settings) -> tuple[float, dict[str, torch.Tensor], int]:
    """A loss, its gradients, and the bytes that were kept for them."""
    decoder, kept = arrange(tiny_decoder(dtype=torch.float32), Pretrain(**settings)), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, count = loss_of(decoder, plain, dtype)(BATCH)
    (loss / count).backward()
    return loss.item() / count, {name: p.grad for name, p in decoder.named_parameters()}, sum(kept.values())


def test_recomputed_layers_give_the_same_bits_and_keep_less():
    loss, grads, kept = learned()
    again, same, less = learned(recompute=True)
    assert again == loss and all(torch.equal(same[name], grads[name]) for name in grads)
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
