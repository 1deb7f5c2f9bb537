"""Property: a tokenizer that is written gives transformers the ids of its source, from every published form."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
import transformers

from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import MoesaicWarning
from moesaic.files import disk, read_json, write_json
from moesaic.hub.locate import locate
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer

TEXTS = ["Once upon a time", "Hello, world! 3 + 4 = 7", "two\nlines", "naïve café 日本 🙂", "a  b"]
TEXTS += ["last ", "\ttab\u00a0", "1234567 $1.20", "I'll don't", "e\u0301 Ångström", "\n\n", "日本語 русский"]
SPACED = " first"
"""SentencePiece puts one more space before it, and transformers, where it reads a tokenizer.model, does not."""


def theirs(folder: Path, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in texts]


def ours(tokenizer: Tokenizer, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [tokenizer.begin(text) for text in texts]


def written(tokenizer: Tokenizer, folder: Path) -> Path:
    disk.make_all(folder)
    tokenizer.save(folder)
    write_json(folder / "config.json", {"model_type": "llama"})
    return folder


def byte_level(folder: Path) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def pieces(shared: Path, folder: Path, bos: bool) -> None:
    source = shared / "models" / "stories260K"
    disk.copy(source / "tokenizer.model", folder / "tokenizer.model")
    facts = {**read_json(source / "tokenizer_config.json"), "tokenizer_class": "LlamaTokenizer", "add_bos_token": bos}
    write_json(folder / "tokenizer_config.json", facts)


def merges(shared: Path, folder: Path, bos: bool) -> None:
    model = json.loads(byte_level(folder).to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    facts = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": bos}
    write_json(folder / "tokenizer_config.json", {**facts, "unk_token": "</s>"})


def whole(shared: Path, folder: Path, bos: bool) -> None:
    inner = byte_level(folder)
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    inner.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", facts)


def words(folder: Path, **settings: object) -> None:
    letters = "abcdefghijklmnopqrstuvwxyzåéö"
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *"AHIOÅ0123456789.,!+=$'日本рус", "once", "Once"]
    listed += [*(f"##{letter}" for letter in letters), "upon", "##lo", "time"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(listed)) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **settings})


FORMS = {"tokenizer.model": pieces, "vocab.json": merges, "tokenizer.json": whole}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_written_tokenizer_gives_transformers_the_ids_of_its_source(
    form: str, bos: bool, shared: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    FORMS[form](shared, source, bos)
    write_json(source / "config.json", {"model_type": "llama", "bos_token_id": 0, "eos_token_id": 1})
    tokenizer = Tokenizer.load(source, 1)
    again = written(tokenizer, tmp_path / "written")
    assert theirs(again) == ours(tokenizer) == ours(Tokenizer.load(again, 1)) == theirs(source)
    assert theirs(again, [SPACED]) == ours(tokenizer, [SPACED])


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("framed", [True, False])
def test_of_a_generic_class_the_post_processor_decides_and_the_flag_is_a_warning(
    asked: bool, framed: bool, shared: Path, tmp_path: Path
) -> None:
    whole(shared, tmp_path, framed)
    facts = read_json(tmp_path / "tokenizer_config.json")
    write_json(tmp_path / "tokenizer_config.json", {**facts, "add_bos_token": asked})
    if asked == framed:
        tokenizer = Tokenizer.load(tmp_path, 1)
    else:
        with pytest.warns(MoesaicWarning, match=r"add_bos_token is (True|False), but .*post_processor"):
            tokenizer = Tokenizer.load(tmp_path, 1)
    assert ours(tokenizer) == theirs(tmp_path)


@pytest.mark.parametrize("maker", ["GPT2Tokenizer", "Qwen2TokenizerFast", "RobertaTokenizerFast"])
def test_a_space_before_a_text_that_its_class_is_asked_for_is_put_there(
    maker: str, shared: Path, tmp_path: Path
) -> None:
    whole(shared, tmp_path, False)
    facts = {**read_json(tmp_path / "tokenizer_config.json"), "tokenizer_class": maker, "add_prefix_space": True}
    write_json(tmp_path / "tokenizer_config.json", facts)
    with pytest.warns(MoesaicWarning, match=r"add_prefix_space is True.*False in .*tokenizer\.json"):
        tokenizer = Tokenizer.load(tmp_path, 1)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("Hello world") == found("Hello world", add_special_tokens=False)["input_ids"]


def test_a_written_tokenizer_of_ranks_gives_transformers_the_ids_of_its_source(shared: Path, tmp_path: Path) -> None:
    """transformers reads the tokenizer.json of the publisher, as ranks take another package."""
    published, source = shared / "models" / "tokenizers" / "llama-3", tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        disk.copy(published / name, source / name)
    write_json(source / "config.json", {"model_type": "llama", "bos_token_id": 128000, "eos_token_id": 128001})
    tokenizer = Tokenizer.load(source)
    again = written(tokenizer, tmp_path / "written")
    assert theirs(again) == ours(tokenizer) == ours(Tokenizer.load(again)) == theirs(published)


@pytest.mark.parametrize(
    "settings", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}], ids=str
)
def test_a_written_tokenizer_of_words_gives_transformers_the_ids_of_its_source(
    settings: dict[str, bool], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    words(source, **settings)
    write_json(source / "config.json", {"model_type": "bert", "eos_token_id": 3})
    tokenizer = Tokenizer.load(source, 3)
    again = written(tokenizer, tmp_path / "written")
    closed = [[*ids, 3] for ids in ours(tokenizer)]
    assert theirs(again) == closed == [[*ids, 3] for ids in ours(Tokenizer.load(again, 3))] == theirs(source)


@pytest.mark.parametrize("size", [257, 300, 420])
def test_the_tokenizer_of_a_base_that_is_trained_here_gives_transformers_its_ids(size: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, size)
    save_base(tmp_path, tiny_decoder(1, vocab_size=tokenizer.vocab_size), tokenizer, {})
    assert theirs(tmp_path) == ours(tokenizer) == ours(load_base(tmp_path).tokenizer)
    ended = transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert ended.eos_token_id == tokenizer.eos


def test_the_tokenizer_of_the_shipped_base_gives_transformers_its_ids() -> None:
    folder = locate("shipped:tiny").folder
    assert theirs(folder) == ours(load_base(folder).tokenizer)
