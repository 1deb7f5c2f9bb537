"""The ids that mean something to a model: what begins a text, what ends it, what pads it, what stands for the unknown.

Knows nothing about text; it is read from the files beside a tokenizer, whoever wrote them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import WeightsError
from moesaic.files import read_json

if TYPE_CHECKING:
    import tokenizers

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Special:
    """`eos` is written at the end of a text; any of `ends` ends one that a model writes, `eos` among them.

    `start` is what the model expects before the first token of every sequence. `names`: the spellings that the
    tokenizer's own files give to their tokens, as a chat template asks for them ("bos_token": "<s>").
    """

    eos: int
    ends: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None
    unk: int | None = None
    start: tuple[int, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(dict.fromkeys((self.eos, *self.ends))))


def described(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the tokens that only special_tokens_map.json names; what is missing is empty."""
    config, named = (_optional(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    return {**named, **{key: value for key, value in config.items() if value is not None or key not in ROLES}}


def read_special(
    folder: Path, inner: "tokenizers.Tokenizer", config: dict[str, Any], eos: int | None = None, start: bool = False
) -> Special:
    """The special ids of a folder, each looked up in the tokenizer. `config`: what `described` found there.

    A text ends at whatever config.json, generation_config.json and the tokenizer name; `eos` is the model's own end,
    where the caller knows it. The tokenizer's name for the end comes first, as it is what texts were trained with.
    `start`: whether sequences begin with the `bos` token where the files are silent about that.
    """
    names = {role: text for role in ROLES if (text := _spelled(config.get(role), folder, role)) is not None}
    ids = {role: inner.token_to_id(text) for role, text in names.items()}
    found: list[int] = [] if eos is None else [eos]
    for file in ("config.json", "generation_config.json"):
        found += _listed(folder / file)
    own = ids.get("eos_token")
    ends = ([] if own is None else [own]) + found
    if not ends:
        hint = "name it in config.json (eos_token_id) or tokenizer_config.json (eos_token)"
        raise WeightsError("no token ends a text", path=folder, field="eos", hint=hint)
    for id in ends:
        if inner.id_to_token(id) is None:
            what = "the tokenizer lacks the model's end-of-text token"
            raise WeightsError(what, path=folder / "tokenizer.json", field="eos", got=id)
    bos = ids.get("bos_token")
    if start and bos is None:
        bos = next(iter(_listed(folder / "config.json", "bos_token_id")), None)
    begins = _start(inner, config.get("add_bos_token"), bos, start)
    if None in begins:
        what = "a sequence is to begin with a token that the tokenizer lacks"
        raise WeightsError(what, path=folder / "tokenizer_config.json", field="bos_token", got=names.get("bos_token"))
    return Special(
        eos=ends[0],
        ends=tuple(ends),
        bos=bos,
        pad=ids.get("pad_token"),
        unk=ids.get("unk_token"),
        start=tuple(id for id in begins if id is not None),
        names=tuple(names.items()),
    )


def _start(inner: "tokenizers.Tokenizer", asked: Any, bos: int | None, otherwise: bool) -> list[int | None]:
    """What begins a sequence: as the configuration says; else what the tokenizer's post-processor puts first."""
    if isinstance(asked, bool):
        return [bos] if asked else []
    framed, bare = (inner.encode("a", add_special_tokens=framed).ids for framed in (True, False))
    before = framed[: next((at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), 0)]
    return [*before] or ([bos] if otherwise and bos is not None else [])


def spelled(value: Any) -> Any:
    """The spelling of a token, which stands by itself or in a table with its flags."""
    return value.get("content") if isinstance(value, dict) else value


def _spelled(value: Any, folder: Path, role: str) -> str | None:
    text = spelled(value)
    if text is not None and not isinstance(text, str):
        path = folder / "tokenizer_config.json"
        raise WeightsError("not a token", path=path, field=role, expected="text, or {content}", got=json.dumps(value))
    return text


def _listed(path: Path, key: str = "eos_token_id") -> list[int]:
    value = _optional(path).get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for id in ids:
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < 1 << 32:
            raise WeightsError("not a token", path=path, field=key, expected="an id, or several", got=id)
    return ids


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
