"""Does the verb write an expert for PEFT, and nothing over what is there?"""

import json

import torch

from moesaic.adapters import TensorTrain
from moesaic.cli.main import status
from moesaic.testing import tiny_decoder
from moesaic.weights.adapter import load_expert, save_expert


def test_an_expert_is_written_for_peft_and_nothing_is_written_over(tmp_path, capsys):
    made = TensorTrain.fresh(
        tiny_decoder(dtype=torch.float32), 4, 1.5, ["q_proj"], range(9), torch.Generator().manual_seed(0)
    )
    (tmp_path / "expert").mkdir()
    save_expert(tmp_path / "expert", made, "0" * 64, {})
    arguments = ["export", str(tmp_path / "expert"), str(tmp_path / "out")]
    assert status(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 6.0
    assert load_expert(tmp_path / "out").lora.rank == 4
    assert status(arguments) == 6 and "there is something already" in capsys.readouterr().err
    assert status(["export", str(tmp_path / "none"), str(tmp_path / "other")]) == 4
