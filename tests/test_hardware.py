"""Do the words for devices and types mean what this machine has, and is anything else refused in one line?"""

import sys
from types import SimpleNamespace

import pytest
import torch

from moesaic import hardware
from moesaic.errors import MoesaicWarning, RecipeError
from moesaic.hardware import CPU, HOST, TYPES, UNITS, Compute, chosen, drawing, exact, named, sent
from moesaic.testing import tiny_decoder

WITHOUT_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


def units(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the processor have these units and no others for narrow types."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(names, True)})


@pytest.mark.parametrize("unit", [*UNITS, None])
def test_auto_is_bfloat16_where_the_processor_has_units_for_it(unit, monkeypatch):
    units(monkeypatch, *([unit] if unit else []))
    assert chosen("cpu", "auto").dtype == (torch.bfloat16 if unit else torch.float32)


def test_without_a_word_the_type_is_float32_whatever_the_processor_has(monkeypatch):
    units(monkeypatch, *UNITS)
    assert chosen("cpu") == HOST and HOST.key == {}


@pytest.mark.parametrize("fast", [True, False])
def test_auto_on_a_card_is_bfloat16_where_the_card_has_units_for_it(fast, monkeypatch):
    monkeypatch.setitem(hardware.ACCELERATORS, "cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast and not including_emulation)
    assert chosen("auto", "auto") == Compute(torch.device("cuda"), torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize("first", ["cuda", "xpu", "mps"])
def test_auto_prefers_an_accelerator(first, monkeypatch):
    for kind in hardware.ACCELERATORS:
        monkeypatch.setitem(hardware.ACCELERATORS, kind, lambda kind=kind: kind == first)
    assert chosen("auto").device == torch.device(first)


def test_a_choice_is_logged_in_one_line(caplog):
    with caplog.at_level("INFO", "moesaic"):
        chosen("cpu", "bfloat16")
    assert [row.getMessage() for row in caplog.records] == ["computes on cpu in bfloat16"]


@WITHOUT_CARD
@pytest.mark.parametrize("word", ["cuda", "cuda:1", "meta", "hpu", "opengl"])
def test_a_device_that_is_not_there_is_refused_with_what_there_is(word):
    choices = " or ".join(["auto", *hardware.choices()])
    with pytest.raises(RecipeError) as caught:
        chosen(word)
    assert str(caught.value) == f"device: this machine has no such device; expected {choices}; got {word}"


def test_the_cards_of_a_machine_are_counted(monkeypatch):
    monkeypatch.setitem(hardware.ACCELERATORS, "cuda", lambda: True)
    monkeypatch.setitem(hardware.COUNTED, "cuda", lambda: 2)
    assert hardware.choices()[:3] == ["cpu", "cuda", "cuda:1"]
    assert chosen("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(RecipeError, match="expected auto or cpu or cuda or cuda:1"):
        chosen("cuda:2")


@pytest.mark.parametrize("word", ["auto", "cuda"])
def test_processes_side_by_side_have_a_card_each_in_turn(monkeypatch, word):
    monkeypatch.setitem(hardware.ACCELERATORS, "cuda", lambda: True)
    monkeypatch.setitem(hardware.COUNTED, "cuda", lambda: 2)
    monkeypatch.delenv(hardware.LOCAL_RANK, raising=False)
    assert named(word) == torch.device("cuda")
    found = []
    for number in range(3):
        monkeypatch.setenv(hardware.LOCAL_RANK, str(number))
        found.append(str(named(word)))
        assert str(named("cuda:1")) == "cuda:1" and str(named("cpu")) == "cpu", "a card that is named is that card"
    assert found == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(("word", "hint"), [("cdua", "did you mean 'cuda'"), ("gpu", "auto, cpu, cuda"), ("", "auto")])
def test_a_word_that_torch_does_not_know_is_refused(word, hint):
    with pytest.raises(RecipeError, match=f"device: unknown device; .*{hint}"):
        chosen(word)


@pytest.mark.parametrize(("word", "hint"), [("bf16", "bfloat16"), ("float64", "float32"), ("", "auto")])
def test_a_type_that_is_unknown_is_refused(word, hint):
    with pytest.raises(RecipeError, match=f"dtype: unknown type; .*{hint}"):
        chosen("cpu", word)


def test_another_device_that_torch_computes_on_is_used_with_a_warning(monkeypatch):
    monkeypatch.setattr(hardware, "require_usable", lambda device, word: None)
    with pytest.warns(MoesaicWarning, match="device hpu:1: this package was never tested on it"):
        assert chosen("hpu:1").device == torch.device("hpu:1")


def test_directml_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_directml", None)
    with pytest.raises(RecipeError, match="device: needs a package; .*torch-directml.*pip install torch-directml"):
        chosen("dml")
    asked = list[int]()
    package = SimpleNamespace(device=lambda number: asked.append(number) or torch.device("privateuseone", number))
    monkeypatch.setitem(sys.modules, "torch_directml", package)
    with pytest.warns(MoesaicWarning, match="dml:1"):
        assert chosen("dml:1").device == torch.device("privateuseone:1")
    assert asked == [1]


def test_float16_on_a_cpu_is_warned_of():
    with pytest.warns(MoesaicWarning, match="float16 on a CPU"):
        assert chosen("cpu", "float16").key == {"dtype": "float16"}


def test_a_module_is_put_into_a_narrower_type_and_in_float32_stays_as_it_is():
    assert HOST.put(tiny_decoder()).norm.weight.dtype == torch.float64
    assert Compute(torch.device(CPU), torch.bfloat16).put(tiny_decoder()).norm.weight.dtype == torch.bfloat16
    assert Compute(torch.device("meta")).put(tiny_decoder()).norm.weight.is_meta


def test_values_beside_a_narrow_type_are_float32():
    assert {exact(dtype) for dtype in TYPES.values()} == {torch.float32}
    assert exact(torch.float64) == torch.float64


def test_on_the_host_nothing_is_copied():
    tensor = torch.ones(3)
    assert sent(tensor, None) is tensor and sent(tensor, torch.device(CPU)) is tensor
    assert sent(tensor, torch.device("meta")).is_meta


def test_a_seed_decides_what_is_drawn_and_leaves_the_generator_as_it_was():
    torch.manual_seed(5)
    with drawing(7, torch.device(CPU)):
        drawn = torch.rand(3)
    following = torch.rand(3)
    torch.manual_seed(7)
    assert torch.rand(3).equal(drawn)
    torch.manual_seed(5)
    assert torch.rand(3).equal(following)
