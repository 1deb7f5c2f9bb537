"""Journey: adapters that exist become a mixture: adopted, asked, changed in place; models are averaged,
experts exported.
"""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import moesaic

TENSORS = "*.safetensors"
NAMES = ("sums", "code", "birds")
GIVEN = [text for name in NAMES for text in ("--prompts", f"{name}={name}.txt")]


@pytest.fixture(scope="module")
def adopted(finished, apart):
    """The finished folder, in which `mix` was adopted of an exported PEFT adapter and two experts of the run."""
    folder = finished[0]
    exported = apart(folder, "export", "runs/small/experts/code", "peft/code")
    assert (exported.code, exported.out) == (0, "peft/code\n"), exported.err
    experts = ("runs/small/experts/sums", "code=peft/code", "birds=runs/small/experts/birds")
    return folder, apart(folder, "adopt", *experts, "--base", "runs/small/base", "--out", "mix", *GIVEN)


@pytest.fixture
def mix(adopted, here, tmp_path):
    """A copy of the adopted mixture, to change at will."""
    return shutil.copytree(adopted[0] / "mix", tmp_path / "mix", symlinks=True)


def test_adopted_experts_answer_what_is_theirs(adopted, here, command, prompts):
    assert adopted[1].code == 0, adopted[1].err
    asked = [text for some in prompts.values() for text in some]
    code, out, _ = command("generate", "mix", *asked, "--max-new-tokens", 2, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    meant = [name for name, some in prompts.items() for _ in some]
    assert code == 0 and [one["chosen"] for one in told] == meant
    mixture = moesaic.load("mix")
    assert mixture.names == NAMES
    assert [one.routing.chosen for one in mixture.generate(asked, max_new_tokens=2)] == meant


def test_an_adopted_expert_answers_like_the_expert_of_the_run(adopted, here, prompts):
    mixture, run = moesaic.load("mix"), moesaic.load("runs/small")
    for name, some in prompts.items():
        sampling = moesaic.Sampling(temperature=1.0, seed=7)
        ours, theirs = (
            [one.text for one in made.generate(some, max_new_tokens=8, sampling=sampling, expert=name)]
            for made in (mixture, run)
        )
        assert ours == theirs


def test_python_adopts_the_same_bytes(adopted, here, files, tmp_path):
    made = moesaic.adopt(
        {"sums": "runs/small/experts/sums", "code": "peft/code", "birds": "runs/small/experts/birds"},
        "runs/small/base",
        tmp_path / "mix",
        prompts={name: f"{name}.txt" for name in NAMES},
    )
    assert made.names == NAMES and files(made.folder, TENSORS) == files(here / "mix/mixture", TENSORS)


def test_what_is_dropped_and_added_again_leaves_the_mixture_as_it_was(mix, here, command, files):
    before = files(mix / "mixture", TENSORS)
    assert command("adopt", "--into", mix, "--drop", "birds").code == 0
    assert moesaic.load(mix).names == ("sums", "code")
    code, _, err = command("adopt", "birds=runs/small/experts/birds", "--into", mix, "--prompts", "birds=birds.txt")
    assert code == 0, err
    assert moesaic.load(mix).names == NAMES and files(mix / "mixture", TENSORS) == before


def test_a_disabled_expert_is_chosen_by_nobody_but_those_who_name_it(mix, here, command, prompts):
    code_prompts = prompts["code"]
    before = moesaic.load(mix).route(code_prompts)
    assert {one.chosen for one in before} == {"code"}
    assert command("adopt", "--into", mix, "--disable", "code").code == 0
    mixture = moesaic.load(mix)
    assert "code" not in {one.chosen for one in mixture.route(code_prompts)}
    assert mixture.generate(code_prompts[0], max_new_tokens=2, expert="code").routing.chosen == "code"
    assert moesaic.amend(mix, enable=["code"]).disabled == ()
    assert moesaic.load(mix).route(code_prompts) == before


def test_an_expert_leaves_and_is_trained_anew_over_the_standing_mixture(mix, here):
    moesaic.amend(mix, drop=["birds"])
    assert moesaic.load(mix).names == ("sums", "code")
    made = moesaic.add_expert(mix, moesaic.read_recipe("small.yaml"), ["birds"])
    assert made.names == moesaic.load(mix).names == ("sums", "code", "birds")


def test_merging_is_the_weighted_mean(here, command, other_base, tmp_path):
    code, out, err = command("merge", "runs/small/base", other_base, tmp_path / "mean", "--weights", "1,3")
    assert code == 0 and out.strip() == str(tmp_path / "mean"), err
    first, mean = (load_file(at / "model.safetensors") for at in (here / "runs/small/base", tmp_path / "mean"))
    for name, weight in first.items():  # the other's weights are twice these
        assert np.allclose(mean[name], weight * 1.75, rtol=1e-6), name
    moesaic.merge(["runs/small/base", other_base], tmp_path / "again", weights=[1, 3])
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "mean/model.safetensors").read_bytes()
    model = moesaic.load_model(tmp_path / "mean")
    assert isinstance(model, moesaic.LanguageModel)
    assert model.save_pretrained(tmp_path / "saved") == tmp_path / "saved"
    writer = moesaic.load(tmp_path / "saved")
    assert isinstance(writer, moesaic.WritingModel)
    assert writer.generate("1 + 1", max_new_tokens=4) == model.generate("1 + 1", max_new_tokens=4)


def test_an_exported_expert_is_an_adapter_of_peft(adopted, here, command):
    settings = json.loads((here / "peft/code/adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"]) == ("LORA", 3)
    own, out = (
        load_file(here / at / "adapter_model.safetensors") for at in ("runs/small/experts/code/best", "peft/code")
    )
    assert own.keys() == out.keys() and all(np.array_equal(own[name], out[name]) for name in own)
    code, _, err = command("export", "runs/small/experts/code", "peft/code")
    assert code == 6 and "peft/code" in err


def test_a_model_becomes_a_sparse_one_and_a_file_of_llama_cpp(here, command, tmp_path):
    sparse = moesaic.upcycle(["runs/small/base"], tmp_path / "sparse", copies=2)
    code, out, err = command("upcycle", "runs/small/base", tmp_path / "again", "--copies", "2")
    assert code == 0 and str(tmp_path / "again") in out, err
    assert (tmp_path / "again/model.safetensors").read_bytes() == (sparse / "model.safetensors").read_bytes()
    file = moesaic.export(sparse, tmp_path / "sparse.gguf", "gguf", type="f32")
    models = (moesaic.load_model(at) for at in ("runs/small/base", sparse, file))
    first, *others = (model.generate("1 + 1", max_new_tokens=4) for model in models)
    assert others == [first, first]
