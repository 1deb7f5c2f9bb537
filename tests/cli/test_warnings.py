"""Property: a command prints one plain line for each oddity of other people's files, also under --quiet."""

import json
import warnings

import pytest
import torch

from moesaic.artefacts.base import save_base
from moesaic.cli.main import show_own_warnings
from moesaic.errors import MoesaicWarning
from moesaic.files import MANIFEST
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer


@pytest.fixture
def odd(recipe, tmp_path):
    """The folder of a base that asks for code and has a matrix of zeros, beside a recipe."""
    (tmp_path / "odd").mkdir()
    tokenizer = Tokenizer.train(["one two three four"], 300)
    decoder = tiny_decoder(1, torch.float32, num_layers=1, vocab_size=300)
    with torch.no_grad():
        decoder.get_parameter("layers.0.mlp.up_proj.weight").zero_()
    save_base(tmp_path / "odd", decoder, tokenizer, {})
    (tmp_path / "odd" / MANIFEST).unlink()
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "mine.Mine"}}))
    return tmp_path


@pytest.mark.slow
def test_a_quiet_command_warns_of_each_once_in_a_line(odd, apart):
    code, _, err = apart(odd, "pretrain", "small.yaml", "base={path: odd}", "--quiet")
    assert code == 0
    assert err.splitlines() == [
        f"warning: {odd}/odd/config.json: ignored, as code is never run: auto_map",
        f"warning: {odd}/odd/model.safetensors: model.layers.0.mlp.up_proj.weight: all values are 0",
    ]


def test_of_pythons_warnings_only_ours_are_shown_and_no_terminal_obeys_them(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "")
    with warnings.catch_warnings():
        show_own_warnings()
        for _ in range(2):
            warnings.warn("odd\nand \x1b[31mred", MoesaicWarning, stacklevel=1)
        warnings.warn("of another package", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: odd\\nand \\x1b[31mred\n"
