"""Is a sentence's vector that of sentence-transformers, and is a folder that asks for another one refused by name?"""

import argparse
import collections
import inspect
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch

from moesaic.artefacts.sentence_encoder import StoredEncoder, load_sentences, save_sentences
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import read_manifest
from moesaic.interop.encoders import save_encoder
from moesaic.model.sentences import SentenceEncoder
from moesaic.testing import tiny_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "owl", "sat", "in", "a", "tree", "##s", ".", "old"]
TEXTS = ["The owl sat in the old trees.", "owl", "", "the the the [SEP] a", "A tree. " * 8]


def word_piece(framed: bool = True):
    """A tokenizer like BERT's with a handful of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    inner = Tokenizer(models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.add_special_tokens(WORDS[:5])
    if framed:
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return inner


def write(folder: Path, files: dict[str, object], framed: bool = True, vocab_size: int = 61) -> Path:
    """An encoder's folder as it is published, `files` put into it or over what is there."""
    folder.mkdir()
    save_encoder(folder, tiny_encoder("bert", "pooler", 0, torch.float32, vocab_size))
    inner = word_piece(framed)
    inner.enable_padding(length=12)
    inner.enable_truncation(6)
    (folder / "tokenizer.json").write_text(inner.to_str())
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def modules(*steps: str, path: str = "1_Pooling") -> dict[str, object]:
    places = ["", path, "2_Normalize", "3_Dense"]
    return {
        "modules.json": [{"type": f"sentence_transformers.models.{s}", "path": places[i]} for i, s in enumerate(steps)]
    }


POOLED = modules("Transformer", "Pooling")
UNIT = modules("Transformer", "Pooling", "Normalize")
MEAN = {"1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}}
FIRST = {"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}


# --- what a folder says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ("mean", False, 20)),
        ({**POOLED, **MEAN}, ("mean", False, 20)),
        ({**UNIT, **FIRST}, ("cls", True, 20)),
        ({**UNIT, "1_Pooling/config.json": {"pooling_mode": "cls"}}, ("cls", True, 20)),
        ({**UNIT, "1_Pooling/config.json": {"pooling_mode": ["mean"]}}, ("mean", True, 20)),
        ({"sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": False}}, ("mean", False, 9)),
        ({"sentence_bert_config.json": {"max_seq_length": 99}}, ("mean", False, 20)),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, ("mean", False, 20)),
    ],
)
def test_a_folder_is_read_as_it_says(files, expected, tmp_path):
    sentences = load_sentences(write(tmp_path / "encoder", files)).sentences
    assert (sentences.pool, sentences.normalise, sentences.limit) == expected


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (modules("Transformer", "Pooling", "Dense", "Normalize"), r"modules\.json: .*got Transformer, Pooling, Dense"),
        (modules("CLIPModel"), r"modules\.json: .*got CLIPModel"),
        (modules("Transformer", "Pooling", path="9_Pooling"), r"modules\.json: path: unknown paths"),
        (
            {**POOLED, "1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
            r"1_Pooling/config\.json: .*max_tokens",
        ),
        ({**POOLED, "1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "expected mean or cls; got lasttoken"),
        ({**POOLED, "1_Pooling/config.json": {"pooling_mode": ["mean", "cls"]}}, "got mean, cls"),
        (
            {**POOLED, **MEAN, "config_sentence_transformers.json": {"default_prompt_name": "query"}},
            "default_prompt_name",
        ),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, "do_lower_case"),
        ({"sentence_bert_config.json": {"max_seq_length": 1}}, "max_seq_length: not a length"),
        ({"modules.json": {"type": "Transformer"}}, r"modules\.json: .*expected a list of objects"),
        (POOLED, r"1_Pooling/config\.json: no such file"),
    ],
)
def test_a_vector_that_would_be_another_one_is_refused_by_name(files, match, tmp_path):
    with pytest.raises(WeightsError, match=match):
        load_sentences(write(tmp_path / "encoder", files))


def test_a_tokenizer_that_does_not_frame_texts_or_is_too_large_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"tokenizer\.json: post_processor: .*adds no tokens"):
        load_sentences(write(tmp_path / "bare", {}, framed=False))
    with pytest.raises(CompatibilityError, match=r"tokenizer\.json: .*more tokens .*expected <= 13; got 14"):
        load_sentences(write(tmp_path / "large", {}, vocab_size=13))


def test_a_tokenizers_own_padding_and_cutting_are_not_applied(tmp_path):
    sentences = load_sentences(write(tmp_path / "encoder", {})).sentences
    assert sentences.encode("owl") == [2, 6, 3]
    assert sentences.encode("the owl sat in a tree .") == [2, 5, 6, 7, 8, 9, 10, 12, 3]


def test_a_text_that_spells_a_special_token_is_text(tmp_path):
    sentences = load_sentences(write(tmp_path / "encoder", {})).sentences
    assert 3 not in sentences.encode("the [SEP] owl")[1:-1]


