"""Are weights of other formats refused unopened, with a way out that works, and ignored where safetensors stand?"""

import builtins
import io
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save

from moesaic.errors import WeightsError
from moesaic.tensors.refused_formats import NO_WEIGHTS, WAYS_OUT, require_safetensors
from moesaic.tensors.safetensors_file import opened

GOOD = save({"a": torch.ones(2)})


def refused_unopened(path) -> WeightsError:
    """How `opened` refuses a file; fails where any is opened meanwhile."""
    opening = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (os, io, builtins):
            patch.setattr(module, "open", lambda *args, **_: opening.append(args))
        with pytest.raises(WeightsError) as refused:
            opened(path)
    assert not opening
    return refused.value


@pytest.mark.parametrize("suffix", WAYS_OUT)
def test_a_folder_that_has_only_another_format_is_refused_unopened_with_a_way_out(suffix, tmp_path):
    (tmp_path / f"weights{suffix}").touch()
    error = refused_unopened(tmp_path / "model.safetensors")
    assert error.path == tmp_path / f"weights{suffix}" and error.expected == "model.safetensors"
    assert error.hint and not re.search(r"\{(old|new|how)\}|\{\{", error.hint)  # nothing is left to fill in


@pytest.mark.parametrize("suffix", WAYS_OUT)
def test_such_a_file_is_refused_by_its_own_name_too(suffix, tmp_path):
    (tmp_path / f"adapter{suffix}").touch()
    error = refused_unopened(tmp_path / f"adapter{suffix}")
    assert "never opened; expected adapter.safetensors" in str(error)


@pytest.mark.parametrize("suffix", WAYS_OUT)
def test_beside_safetensors_it_is_ignored(suffix, tmp_path):
    (tmp_path / f"weights{suffix}").write_bytes(b"\x80\x04.")
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    with opened(tmp_path / "model.safetensors") as file:
        assert file.names == ("a",)


def test_what_a_trainer_leaves_is_no_weights(tmp_path):
    for name in NO_WEIGHTS:
        (tmp_path / f"{name}.bin").touch()
    require_safetensors(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file"):
        opened(tmp_path / "model.safetensors")


@pytest.mark.parity
def test_the_command_that_is_given_for_a_pickle_converts_it(tmp_path):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError) as refused:
        opened(tmp_path / "model.safetensors")
    command = shlex.split(refused.value.hint.partition("a model of transformers: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, timeout=120)
    found = load_file(tmp_path / "converted" / "model.safetensors")
    assert found["model.embed_tokens.weight"].equal(model.model.embed_tokens.weight)
