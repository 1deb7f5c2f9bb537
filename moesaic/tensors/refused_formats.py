"""Refuses formats of weights whose reading may run code or needs another program, with a hint how to convert them.

Knows nothing about their content: they are never opened.
"""

from pathlib import Path

from moesaic.errors import WeightsError

SAFETENSORS = ".safetensors"

_CONVERT = (
    "if you trust its author, save it again with the library it came from; a model of transformers: python -c "
    "\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('.').save_pretrained('converted')\""
)
_GGUF = "name the file itself, {old}, in place of its folder"
_FLAX = "convert it with a transformers of version 4: from_pretrained('.', {how}=True).save_pretrained('converted')"
_UNPACK = "unpack it yourself, and name the folder that holds its {new}"

WAYS_OUT = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), _CONVERT),
    ".gguf": _GGUF,
    ".msgpack": _FLAX.format(how="from_flax"),
    ".h5": _FLAX.format(how="from_tf"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"), _UNPACK),
}
"""Suffix -> hint; `{old}` is the file found, `{new}` the one wanted."""


def require_safetensors(path: Path) -> None:
    """Raise WeightsError for a file of another format, and for a missing file whose folder holds another format."""
    if path.suffix in WAYS_OUT:
        raise _refused(path, path.with_suffix(SAFETENSORS).name)
    if not path.exists() and path.parent.is_dir():
        for other in sorted(path.parent.iterdir()):
            if other.suffix in WAYS_OUT and other.stem not in NO_WEIGHTS:
                raise _refused(other, path.name)


NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""Files that trainers write beside weights."""


def _refused(path: Path, new: str) -> WeightsError:
    hint = WAYS_OUT[path.suffix].format(old=path.name.replace("'", ""), new=new)
    return WeightsError("weights of a format that is never opened", path=path, expected=new, hint=hint)
