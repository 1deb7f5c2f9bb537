"""Do tensors come back as they were, is the fingerprint one of values, and is what does not fit refused?"""

import pytest
import torch
from torch import nn

from moesaic.errors import WeightsError
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.tensors import fingerprint, fit, read_tensors, write_tensors


def some() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 4, generator=generator),
        "a": torch.randn(5, generator=generator, dtype=torch.float64),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(2, 2, generator=generator).bfloat16(),
        "count": torch.tensor([1, -2]),
    }


def test_tensors_come_back_with_their_types_and_values(tmp_path):
    write_tensors(tmp_path / TENSORS, some())
    found = read_tensors(tmp_path / TENSORS)
    assert found.keys() == some().keys()
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in some().items())


def test_the_same_tensors_give_the_same_bytes_however_they_are_stored(tmp_path):
    tensors = some()
    write_tensors(tmp_path / "one", tensors)
    views = {name: torch.stack([t, t * 0], -1)[..., 0] for name, t in reversed(tensors.items())}
    assert not views["b"].is_contiguous()
    write_tensors(tmp_path / "two", views)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert fingerprint(tensors) == fingerprint(views) == fingerprint(read_tensors(tmp_path / "one"))


def test_the_fingerprint_changes_with_any_value_name_type_or_shape():
    whole = fingerprint(some())
    for name in some():
        changed = some()
        changed[name].view(-1)[-1] += 1
        assert fingerprint(changed) != whole, name
    tensors = some()
    seen = {
        whole,
        fingerprint({**tensors, "a": tensors["a"].float()}),
        fingerprint({**tensors, "b": tensors["b"].view(torch.int32)}),  # the same bytes
        fingerprint({**tensors, "b": tensors["b"].reshape(4, 3)}),
        fingerprint({name: tensor for name, tensor in tensors.items() if name != "a"}),
        fingerprint({("c" if name == "b" else name): tensor for name, tensor in tensors.items()}),
        fingerprint({**tensors, "b": -tensors["b"]}),
    }
    assert len(seen) == 7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["b", "half"])
def test_values_that_are_not_finite_are_refused_by_name(name, value, tmp_path):
    tensors = some()
    tensors[name][1, 1] = value
    write_tensors(tmp_path / TENSORS, tensors)
    with pytest.raises(WeightsError, match=rf"{TENSORS}: {name}: .*NaN or infinity"):
        read_tensors(tmp_path / TENSORS)


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_truncated_file_is_refused(keep, tmp_path):
    write_tensors(tmp_path / TENSORS, some())
    (tmp_path / TENSORS).write_bytes((tmp_path / TENSORS).read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{TENSORS}: not a readable safetensors file"):
        read_tensors(tmp_path / TENSORS)


def test_a_pickle_is_no_safetensors_file_and_a_missing_file_is_missing(tmp_path):
    torch.save(some(), tmp_path / TENSORS)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_tensors(tmp_path / TENSORS)
    with pytest.raises(WeightsError, match="no such file"):
        read_tensors(tmp_path / "none")


def test_a_module_takes_exactly_its_names_and_shapes(tmp_path):
    module = nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    fit(module, good, tmp_path)
    assert module.weight.equal(torch.ones(2, 3)) and isinstance(module.weight, nn.Parameter)
    with pytest.raises(WeightsError, match=r"bias: a tensor is missing; expected \[2\]"):
        fit(module, {"weight": good["weight"]}, tmp_path)
    with pytest.raises(WeightsError, match="more: a tensor that the model has no place for"):
        fit(module, {**good, "more": torch.zeros(1)}, tmp_path)
    with pytest.raises(WeightsError, match=r"weight: .*another shape; expected \[2, 3\]; got \[3, 2\]"):
        fit(module, {**good, "weight": torch.ones(3, 2)}, tmp_path)
    with pytest.raises(WeightsError, match="another shape"):
        fit(module, {**good, "bias": torch.zeros(1)}, tmp_path)
