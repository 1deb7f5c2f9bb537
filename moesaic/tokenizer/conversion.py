"""Converts older forms of tokenizers to the text of a tokenizer.json; ValueError for an invalid one.

Knows nothing about folders: the functions run in a guarded process, on bytes.
"""

import base64
import binascii
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from moesaic.files.plain import decoded
from moesaic.tokenizer.cutting import BYTES, CUTS, PREPENDED, SPACED

LLAMA_3_RANKS = 128_000
LLAMA_3_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"),
]

WORDPIECE = {
    **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"},
    **{"sep_token": "[SEP]", "mask_token": "[MASK]"},
}
"""The default special tokens of a BERT."""

WORD, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of a SentencePiece piece (sentencepiece_model.proto)."""
LONGEST = 512  # characters of a piece; those of Gemma have at most 31


def from_merges(given: bytes) -> bytes:
    """Convert vocab.json and merges.txt of a byte-level BPE; its tokenizer class decides how texts are split."""
    maker, vocabulary, merges = given.split(b"\0", 2)
    vocab = decoded(vocabulary)
    lines = merges.decode().split("\n")
    pairs = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line.strip()]
    if bad := next((pair for pair in pairs if len(pair) != 2), None):
        raise ValueError(f"not a merge of two tokens: {bad}")
    model = {"type": "BPE", "vocab": vocab, "merges": pairs}
    match maker.decode().removesuffix("Fast").removesuffix("Tokenizer"):
        case "Roberta":
            ends = {"sep": ["</s>", vocab["</s>"]], "cls": ["<s>", vocab["<s>"]]}
            frame = {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
            names = [name for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if name in vocab]
            added = [_added(vocab[name], name, lstrip=name == "<mask>") for name in names]
            return _written(model, added, pre_tokenizer=BYTES, post_processor=frame, decoder=BYTES)
        case "GPT2":
            added = [_added(vocab["<|endoftext|>"], "<|endoftext|>")] if "<|endoftext|>" in vocab else []
            return _written(model, added, pre_tokenizer=BYTES, decoder=BYTES)
        case "Qwen2":
            return _written(model, [], **_cutting("qwen2"), decoder=BYTES)
        case other:
            raise _unknown(other, "GPT2Tokenizer, Qwen2Tokenizer or RobertaTokenizer")


def from_words(given: bytes) -> bytes:
    """Convert the JSON of a tokenizer_config.json and, after a zero byte, the vocab.txt of BERT's WordPiece."""
    settings, words = given.split(b"\0", 1)
    config = decoded(settings)
    if (maker := config.get("tokenizer_class") or "BertTokenizer").removesuffix("Fast") != "BertTokenizer":
        raise _unknown(maker, "BertTokenizer")
    if config.get("do_basic_tokenize") is False or config.get("never_split"):
        raise ValueError("do_basic_tokenize and never_split, which only the slow tokenizer of transformers supports")
    lines = words.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocab = {word: at for at, word in enumerate(lines)}
    names = {role: config.get(role) or spelling for role, spelling in WORDPIECE.items()}
    for role in ("unk_token", "cls_token", "sep_token"):
        if names[role] not in vocab:
            raise ValueError(f"the vocabulary lacks {names[role]}, its {role}")
    model = {"type": "WordPiece", "unk_token": names["unk_token"], "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": vocab}
    normalizer = {
        **{"type": "BertNormalizer", "clean_text": True, "strip_accents": config.get("strip_accents")},
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "lowercase": config.get("do_lower_case", True),
    }
    return _written(
        model,
        [_added(vocab[name], name) for name in names.values() if name in vocab],
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_framed(names["cls_token"], names["sep_token"], vocab),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _unknown(maker: str, known: str) -> ValueError:
    return ValueError(f"unknown tokenizer_class {maker!r}; expected {known}")


def from_model(given: bytes) -> bytes:
    """Convert a tokenizer.model: of SentencePiece, or of Llama 3, with the ranks of tiktoken."""
    return _of_ranks(given) if given[:1].isalnum() else _of_pieces(given)


def _of_ranks(given: bytes) -> bytes:
    """Convert lines of a token's bytes in base64 and its rank."""
    ranks: dict[bytes, int] = {}
    try:
        for line in given.splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"not a token and its rank: {line[:80]!r}") from error
    if len(ranks) != LLAMA_3_RANKS or sorted(ranks.values()) != list(range(LLAMA_3_RANKS)):
        raise ValueError(f"{len(ranks)} ranks; only the {LLAMA_3_RANKS} of Llama 3 are supported")
    if len(longest := max(ranks, key=len)) > LONGEST:
        raise ValueError(f"a token of {len(longest)} bytes")
    spelled = {token: "".join(map(_LETTERS.__getitem__, token)) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):  # any pair may make a token, those of the lowest ranks first
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [[spelled[a], spelled[b]] for _, _, a, b in sorted(pairs)]
    vocab = {text: ranks[token] for token, text in spelled.items()}
    model = {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges}
    named = LLAMA_3_SPECIAL + [f"<|reserved_special_token_{n}|>" for n in range(2, 256 - len(LLAMA_3_SPECIAL) + 2)]
    added = [_added(LLAMA_3_RANKS + at, name) for at, name in enumerate(named)]
    frame = _framed(named[0], None, {named[0]: LLAMA_3_RANKS})
    return _written(model, added, **_cutting("llama-bpe"), post_processor=frame, decoder=BYTES)