# --- there and back ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("files", [{}, {**UNIT, **FIRST, "sentence_bert_config.json": {"max_seq_length": 7}}])
def test_a_sentence_encoder_comes_back_with_its_fingerprint_and_vectors(files, tmp_path):
    stored = load_sentences(write(tmp_path / "one", files))
    (tmp_path / "two").mkdir()
    save_sentences(tmp_path / "two", stored)
    again = load_sentences(shutil.move(tmp_path / "two", tmp_path / "three"))
    assert again.fingerprint == stored.fingerprint == read_manifest(tmp_path / "three", "encoder")["fingerprint"]
    assert again.sentences(TEXTS).equal(stored.sentences(TEXTS))


def test_the_fingerprint_is_of_all_that_changes_a_vector(tmp_path):
    folders = {
        "plain": {},
        "again": {},
        "cls": {**POOLED, **FIRST},
        "unit": {**UNIT, **MEAN},
        "short": {"sentence_bert_config.json": {"max_seq_length": 9}},
    }
    found = {name: load_sentences(write(tmp_path / name, files)).fingerprint for name, files in folders.items()}
    assert found["plain"] == found["again"] and len(set(found.values())) == 4


def test_a_damaged_file_of_ours_is_refused_by_name(tmp_path):
    stored = load_sentences(write(tmp_path / "one", {}))
    (tmp_path / "two").mkdir()
    save_sentences(tmp_path / "two", stored)
    at = tmp_path / "two" / "model.safetensors"
    at.write_bytes(at.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsError, match=r"model\.safetensors: sha256: the file was changed or damaged"):
        load_sentences(tmp_path / "two")


# --- a real one -------------------------------------------------------------------------------------------------------


def sentences() -> list[str]:
    """50 texts that people wrote, of 2 to some thousand words: the documentation of this Python."""
    rooms = [collections, argparse, itertools, textwrap, statistics, pathlib, os, subprocess, json]
    docs = [
        inspect.getdoc(getattr(room, name)) or "" for room in rooms for name in sorted(vars(room)) if name[0] != "_"
    ]
    every = sorted({doc for doc in docs if doc} | {subprocess.__doc__ or "", argparse.__doc__ or ""}, key=len)
    real = [every[round(place * (len(every) - 1) / 46)] for place in range(47)]
    return [*real, "Où est la bibliothèque ?", "今日は天気がいいですね。", "Привет, мир!"]


@pytest.mark.parity
@torch.no_grad()
def test_real_sentences_get_the_vectors_that_transformers_gives(minilm):
    """Pooled by hand, one text at a time, from the states of transformers and its own tokenizer."""
    import transformers

    ours, texts = load_sentences(minilm).sentences, sentences()
    assert len(set(texts)) == 50 and 2 <= ours.truncated(texts) <= 25
    assert (ours.pool, ours.normalise, ours.limit) == ("mean", True, 256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    found = torch.cat([ours(texts[start : start + 10]) for start in range(0, 50, 10)])
    for text, vector in zip(texts, found, strict=True):
        given = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        states = model(**given).last_hidden_state[0].mean(0)
        assert (vector - states / states.norm()).abs().max() <= 1e-5, text
    pairs = found @ found.t()
    assert pairs.fill_diagonal_(-1).max() < 0.9999, "the texts are told apart"


@pytest.mark.parity
@torch.no_grad()
def test_sentence_transformers_opens_what_is_saved_here_and_agrees(minilm, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    stored, texts = load_sentences(minilm), sentences()[::5]
    save_sentences(tmp_path, stored)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs.max_seq_length == 256
    vectors = torch.from_numpy(theirs.encode(texts, show_progress_bar=False))
    assert (stored.sentences(texts) - vectors).abs().max() <= 1e-5


@torch.no_grad()
def test_a_real_sentence_gets_the_same_alone_and_beside_longer_ones(minilm):
    ours = load_sentences(minilm).sentences
    texts = sentences()[::6]
    together = ours(texts)
    for text, vector in zip(texts, together, strict=True):
        assert (ours([text])[0] - vector).abs().max() <= 1e-6


def test_an_encoder_with_a_vocabulary_of_words_alone_is_the_same_one(minilm, tmp_path):
    left_out = shutil.ignore_patterns("tokenizer.json", "special_tokens_map.json")
    older = shutil.copytree(minilm, tmp_path / "older", ignore=left_out)
    assert load_sentences(older).fingerprint == load_sentences(minilm).fingerprint


def test_a_stored_encoder_is_made_of_parts_that_can_be_given(tmp_path):
    inner = word_piece()
    made = SentenceEncoder(tiny_encoder("roberta", dtype=torch.float32), lambda text: inner.encode(text).ids, 20)
    save_sentences(tmp_path, StoredEncoder(made, inner, "0"))
    assert load_sentences(tmp_path).sentences.encoder.config.family == "roberta"
