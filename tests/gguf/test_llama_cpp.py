"""Property: llama.cpp writes with an exported file what this package writes with the model it was made of."""

import json
from pathlib import Path

import pytest
import xllamacpp
from small_families import OWN, saved

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base
from moesaic.compose.export import export
from moesaic.gguf.names import ARCHITECTURES
from moesaic.testing import toy_expert

pytestmark = [pytest.mark.parity, pytest.mark.slow]
TOKENS = 32


@pytest.fixture(scope="module")
def llama_cpp():
    """Writes greedy text with a file, and an adapter on it, by the package xllamacpp."""

    def write(file: Path, prompt: str, adapter: Path | None = None) -> str:
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.cpuparams.n_threads, settings.warmup = str(file), 64, 1, False
        if adapter:
            settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        asked = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "samplers": ["temperature"]}
        answer = xllamacpp.Server(settings).handle_completions(asked)
        return (answer if isinstance(answer, dict) else json.loads(answer))["choices"][0]["text"]

    return write


def ours(place: Path, prompt: str, base: Path | None = None) -> str:
    return moesaic.load(place, base=base).generate(prompt, max_new_tokens=TOKENS, temperature=0).text


def test_a_real_model_writes_the_same_story(llama_cpp, shared, tmp_path):
    folder = shared / "models" / "stories260K"
    file = export(folder, tmp_path / "stories.gguf", "gguf")
    for prompt in ("Once upon a time", "The  cat's 3 naïve friends"):
        assert llama_cpp(file, prompt) == ours(folder, prompt)


@pytest.mark.parametrize("family", [family for family in OWN if family in ARCHITECTURES])
def test_every_family_writes_the_same_tokens(family, llama_cpp, tokenizer, tmp_path):
    folder = saved(tmp_path / "model", family, tokenizer, context=96)
    file = export(folder, tmp_path / "model.gguf", "gguf")
    assert llama_cpp(file, "the sum of two") == ours(folder, "the sum of two")


def test_an_adapter_writes_the_same_text(llama_cpp, tokenizer, tmp_path):
    folder, expert = saved(tmp_path / "model", "llama", tokenizer, context=96), tmp_path / "expert"
    base = load_base(folder)
    expert.mkdir()
    save_expert(expert, toy_expert(base.decoder, 1), base.fingerprint, {"name": "one"})
    file = export(folder, tmp_path / "model.gguf", "gguf")
    adapter = export(expert, tmp_path / "adapter.gguf", "gguf", base=folder)
    written = llama_cpp(file, "the sum of two", adapter)
    assert written == ours(expert, "the sum of two", folder) != llama_cpp(file, "the sum of two")
