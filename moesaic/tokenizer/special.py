"""Special ids, which begin, end or pad a text or replace unknown characters, from the files beside a tokenizer.

Knows nothing about text.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import MoesaicWarning, WeightsError
from moesaic.files import read_json

if TYPE_CHECKING:
    import tokenizers

SETTINGS, NAMED = "tokenizer_config.json", "special_tokens_map.json"
GENERATION = "generation_config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Special:
    """Special ids. `eos` ends a text that is written; any of `ends`, `eos` among them, ends one that a model generates.

    `start`: the ids that begin every sequence. `names`: role and text of special tokens, for chat templates, such as
    ("bos_token", "<s>").
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
    """tokenizer_config.json, with tokens that only special_tokens_map.json names; a missing file counts as empty.

    Where the two differ, the first decides if it has a table of added tokens, else the second, as in transformers.
    """
    config, named = (
        {key: value for key, value in _optional(folder / name).items() if value is not None or key not in ROLES}
        for name in (SETTINGS, NAMED)
    )
    whole = "added_tokens_decoder" in config
    told = {role: (spelled(config[role]), spelled(named[role])) for role in ROLES if role in config and role in named}
    differing = [f"{role} is {one}, and {two} in {folder / NAMED}" for role, (one, two) in told.items() if one != two]
    if differing:
        text = f"{'; '.join(differing)}; {SETTINGS if whole else NAMED} decides, as in transformers"
        warnings.warn(f"{folder / SETTINGS}: {text}", MoesaicWarning, stacklevel=3)
    return {**named, **config} if whole else {**config, **named}


def read_special(
    folder: Path,
    inner: "tokenizers.Tokenizer",
    config: dict[str, Any],
    eos: int | None = None,
    start: bool = False,
    flagged: bool = True,
) -> Special:
    """The special ids of a folder, each looked up in the tokenizer. `config`: the result of `described`.

    A text ends at the tokenizer's own end, which comes first, as the model was trained with it, and at every id that
    `ends_of` finds; `eos`: the end in the model's config.json where the caller knows it. `start`: whether
    sequences begin with the `bos` token where the files do not say. `flagged`: whether `add_bos_token` decides it, as
    in the classes of transformers that have the flag; for others the post-processor of tokenizer.json does.
    """
    names = {role: text for role in ROLES if (text := _spelled(config.get(role), folder, role)) is not None}
    ids = {role: inner.token_to_id(text) for role, text in names.items()}
    own = ids.get("eos_token")
    ends = ([] if own is None else [own]) + ends_of(folder, eos)
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
    asked = config.get("add_bos_token")
    begins = _start(inner, asked if flagged else None, bos, start)
    if not flagged and isinstance(asked, bool) and asked != (begins[:1] == [bos] != [None]):
        text = f"add_bos_token is {asked}, but sequences begin with {begins} by the post_processor of tokenizer.json"
        where = folder / "tokenizer_config.json"
        warnings.warn(f"{where}: {text}, which decides for {GENERIC}", MoesaicWarning, stacklevel=3)
    if None in begins:
        what = "sequences should begin with a token that the tokenizer lacks"
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


def ends_of(folder: Path, eos: int | None = None) -> list[int]:
    """The ids that end a generated text: those of generation_config.json if it names any, else those of config.json.

    As in transformers; a warning tells where the first leaves out an id of the second. `eos`: an id that the model's
    config.json names, which may be in another folder.
    """
    own = list(dict.fromkeys(([] if eos is None else [eos]) + _listed(folder / "config.json")))
    deciding = _listed(folder / GENERATION)
    if deciding and not {*own} <= {*deciding}:
        text = f"eos_token_id is {deciding}, and {own} in config.json; {GENERATION} decides, as in transformers"
        warnings.warn(f"{folder / GENERATION}: {text}", MoesaicWarning, stacklevel=4)
    return deciding or own


def _start(inner: "tokenizers.Tokenizer", asked: Any, bos: int | None, otherwise: bool) -> list[int | None]:
    """The ids that begin a sequence: by the configuration, else by the tokenizer's post-processor."""
    if isinstance(asked, bool):
        return [bos] if asked else []
    framed, bare = (inner.encode("a", add_special_tokens=framed).ids for framed in (True, False))
    before = framed[: next((at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), 0)]
    return [*before] or ([bos] if otherwise and bos is not None else [])


GENERIC = "PreTrainedTokenizerFast"
"""The class of transformers that reads a tokenizer.json as it is."""


def is_generic(config: dict[str, Any]) -> bool:
    """Whether transformers reads the tokenizer.json of a folder by a class without flags of its own."""
    return config.get("tokenizer_class") in (GENERIC, "TokenizersBackend")


def begin_with(inner: "tokenizers.Tokenizer", start: tuple[int, ...]) -> None:
    """Let the post-processor, by which other programs begin sequences, put these ids first, if it does not yet."""
    from tokenizers import processors

    if [*start] == _start(inner, None, None, False):
        return
    names = [inner.id_to_token(id) for id in start]
    before = [f"{name}:0" for name in names]
    known = [*zip(names, start, strict=True)]
    one, two = [*before, "$A:0"], [*before, "$A:0", "$B:1"]
    inner.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=known)


def spelled(value: Any) -> Any:
    """The text of a token, which is given alone or in a table with its flags."""
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
