"""Property: of a fact that two files of a folder state differently, the one counts that transformers goes by."""

import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
import transformers

from moesaic.errors import MoesaicWarning
from moesaic.files import disk, read_json, write_json
from moesaic.tokenizer import Tokenizer

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
CLASSES = ("PreTrainedTokenizerFast", "GPT2Tokenizer")
TEXTS = ["a  tool  b", "toolbox, tool", "Tool TOOL tool\n", "new <|new|> x", "tool", " tool tool"]


def facts(random: Random, content: str) -> dict[str, Any]:
    return {"content": content, **{flag: random.random() < 0.5 for flag in FLAGS}}


def folder_of(seed: int, folder: Path) -> Path:
    """A folder whose files agree or differ in a token's flags, its tokens with roles, and what is added."""
    random = Random(seed)
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    named = ["<s>", "</s>", "<pad>"]
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=named, initial_alphabet=letters, show_progress=False)
    inner.train_from_iterator(["a box"], trainer)
    inner.add_tokens([tokenizers.AddedToken(**{**facts(random, "tool"), "special": False})])
    inner.save(str(folder / "tokenizer.json"))
    tool = inner.token_to_id("tool")
    roles = {"bos_token": random.choice(named), "eos_token": "</s>", "unk_token": "<pad>"}
    config = {"tokenizer_class": random.choice(CLASSES), "add_prefix_space": random.random() < 0.5, **roles}
    if random.random() < 0.6:
        kept = inner.get_added_tokens_decoder().items()
        table = {str(id): {"content": token.content, "special": True, "normalized": False} for id, token in kept}
        config["added_tokens_decoder"] = {**table, str(tool): facts(random, "tool")}
    write_json(folder / "tokenizer_config.json", config)
    if random.random() < 0.5:
        write_json(folder / "special_tokens_map.json", {"bos_token": random.choice(named)})
    if random.random() < 0.5:
        write_json(folder / "added_tokens.json", {"tool": tool, "<|new|>": tool + 1})
    write_json(folder / "config.json", {"model_type": "llama", "eos_token_id": 1})
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(60))
def test_files_that_differ_give_the_ids_and_roles_that_transformers_reads(seed: int, tmp_path: Path) -> None:
    folder = folder_of(seed, tmp_path)
    found = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MoesaicWarning)
        own = Tokenizer.load(folder)
    for text in TEXTS:
        assert own.encode(text) == found(text, add_special_tokens=False)["input_ids"], text
    assert own.special.bos == found.bos_token_id
    assert own.vocab_size == max(found.get_vocab().values()) + 1


def change(folder: Path, name: str, **facts: Any) -> None:
    path = folder / name
    write_json(path, {**(read_json(path) if path.is_file() else {}), **facts})


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    Tokenizer.train(["a tool"], 262).save(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>"})
    return tmp_path


def test_a_flag_that_differs_is_one_warning_with_both_files_and_values(plain: Path) -> None:
    change(plain, "tokenizer_config.json", added_tokens_decoder={"0": {"content": "<|end|>", "lstrip": True}})
    with pytest.warns(MoesaicWarning) as told:
        Tokenizer.load(plain)
    assert len(told) == 1
    said = str(told[0].message)
    assert f"{plain / 'tokenizer_config.json'}: " in said and f"lstrip True, and False in {plain}" in said


@pytest.mark.parametrize("table", [True, False])
def test_a_token_with_a_role_is_that_of_the_file_that_transformers_reads(table: bool, plain: Path) -> None:
    if table:
        described = {"content": "<|end|>", "special": True, "normalized": False}
        change(plain, "tokenizer_config.json", added_tokens_decoder={"0": described})
    change(plain, "tokenizer_config.json", pad_token="a")
    change(plain, "special_tokens_map.json", pad_token="t")
    with pytest.warns(MoesaicWarning, match=r"pad_token is a, and t in .*special_tokens_map\.json; .* decides") as told:
        tokenizer = Tokenizer.load(plain)
    assert len(told) == 1
    assert tokenizer.special.pad == tokenizer.inner.token_to_id("a" if table else "t")


@pytest.mark.parity
@pytest.mark.parametrize("asked", [True, False])
def test_the_space_before_a_text_of_a_llama_is_as_its_class_is_asked(asked: bool, shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "tokenizers" / "llama-2" / "tokenizer.model"
    disk.copy(source, tmp_path / "tokenizer.model")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": asked})
    write_json(tmp_path / "config.json", {"model_type": "llama", "eos_token_id": 2, "bos_token_id": 1})
    own, found = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello x", "z"):
        ids = own.encode(text)
        assert ids == found(text, add_special_tokens=False)["input_ids"]
        assert own.decode(ids) == found.decode(ids)


@pytest.mark.parity
@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_bert_is_read_by_the_settings_of_its_class(key: str, asked: bool, minilm: Path, tmp_path: Path) -> None:
    disk.copy(minilm / "tokenizer.json", tmp_path / "tokenizer.json")
    write_json(tmp_path / "config.json", {"model_type": "bert", "eos_token_id": 102})
    config = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True, key: asked}
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        own = Tokenizer.load(tmp_path)
    assert sum(key in str(one.message) for one in told) == ((key, asked) not in UNCHANGED)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("An Owl", "caf\u00e9 Caf\u00c9", "\u65e5\u672c"):
        assert own.encode(text) == found(text, add_special_tokens=False)["input_ids"]


UNCHANGED = {("do_lower_case", True), ("tokenize_chinese_chars", True)}
"""Settings that the tokenizer.json has, too."""
