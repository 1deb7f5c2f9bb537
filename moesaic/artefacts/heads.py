"""Classification heads on disk: one file of tensors in an expert's folder, and their shape in its manifest.

Knows nothing about adapters or training.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.errors import WeightsError
from moesaic.files import MANIFEST
from moesaic.model.classifier import Head, Shape
from moesaic.tensors.tensors import fit, read_tensors

TENSORS = "head.safetensors"

Names = dict[str, str]
OURS_BY_THEIRS: dict[str, Names] = {
    "classifier": {"classifier.": "out."},
    "classifier.dense": {"classifier.dense.": "dense.", "classifier.out_proj.": "out."},
    "score": {"score.": "out."},
}
"""Names of heads in transformers' sequence classifiers of BERT, RoBERTa and decoders -> ours."""


def facts_of(head: Head) -> dict[str, Any]:
    shape = head.shape
    own = {"labels": list(shape.labels), "dense": shape.dense, "bias": shape.bias}
    return {**own, "parameters": head.num_parameters}


def load_head(folder: Path, facts: dict[str, Any]) -> Head:
    path, labels = folder / MANIFEST, facts.get("labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise WeightsError("no list of labels", path=path, field="head.labels", expected="names", got=labels)
    tensors = read_tensors(folder / TENSORS)
    return built(folder / TENSORS, Shape(tuple(labels), bool(facts.get("dense")), bool(facts.get("bias"))), tensors)


def built(path: Path, shape: Shape, tensors: dict[str, Tensor]) -> Head:
    """Make a head of these tensors, under our names."""
    out, count = tensors.get("out.weight"), len(shape.labels)
    if out is None or out.ndim != 2 or len(out) != count:
        what, got = "the head has another number of labels", "none" if out is None else str([*out.shape])
        raise WeightsError(what, path=path, field="out.weight", expected=count, got=got)
    head = Head(shape, out.shape[1])
    fit(head, tensors, path)
    return head.eval().requires_grad_(False)


def foreign(path: Path, tensors: dict[str, Tensor], labels: tuple[str, ...]) -> Head:
    """Make a head of PEFT's tensors, under the names of transformers; `labels`: names of its logits, in order."""
    dense = "classifier.dense.weight" in tensors
    kind = "score" if "score.weight" in tensors else "classifier.dense" if dense else "classifier"
    names = OURS_BY_THEIRS[kind]
    ours = {
        mine + name.removeprefix(theirs): tensor.float()
        for name, tensor in tensors.items()
        for theirs, mine in names.items()
        if name.startswith(theirs)
    }
    if len(ours) != len(tensors) or not ours:
        raise WeightsError("unknown head", path=path, expected=" or ".join(OURS_BY_THEIRS), got=[*tensors])
    return built(path, Shape(labels, dense, "out.bias" in ours), ours)


def theirs(head: Head, decoder: bool) -> dict[str, Tensor]:
    """A head's tensors under the names of transformers; `decoder`: the base is a decoder."""
    kind = "score" if decoder else "classifier.dense" if head.shape.dense else "classifier"
    names = {mine: their for their, mine in OURS_BY_THEIRS[kind].items()}
    return {
        next(their + name.removeprefix(mine) for mine, their in names.items() if name.startswith(mine)): tensor
        for name, tensor in head.state_dict().items()
    }
