"""Journey: does the verb write an expert for PEFT, and nothing over what is there?"""

import json

import torch

from moesaic.adapters import TensorTrain
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.cli.main import status
from moesaic.testing import tiny_decoder, toy_expert


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
    assert status(arguments) == 6 and "the path already exists" in capsys.readouterr().err
    assert status(["export", str(tmp_path / "none"), str(tmp_path / "other")]) == 4


def test_the_best_of_an_experts_folder_is_meant_and_of_a_run_it_is_said_which_there_are(tmp_path, capsys):
    one = toy_expert(tiny_decoder(dtype=torch.float32), 1)
    for name in ("math", "code"):
        folder = tmp_path / "run" / "experts" / name / "best"
        folder.mkdir(parents=True)
        save_expert(folder, one, "0" * 64, {})
    assert status(["export", str(tmp_path / "run" / "experts" / "math"), str(tmp_path / "out")]) == 0
    assert status(["export", str(tmp_path / "run"), str(tmp_path / "other")]) == 4
    said = capsys.readouterr().err
    assert "several experts, not one; name one of them: " in said and said.index("experts/code") < said.index("math")
