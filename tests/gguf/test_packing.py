"""Does a file of llama.cpp hold the model that was packed, whatever its family, and is anything else refused?"""

import json

import numpy as np
import pytest
import torch
from small_families import LLAMA3, OWN, saved

import moesaic
from moesaic.artefacts.base import load_base
from moesaic.compose.export import export
from moesaic.errors import CompatibilityError, MoesaicWarning, RecipeError, StorageError, WeightsError
from moesaic.gguf import container, names, packing
from moesaic.gguf.names import ARCHITECTURES
from moesaic.tokenizer import Tokenizer, compare

IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    """Files are unpacked into a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def logits(place) -> torch.Tensor:
    return moesaic.load_model(str(place))(IDS).logits


@pytest.mark.parametrize("family", [family for family in OWN if family in ARCHITECTURES])
def test_the_file_of_every_family_computes_what_its_folder_does(family, tokenizer, tmp_path):
    folder, file = saved(tmp_path / "model", family, tokenizer), tmp_path / "model.gguf"
    assert export(folder, file, "gguf") == file
    exact = 1e-5 if family == "gemma3_text" else 0.0  # its norms are stored with 1 added
    assert (logits(file) - logits(folder)).abs().max() <= exact
    assert not compare(load_base(folder).tokenizer, Tokenizer.load(moesaic.load_model(str(file)).folder))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_biases_and_scaled_positions_come_back(family, tokenizer, tmp_path):
    own = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    folder = saved(tmp_path / "model", family, tokenizer, rope_scaling=LLAMA3, **own)
    assert logits(export(folder, tmp_path / "model.gguf", "gguf")).equal(logits(folder))


def test_scalings_of_llama_3_are_found_by_their_divisors():
    for factor, context in ((8.0, 8192), (32.0, 8192), (4.0, 40)):
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling |= {"original_max_position_embeddings": context}
        divisors = names.divisors_of(scaling, 5e5, 64).float().double()
        assert names.of_divisors(divisors, 5e5, 64) == scaling
    assert names.of_divisors(torch.ones(32, dtype=torch.float64), 5e5, 64) is None


def test_queries_and_keys_are_stored_in_pairs_as_llama_cpp_rotates_them(tokenizer, tmp_path):
    folder = saved(tmp_path / "model", "llama", tokenizer)
    file = container.read(export(folder, tmp_path / "model.gguf", "gguf"))
    own = load_base(folder).decoder.state_dict()["layers.0.self_attn.q_proj.weight"]
    stored = file.tensor("blk.0.attn_q.weight")
    width = own.shape[0] // 4  # of one of four heads: rows 0 and width/2 of a head are one pair
    assert stored[:4].equal(own[[0, width // 2, 1, width // 2 + 1]])


@pytest.mark.parametrize(("type", "near"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)])
def test_a_file_of_smaller_numbers_is_near(type, near, tokenizer, tmp_path):
    folder = saved(tmp_path / "model", "llama", tokenizer, hidden_size=64, intermediate_size=64)
    file = container.read(export(folder, tmp_path / "model.gguf", "gguf", type=type))
    own = load_base(folder).decoder.state_dict()["layers.1.mlp.down_proj.weight"]
    other = file.tensor("blk.1.ffn_down.weight").float()
    assert 0 < (own - other).norm() / own.norm() < near
    assert file.tensors["blk.1.ffn_down.weight"].kind == type.upper()
    assert file.tensors["output_norm.weight"].kind == "F32"


def test_a_window_becomes_the_context_and_this_is_told(tokenizer, tmp_path):
    folder = saved(tmp_path / "model", "mistral", tokenizer, window=16, local_layers=(0, 1, 2))
    with pytest.warns(MoesaicWarning, match="written as 16 tokens, the window"):
        file = export(folder, tmp_path / "model.gguf", "gguf")
    assert moesaic.load_model(str(file)).config.context == 16
    assert logits(file).equal(logits(folder))


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("qwen3_moe", {"renormalise": False}, "norm_topk_prob"),
        ("qwen3_moe", {"dense_layers": (1,)}, "mlp_only_layers"),
        ("gemma3_text", {"local_layers": (1, 2)}, "layer_types"),
        ("gemma3_text", {"query_scalar": 7}, "query_pre_attn_scalar"),
    ],
)
def test_what_llama_cpp_lacks_is_refused_by_its_key(family, changes, word, tokenizer, tmp_path):
    folder = saved(tmp_path / "model", family, tokenizer, **changes)
    with pytest.raises(CompatibilityError, match=rf"{word}: .*cannot hold this"):
        export(folder, tmp_path / "model.gguf", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_that_exist_and_words_that_do_not_are_refused(tokenizer, tmp_path):
    folder = saved(tmp_path / "model", "llama", tokenizer)
    with pytest.raises(StorageError, match="ends in .gguf"):
        export(folder, tmp_path / "model.bin", "gguf")
    with pytest.raises(RecipeError, match="type: unknown type of matrices; expected one of f32"):
        export(folder, tmp_path / "model.gguf", "gguf", type="q2_k")
    export(folder, tmp_path / "model.gguf", "gguf")
    with pytest.raises(StorageError, match="already exists"):
        export(folder, tmp_path / "model.gguf", "gguf")


SPOILT = {
    "rows in another order": lambda name, values: values.flip(0) if "attn_q" in name else values,
    "gate and up swapped": lambda name, values: values * 1.01 if "ffn_up" in name else values,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_is_not_the_model_gets_no_name(how, tokenizer, tmp_path, monkeypatch):
    folder, write = saved(tmp_path / "model", "llama", tokenizer), container.write

    def spoilt(path, metadata, tensors, kind):
        def change(name, given):
            return container.Given(given.shape, given.dtype, lambda: SPOILT[how](name, given.make()))

        write(path, metadata, {name: change(name, given) for name, given in tensors.items()}, kind)

    monkeypatch.setattr(packing.container, "write", spoilt)
    with pytest.raises(WeightsError, match="differs from the model after reading it back"):
        export(folder, tmp_path / "model.gguf", "gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_an_adapter_on_a_file_answers_as_the_adapter_on_the_folder(parts, tmp_path):
    base = export(parts.folder / "base", tmp_path / "base.gguf", "gguf")
    adapter = export(parts.folder / "one", tmp_path / "one.gguf", "gguf")
    made = container.read(adapter)
    assert made.metadata["general.type"] == "adapter" and made.metadata["adapter.lora.alpha"] == 4.0
    assert made.tensors["blk.0.attn_q.weight.lora_a"].shape == (2, 32)
    plain = moesaic.load(parts.folder / "one", base=parts.folder / "base").generate(
        "the sum", max_new_tokens=8, temperature=0
    )
    again = moesaic.load(adapter, base=base).generate("the sum", max_new_tokens=8, temperature=0)
    assert again.text == plain.text and len(again.text) > 3


def test_adapters_with_several_alphas_are_refused(parts, tmp_path):
    config = json.loads((parts.folder / "one" / "adapter_config.json").read_text())
    with pytest.raises(CompatibilityError, match="one alpha for all pairs"):
        packing.pack_adapter(
            config | {"alpha_pattern": {"q_proj": 3}}, {}, {"model_type": "llama"}, tmp_path / "x.gguf", "x"
        )


@pytest.mark.parity
def test_the_package_gguf_reads_what_is_written(tokenizer, tmp_path):
    from gguf import GGUFReader

    folder = saved(tmp_path / "model", "qwen3_moe", tokenizer)
    reader = GGUFReader(export(folder, tmp_path / "model.gguf", "gguf"))
    tensors = {one.name: one for one in reader.tensors}
    own = load_base(folder).decoder.state_dict()["layers.2.self_attn.k_proj.weight"]
    assert np.array_equal(tensors["blk.2.attn_k.weight"].data, own.numpy())
    assert [*tensors["blk.0.ffn_gate_exps.weight"].shape] == [32, 20, 4]
    assert reader.fields["qwen3moe.expert_used_count"].contents() == 2
    assert reader.fields["tokenizer.ggml.tokens"].contents()[0] == "<|end|>"
