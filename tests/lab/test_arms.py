"""Are the arms those that a study means: their counts exactly, and each a base that is saved, read and cached?"""

from dataclasses import replace

import pytest
import torch

from moesaic.artefacts.base import identify, load_base, save_base
from moesaic.config import DecoderConfig, sized
from moesaic.errors import CompatibilityError
from moesaic.interop.decoders import write_decoder
from moesaic.lab.arms import ARMS
from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import Cache
from moesaic.tokenizer import Tokenizer

WIDE = {
    "dense": (128_789_504, 141_440_000, 154_090_496, 166_740_992),
    "head_mixer": (128_872_064, 141_539_072, 154_206_080, 166_873_088),
    "head_mixer_residual": (128_872_064, 141_539_072, 154_206_080, 166_873_088),
    "head_gate": (128_830_464, 141_489_152, 154_147_840, 166_806_528),
}
SPARSE = 4 * 1024**2 + 2 * 1024 + 8 * 1024 + 8 * 3 * 1024 * 1376  # of a layer with 8 experts of half the width
WIDE["moe"] = tuple(layers * SPARSE + 2 * 32_000 * 1024 + 1024 for layers in range(5, 9))
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 96, "context": 32}


def parameters(config: DecoderConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Decoder(config).parameters())


@pytest.mark.parametrize("name", WIDE)
def test_an_arm_has_exactly_the_published_number_of_parameters_at_every_depth(name: str) -> None:
    found = tuple(parameters(ARMS[name].changes(sized(f"wide-{layers}", 32_000))) for layers in range(5, 9))
    assert found == WIDE[name]


def test_the_biases_of_a_choice_are_the_only_more_and_half_the_ffn_is_less() -> None:
    dense = sized("wide-5", 32_000)
    for name in ("moe_bias", "moe_quantile"):
        assert parameters(ARMS[name].changes(dense)) == WIDE["moe"][0] + 5 * 8
    assert parameters(ARMS["half_ffn"].changes(dense)) == WIDE["dense"][0] - 5 * 3 * 1024 * 1376
    assert parameters(ARMS["moe_small"].changes(dense)) == WIDE["dense"][0] + 5 * 8 * 1024  # its routers


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["one two three four"], 270)


def made(name: str, tokenizer: Tokenizer) -> Decoder:
    config = ARMS[name].changes(DecoderConfig(vocab_size=tokenizer.vocab_size, tie_embeddings=False, **SMALL))
    return initialise(Decoder(config), torch.Generator().manual_seed(0)).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_a_base_that_comes_back_as_itself(name: str, tokenizer: Tokenizer, tmp_path) -> None:
    decoder, ids = made(name, tokenizer), torch.tensor([[1, 2, 3, 4, 5, 6]])
    for weight in [value for at, value in decoder.named_parameters() if "head_" in at or at.endswith("bias")]:
        weight.normal_(0, 0.5)
    save_base(tmp_path, decoder, tokenizer, {})
    base = load_base(tmp_path)
    assert base.decoder.config == decoder.config and base.fingerprint == identify(decoder, tokenizer)
    assert base.decoder(ids).logits.equal(decoder(ids).logits)
    cache = Cache.empty(decoder.config, 1, 8, like=decoder.norm.weight)
    decoder(ids[:, :4], cache)
    torch.testing.assert_close(decoder(ids[:, 4:], cache.advance(4)).logits, decoder(ids).logits[:, 4:])


@pytest.mark.parametrize("name", ARMS)
def test_of_an_arm_that_transformers_does_not_have_that_is_said_when_it_is_exported(name, tokenizer, tmp_path) -> None:
    decoder = made(name, tokenizer)
    if name in ("dense", "moe", "moe_small", "half_ffn"):
        write_decoder(tmp_path, decoder, {})
        return
    with pytest.raises(
        CompatibilityError, match=r"family: transformers has no model .*one of|expected llama, .*moesaic"
    ):
        write_decoder(tmp_path, decoder, {})


def test_what_a_family_cannot_say_is_refused_by_its_field(tokenizer: Tokenizer, tmp_path) -> None:
    decoder = made("head_gate", tokenizer)
    decoder.config = replace(decoder.config, family="llama")
    with pytest.raises(CompatibilityError, match="head_filling: a model of family llama cannot .*got 'gate'; set its"):
        save_base(tmp_path, decoder, tokenizer, {})
