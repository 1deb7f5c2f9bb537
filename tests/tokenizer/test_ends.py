"""Property: a generated text ends at the ids that transformers would end it at, and at the tokenizer's own end."""

import warnings
from itertools import product
from pathlib import Path

import pytest
import transformers

from moesaic.errors import MoesaicWarning
from moesaic.files import write_json
from moesaic.tokenizer import Tokenizer

TEXT, TURN, MORE = 0, 2, 3
"""The tokens that end a text, end a turn of a conversation, and end something else."""

FAMILIES = {  # ids in config.json, ids in generation_config.json, and the end of the tokenizer
    "a Qwen2 base": (TEXT, TEXT, TEXT),
    "a Qwen2 that talks": (TURN, [TURN, TEXT], TURN),
    "a Gemma 2 that talks": (TEXT, [TEXT, TURN], TEXT),
    "a Gemma 3 that talks": ([TEXT, TURN], [TEXT, TURN], TEXT),
    "a Llama 3 base": (TEXT, TEXT, TEXT),
    "a Llama 3 that talks": ([TEXT, MORE, TURN], [TEXT, MORE, TURN], TURN),
    "a Llama 2": (TEXT, TEXT, TEXT),
}
NAMED = (None, TEXT, TURN, [TEXT, TURN], [TURN, MORE])


def folder_of(folder: Path, config: object, generation: object, own: int | None) -> Path:
    Tokenizer.train(["two and two"], 262).save(folder)
    tokenizer = Tokenizer.load(folder, 0)
    ends = {} if own is None else {"eos_token": tokenizer.inner.id_to_token(own)}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **ends})
    write_json(folder / "config.json", {"model_type": "llama", "eos_token_id": config})
    if generation is not None:
        write_json(folder / "generation_config.json", {"eos_token_id": generation})
    return folder


def loaded(folder: Path) -> tuple[Tokenizer, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tokenizer = Tokenizer.load(folder)
    return tokenizer, [str(one.message) for one in told if one.category is MoesaicWarning]


def ids(value: object) -> set[int]:
    return set(value) if isinstance(value, list) else set() if value is None else {value}


def theirs(folder: Path) -> set[int]:
    """The ids at which transformers ends a text of a model in the folder."""
    if (folder / "generation_config.json").is_file():
        return ids(transformers.GenerationConfig.from_pretrained(folder).eos_token_id)
    return ids(
        transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(folder)).eos_token_id
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_family_ends_as_in_transformers_without_a_warning(family: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *FAMILIES[family])
    tokenizer, told = loaded(folder)
    assert {*tokenizer.ends} == theirs(folder) and told == []
    assert tokenizer.eos == FAMILIES[family][2], "what experts learn to end with"


@pytest.mark.parametrize(
    ("config", "generation", "own"), [one for one in product(NAMED, NAMED, [None, TEXT, TURN]) if one != (None,) * 3]
)
def test_generation_config_decides_and_one_warning_tells_what_it_leaves_out(
    config: object, generation: object, own: int | None, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, config, generation, own)
    tokenizer, told = loaded(folder)
    assert {*tokenizer.ends} == theirs(folder) | ids(own)
    assert own is None or tokenizer.eos == own
    left_out = generation is not None and not ids(config) <= ids(generation)
    assert len(told) == left_out
    if left_out:
        said = f"eos_token_id is {sorted(ids(generation))}, and {sorted(ids(config))} in config.json; generation_config"
        assert f"{folder / 'generation_config.json'}: {said}" in told[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_tokenizer_ends_as_its_source(family: str, tmp_path: Path) -> None:
    tokenizer, _ = loaded(folder_of(tmp_path, *FAMILIES[family]))
    again = tmp_path / "again"
    again.mkdir()
    tokenizer.save(again)
    found, told = loaded(again) if (again / "tokenizer_config.json").is_file() else (Tokenizer.load(again, TEXT), [])
    assert found.special == tokenizer.special and told == []
