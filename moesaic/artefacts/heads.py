"""Classification heads on disk: one file of tensors in an expert's folder, what they mean in its manifest.

Knows nothing about adapters, nor how a head was trained.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.errors import WeightsError
from moesaic.files import MANIFEST
from moesaic.model.classifier import Head, Shape
from moesaic.tensors.tensors import fit, read_tensors, write_tensors

TENSORS = "head.safetensors"

Names = dict[str, str]
OURS_BY_THEIRS: dict[str, Names] = {
    "classifier": {"classifier.": "out."},
    "classifier.dense": {"classifier.dense.": "dense.", "classifier.out_proj.": "out."},
    "score": {"score.": "out."},
}
"""The heads of transformers' models for sequence classification, BERT's, RoBERTa's and the decoders': their names."""


def facts_of(head: Head) -> dict[str, Any]:
    """What a manifest says of a head."""
    shape = head.shape
    own = {"labels": list(shape.labels), "dense": shape.dense, "bias": shape.bias}
    return {**own, "parameters": head.num_parameters}


def save_head(folder: Path, head: Head) -> None:
    write_tensors(folder / TENSORS, head.state_dict())


def load_head(folder: Path, facts: dict[str, Any]) -> Head:
    """The head of a folder whose manifest says `facts` of it."""
    path, labels = folder / MANIFEST, facts.get("labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise WeightsError("no list of labels", path=path, field="head.labels", expected="names", got=labels)
    tensors = read_tensors(folder / TENSORS)
    return built(folder / TENSORS, Shape(tuple(labels), bool(facts.get("dense")), bool(facts.get("bias"))), tensors)


def built(path: Path, shape: Shape, tensors: dict[str, Tensor]) -> Head:
    """A head of these tensors, whose names are ours."""
    out = tensors.get("out.weight")
    if out is None or out.ndim != 2 or len(out) != len(shape.labels):
        got = "none" if out is None else str([*out.shape])
        raise WeightsError(
            "the head has another number of labels", path=path, field="out.weight", expected=len(shape.labels), got=got
        )
    head = Head(shape, out.shape[1])
    fit(head, tensors, path)
    return head.eval().requires_grad_(False)


def foreign(path: Path, tensors: dict[str, Tensor], labels: tuple[str, ...]) -> Head:
    """A head under the names of transformers, as PEFT keeps it; `labels`: names of its logits, in their order."""
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
        raise WeightsError(
            "no head that is known here", path=path, expected=" or ".join(OURS_BY_THEIRS), got=[*tensors]
        )
    return built(path, Shape(labels, dense, "out.bias" in ours), ours)


def theirs(head: Head, decoder: bool) -> dict[str, Tensor]:
    """A head's tensors under the names of transformers; `decoder`: of a base that is one."""
    kind = "score" if decoder else "classifier.dense" if head.shape.dense else "classifier"
    names = {mine: their for their, mine in OURS_BY_THEIRS[kind].items()}
    return {
        next(their + name.removeprefix(mine) for mine, their in names.items() if name.startswith(mine)): tensor
        for name, tensor in head.state_dict().items()
    }
