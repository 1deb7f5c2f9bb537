"""Sentence encoders on disk: an encoder's folder with its tokenizer and the settings of sentence-transformers.

A folder without settings gets the defaults of sentence-transformers. Knows nothing about routers.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, disk, read_json, read_json_list, read_manifest, write_json, write_manifest
from moesaic.interop.encoders import identify, load_encoder, save_encoder
from moesaic.model.encoder import Encoder
from moesaic.model.sentences import Pool, SentenceEncoder
from moesaic.tensors.file_names import TENSORS
from moesaic.tokenizer.published import JSON, read_inner
from moesaic.tokenizer.special import described

if TYPE_CHECKING:
    import tokenizers

KIND = "encoder"
MODULES, POOLING, SETTINGS, PROMPTS = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
FILES = ("config.json", TENSORS, JSON, MODULES, POOLING, SETTINGS)
MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""Switches of older files -> values of `pooling_mode` in newer ones."""

CHAIN = [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")]
"""Supported steps from text to vector."""


@dataclass(frozen=True)
class StoredEncoder:
    """A sentence encoder as read. `fingerprint`: hash of tensors, wiring, tokenizer, limit and pooling."""

    sentences: SentenceEncoder
    tokenizer: "tokenizers.Tokenizer"
    fingerprint: str


def save_sentences(folder: Path, stored: StoredEncoder) -> None:
    """Write a sentence encoder into an empty folder, in the format of sentence-transformers, with our manifest."""
    sentences = stored.sentences
    save_encoder(folder, sentences.encoder)
    disk.create(folder / JSON, f"{stored.tokenizer.to_str(pretty=True)}\n".encode())
    steps = CHAIN[sentences.normalise]
    disk.make_all((folder / POOLING).parent)
    modes = {key: mode == sentences.pool for key, mode in MODES.items()}
    write_json(folder / POOLING, {"word_embedding_dimension": sentences.encoder.config.hidden_size, **modes})
    write_json(folder / SETTINGS, {"max_seq_length": sentences.limit, "do_lower_case": False})
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": paths[index], "type": f"sentence_transformers.models.{step}"}
        for index, step in enumerate(steps)
    ]
    write_json(folder / MODULES, modules)
    size = sum(weight.numel() for weight in sentences.encoder.parameters())
    facts = {"family": sentences.encoder.config.family, "parameters": size, "pool": sentences.pool}
    facts |= {"normalise": sentences.normalise, "limit": sentences.limit}
    write_manifest(folder, {"kind": KIND, "fingerprint": stored.fingerprint, **facts})


def load_sentences(folder: Path) -> StoredEncoder:
    """Read a sentence encoder, ours or foreign; WeightsError for settings that are not supported."""
    if (folder / MANIFEST).is_file():
        read_manifest(folder, KIND)
    encoder = load_encoder(folder, torch.get_default_dtype())
    pool, normalise = read_pooling(folder)
    limit = read_limit(folder, encoder.config.context)
    inner = read_tokenizer(folder, encoder)
    sentences = SentenceEncoder(encoder, lambda text: inner.encode(text).ids, limit, pool, normalise)
    fingerprint = digest([identify(encoder), inner.to_str(), pool, normalise, limit])
    return StoredEncoder(sentences.eval(), inner, fingerprint)


def read_tokenizer(folder: Path, encoder: Encoder) -> "tokenizers.Tokenizer":
    """Read the tokenizer of an encoder, which must add one token before a text and one after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BERT's tokenizer drops characters by design, and nothing is decoded
        inner = read_inner(folder, described(folder))
    inner.encode_special_tokens = True  # a user's text is text, even if it spells a special token
    if len(inner.encode("").ids) != 2:
        what, expected = "the tokenizer adds no tokens around a text", "one token before it and one after it"
        raise WeightsError(what, path=folder / JSON, field="post_processor", expected=expected)
    size, vocabulary = encoder.config.vocab_size, max(inner.get_vocab().values()) + 1
    if vocabulary > size:
        what = "the tokenizer has more tokens than the encoder"
        raise CompatibilityError(what, path=folder / JSON, expected=f"<= {size}", got=vocabulary)
    return inner


def read_pooling(folder: Path) -> tuple[Pool, bool]:
    """The pooling of states, and whether vectors get unit length (default: mean, false)."""
    if not (folder / MODULES).is_file():
        return "mean", False
    modules = read_json_list(folder / MODULES)
    steps = tuple(str(module.get("type")).rpartition(".")[2] for module in modules)
    if steps not in CHAIN:
        expected = " or ".join(", ".join(chain) for chain in CHAIN)
        got = ", ".join(steps)
        raise WeightsError("unsupported steps", path=folder / MODULES, expected=expected, got=got)
    paths, expected = [module.get("path") for module in modules[:2]], "1_Pooling"
    if paths != ["", expected]:
        raise WeightsError("unknown paths", path=folder / MODULES, field="path", expected=expected, got=paths)
    prompt = read_json(folder / PROMPTS).get("default_prompt_name") if (folder / PROMPTS).is_file() else None
    if prompt is not None:
        what = "a prompt before texts is not supported"
        raise WeightsError(what, path=folder / PROMPTS, field="default_prompt_name", expected="null", got=prompt)
    return read_pool(folder / POOLING), len(steps) == 3


def read_pool(path: Path) -> Pool:
    """The one pooling of a configuration, in the keys of older files or newer ones."""
    config = read_json(path)
    older = [MODES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on]
    named: Any = config.get("pooling_mode", older or ["mean"])
    modes = named if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in get_args(Pool):
        expected, got = " or ".join(get_args(Pool)), ", ".join(map(str, modes))
        raise WeightsError("unsupported pooling", path=path, expected=expected, got=got)
    pool: Pool = modes[0]
    return pool


def read_limit(folder: Path, context: int) -> int:
    """The limit of a text in tokens, at most the encoder's positions."""
    path = folder / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    if settings.get("do_lower_case"):
        what, hint = "lowering texts is not supported", "let the tokenizer's normalizer do it"
        raise WeightsError(what, path=path, field="do_lower_case", expected="false", hint=hint)
    limit = settings.get("max_seq_length")
    if limit is None:
        return context
    if not isinstance(limit, int) or limit < 2:
        raise WeightsError("not a length", path=path, field="max_seq_length", expected="2 or more", got=limit)
    return min(limit, context)