def _of_pieces(given: bytes) -> bytes:
    """Convert a ModelProto of SentencePiece: pieces (1), settings of training (2) and of normalisation (3)."""
    fields = list(_fields(given))
    pieces = [_piece(value) for number, value in fields if number == 1]
    trained, normal = (
        dict(field for number, value in fields if number == wanted for field in _fields(value)) for wanted in (2, 3)
    )
    kind = {1: "Unigram", 2: "BPE"}.get(trained.get(3, 1))
    if kind is None or not pieces:
        raise ValueError("a SentencePiece model of words or characters" if pieces else "no SentencePiece model")
    prefix, charsmap = bool(normal.get(3, 1)), normal.get(2, b"")
    return _sentencepieces(kind, pieces, prefix, charsmap, single=bool(normal.get(4, 1)))


def _sentencepieces(
    kind: str,
    pieces: list[tuple[str, float, int]],
    prefix: bool,
    charsmap: bytes = b"",
    single: bool = False,
    **parts: Any,
) -> bytes:
    """The tokenizer of pieces with scores and types. `single`: runs of spaces become one."""
    texts = [text for text, _, _ in pieces]
    if len({*texts}) < len(texts):
        raise ValueError("a duplicate piece")
    unknown = next((at for at, (_, _, type) in enumerate(pieces) if type == UNKNOWN), None)
    model: dict[str, Any] = {"type": kind, "byte_fallback": any(type == BYTE for _, _, type in pieces)}
    if kind == "BPE":
        model |= {"unk_token": None if unknown is None else texts[unknown], "fuse_unk": True}
        model |= {"vocab": {text: at for at, text in enumerate(texts)}, "merges": _merges(pieces)}
    else:
        model |= {"unk_id": unknown, "vocab": [[text, score] for text, score, _ in pieces]}
    steps: list[dict[str, Any]] = []
    if charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if single:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    steps += [PREPENDED] if prefix else []
    steps += [SPACED]
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return _written(
        model,
        _special(pieces),
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={"type": "Sequence", "decoders": decoders},
        **parts,
    )


def _special(pieces: list[tuple[str, float, int]]) -> list[dict[str, Any]]:
    named = ((at, text, type) for at, (text, _, type) in enumerate(pieces) if type in (UNKNOWN, CONTROL, USER))
    return [_added(at, text, special=type != USER) for at, text, type in named]


