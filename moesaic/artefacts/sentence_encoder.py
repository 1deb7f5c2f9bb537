"""Sentence encoders on disk: an encoder's folder with its tokenizer, and how sentence-transformers says it pools.

A folder that says nothing of pooling is read as sentence-transformers reads it. Knows nothing about routers.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, disk, read_json, read_json_list, read_manifest, write_json, write_manifest
from moesaic.interop.encoders import identify, load_encoder, save_encoder
from moesaic.model.sentences import Pool, SentenceEncoder
from moesaic.tensors.tensors import TENSORS
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
"""The switches of older files -> what newer ones write as `pooling_mode`."""

CHAIN = [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")]
"""The steps from text to vector that are computed here."""


@dataclass(frozen=True)
class StoredEncoder:
    """A sentence encoder as read. `fingerprint`: of its tensors, wiring and tokenizer, and of how it cuts and pools."""

    sentences: SentenceEncoder
    tokenizer: "tokenizers.Tokenizer"
    fingerprint: str


def save_sentences(folder: Path, stored: StoredEncoder) -> None:
    """Write a sentence encoder into an empty folder, as sentence-transformers would, with our manifest."""
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
    """Read a sentence encoder, ours or another's; refuses by name what would be computed otherwise elsewhere."""
    if not folder.is_dir():
        raise WeightsError("no such encoder folder", path=folder, hint="give a folder with config.json and its weights")
    if (folder / MANIFEST).is_file():
        read_manifest(folder, KIND)
    encoder = load_encoder(folder, torch.get_default_dtype())
    pool, normalise = read_pooling(folder)
    limit = read_limit(folder, encoder.config.context)
    inner = read_tokenizer(folder)
    size, vocabulary = encoder.config.vocab_size, max(inner.get_vocab().values()) + 1
    if vocabulary > size:
        what, path = "the tokenizer has more tokens than the encoder", folder / JSON
        raise CompatibilityError(what, path=path, expected=f"<= {size}", got=vocabulary)
    sentences = SentenceEncoder(encoder, lambda text: inner.encode(text).ids, limit, pool, normalise)
    fingerprint = digest([identify(encoder), inner.to_str(), pool, normalise, limit])
    return StoredEncoder(sentences.eval(), inner, fingerprint)


def read_tokenizer(folder: Path) -> "tokenizers.Tokenizer":
    """The folder's tokenizer, which begins and ends every text with tokens of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some characters are dropped is how BERT's reads, and nothing is decoded
        inner = read_inner(folder, described(folder))
    inner.encode_special_tokens = True  # what a user types is text, even where it spells a special token
    if len(inner.encode("").ids) != 2:
        what, expected = "the tokenizer does not begin and end a text", "one token before it and one behind"
        raise WeightsError(what, path=folder / JSON, field="post_processor", expected=expected)
    return inner


def read_pooling(folder: Path) -> tuple[Pool, bool]:
    """How states become one vector, and whether that gets unit length; where nothing is said, their mean as it is."""
    if not (folder / MODULES).is_file():
        return "mean", False
    modules = read_json_list(folder / MODULES)
    steps = tuple(str(module.get("type")).rpartition(".")[2] for module in modules)
    if steps not in CHAIN:
        expected = " or ".join(", ".join(chain) for chain in CHAIN)
        got = ", ".join(steps)
        raise WeightsError("steps that are not computed here", path=folder / MODULES, expected=expected, got=got)
    places = [module.get("path") for module in modules[:2]]
    if places != ["", "1_Pooling"]:
        raise WeightsError(
            "modules lie elsewhere", path=folder / MODULES, field="path", expected="1_Pooling", got=places
        )
    prompt = read_json(folder / PROMPTS).get("default_prompt_name") if (folder / PROMPTS).is_file() else None
    if prompt is not None:
        what = "texts are put behind a prompt, which is not done here"
        raise WeightsError(what, path=folder / PROMPTS, field="default_prompt_name", expected="null", got=prompt)
    return read_pool(folder / POOLING), len(steps) == 3


def read_pool(path: Path) -> Pool:
    """The one pooling that a configuration asks for, in the words of older files or newer ones."""
    config = read_json(path)
    older = [MODES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on]
    named: Any = config.get("pooling_mode", older or ["mean"])
    modes = named if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in get_args(Pool):
        expected, got = " or ".join(get_args(Pool)), ", ".join(map(str, modes))
        raise WeightsError("pools in a way that is not computed here", path=path, expected=expected, got=got)
    pool: Pool = modes[0]
    return pool


def read_limit(folder: Path, context: int) -> int:
    """How many tokens of a text are read: what the folder says, and never more than the encoder has positions for."""
    path = folder / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    if settings.get("do_lower_case"):
        what, hint = "texts are lowered before they are read", "let the tokenizer's normalizer do it"
        raise WeightsError(what, path=path, field="do_lower_case", expected="false", hint=hint)
    limit = settings.get("max_seq_length")
    if limit is None:
        return context
    if not isinstance(limit, int) or limit < 2:
        raise WeightsError("not a length", path=path, field="max_seq_length", expected="2 or more", got=limit)
    return min(limit, context)