def from_vocabulary(given: bytes) -> bytes:
    """Convert the vocabulary of a file of llama.cpp, as JSON: its kind, tokens, types, and scores or merges."""
    found = decoded(given)
    tokens, types = found["tokens"], found["types"]
    if not tokens or len(types) != len(tokens) or len({*tokens}) < len(tokens):
        raise ValueError("a vocabulary with duplicate tokens, or without a type for each")
    if len(longest := max(tokens, key=len)) > LONGEST:
        raise ValueError(f"a token of {len(longest)} characters")
    scores = found["scores"] or [0.0] * len(tokens)
    if len(scores) != len(tokens):
        raise ValueError(f"{len(scores)} scores of {len(tokens)} tokens")
    begin = found["start"]
    frame: dict[str, Any] = {
        "post_processor": None if begin is None else _framed(tokens[begin], None, {tokens[begin]: begin})
    }
    used = max(at for at, type in enumerate(types) if type != UNUSED) + 1 if {*types} != {UNUSED} else 0
    pieces = [*zip(tokens, scores, types, strict=True)][:used]  # what is left out fills the rows of an embedding
    if found["kind"] == "llama":
        return _sentencepieces("BPE", pieces, found["prefix"], **frame)
    pairs = [pair.split(" ") for pair in found["merges"]]
    if bad := next((pair for pair in pairs if len(pair) != 2), None):
        raise ValueError(f"not a merge of two tokens: {bad}")
    cutting = _cutting(found["pre"])
    whole = next(cut.whole for cut in CUTS if cut.name == found["pre"])
    vocab = {text: at for at, (text, _, type) in enumerate(pieces) if type != UNUSED}
    model = {"type": "BPE", "ignore_merges": whole, "vocab": vocab, "merges": pairs}
    return _written(model, _special(pieces), **cutting, decoder=BYTES, **frame)


def _merges(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
    """Pairs of pieces that make a piece, those of the best score first."""
    scores = {text: score for text, score, type in pieces if type in (WORD, USER)}
    found = []
    for at, (text, score, type) in enumerate(pieces):
        if type == WORD:
            halves = enumerate((text[:cut], text[cut:]) for cut in range(1, len(text)))
            found += [(-score, at, cut, pair) for cut, pair in halves if pair[0] in scores and pair[1] in scores]
    return [list(pair) for *_, pair in sorted(found)]


def _piece(value: Any) -> tuple[str, float, int]:
    fields = dict(_fields(value))
    text = bytes(fields.get(1, b"")).decode()
    if not 0 < len(text) <= LONGEST:
        raise ValueError(f"a piece of {len(text)} characters")
    return text, struct.unpack("<f", fields.get(2, b"\0\0\0\0"))[0], fields.get(3, WORD)


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """The numbers and values of a protobuf message's fields: integers, and bytes of texts, messages and floats."""
    if not isinstance(message, bytes):
        raise ValueError("not a message")
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"no SentencePiece model: a field of type {kind} at byte {at}")
        size, at = _number(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(message):
            raise ValueError(f"the file ends within a field at byte {at}")
        yield key >> 3, message[at : at + size]
        at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise ValueError(f"the file ends within a number at byte {at}")


def _letters() -> Iterable[str]:
    """The letter of each byte in a byte-level BPE: itself if it is visible, else one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return (chr(byte if byte in seen else next(hidden)) for byte in range(256))


_LETTERS = list(_letters())


def _cutting(name: str) -> dict[str, Any]:
    """How texts are normalised and cut, by its name in llama.cpp."""
    cut = next((cut for cut in CUTS if cut.name == name), None)
    if cut is None:
        raise ValueError(f"texts cut in the way {name!r}; expected one of {', '.join(cut.name for cut in CUTS)}")
    return {"normalizer": cut.normalizer, "pre_tokenizer": cut.pre_tokenizer}


def _added(id: int, content: str, lstrip: bool = False, special: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": lstrip, "rstrip": False, "normalized": False, "special": special}
    return {"id": id, "content": content, **flags}


def _framed(first: str, last: str | None, ids: dict[str, int]) -> dict[str, Any]:
    """The post-processor that puts special tokens around texts: `first a`, or `first a last b last`."""
    begin, end = ([{"SpecialToken": {"id": name, "type_id": 0}}] if name else [] for name in (first, last))
    one, two = ({"Sequence": {"id": text, "type_id": at}} for at, text in enumerate("AB"))
    closing = [{"SpecialToken": {"id": last, "type_id": 1}}] if last else []
    known = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (first, last) if name}
    single = [*begin, one, *end]
    pair = [*single, two, *closing]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


def _written(model: dict[str, Any], added: list[dict[str, Any]], **parts: Any) -> bytes:
    steps = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": added, **steps, **parts, "model": model}).encode()
