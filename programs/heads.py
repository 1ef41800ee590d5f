"""Linear heads: labels read from numbers that the model computes anyway, without a prompt that asks for them.

A head is a multinomial logistic regression, fitted on labelled rows (`optimizers/heads.py`). Its inputs are either the
hidden state of one layer (`pooling` says how a prompt's tokens become one vector), or the labels' own log-likelihoods
(`scores`), which makes it the calibration `matrix`: Guo et al. 2017 (arXiv 1706.04599, section 4.2) call it matrix
scaling.

A head belongs to the weights of one model and to one prompt. It is kept as a safetensors file beside the compiled
program, `NAME.PREDICTOR.FIELD.HASH.head.safetensors`, and the program names the file with its SHA-256, labels, layer
and pooling. The hash in the name is the beginning of the file's own: programs of one name that lie in one folder each
keep their heads, and a compile never overwrites the head of a program that is in use. Reading one runs no code, reads
no file outside the program's folder, and checks everything that the program says of it.

A head says which target it was fitted on. Another one with as many hidden units would give it numbers that mean nothing
to it, and its labels would look like any, so it is refused there. A matrix reads the labels' log-likelihoods, which
mean the same on every model, like the offsets of any other calibration: where it was fitted elsewhere, that is only
warned of.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import InputError
from ..files import read_bytes, write_atomic
from ..models.engine import Engine
from .schema import Target
from .state import HeadChoice, ReadOut

logger = logging.getLogger("cuecard")

Pooling = Literal["last", "mean", "scores"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "scores")
ENDING = ".head.safetensors"
MOST_BYTES = 1 << 28
NAMED = 12  # hexadecimal digits of a head's SHA-256 in its file's name

FloatArray = NDArray[np.float64]
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Head:
    """Logits of the K labels: `weights [K, d] @ ((features [d] - mean [d]) / scale [d]) + bias [K]`, in float32.

    layer: whose output the features are, 1 for the first decoder layer, None for `scores`; pooling: `last` and `mean`
    are a prompt's last token and the mean over its tokens, `scores` the log-likelihoods of the labels, so that d = K;
    target: the identity of the target that gave the features it was fitted on, None where that is not known.
    """

    labels: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    layer: int | None
    pooling: Pooling
    target: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __deepcopy__(self, memo: object) -> Head:
        return self  # it never changes, and programs are copied for every candidate

    def logits(self, features: NDArray[Any]) -> FloatArray:
        """[K] or [n, K] from features [d] or [n, d]. Raises `InputError` for features of another width."""
        if features.shape[-1:] != self.mean.shape:
            raise InputError(
                f"the head takes {len(self.mean)} numbers and got {features.shape[-1]}",
                hint="It was fitted for another model: compile the program for this one.",
            )
        standard = (features.astype(np.float64) - self.mean) / self.scale
        return np.asarray(standard @ self.weights.T.astype(np.float64) + self.bias)

    def predict(self, features: NDArray[Any]) -> str:
        """The label of features [d]; ties go to the first. Raises `InputError`, see `logits`."""
        return self.labels[int(self.logits(features).argmax())]

    @cached_property
    def content(self) -> bytes:
        """The head as the bytes of a safetensors file: the same head, the same bytes."""
        told: dict[str, Any] = {"labels": list(self.labels), "layer": self.layer, "pooling": self.pooling}
        told |= {"target": self.target} if self.target is not None else {}
        return save(self._arrays(), metadata={"cuecard_head": json.dumps(told, ensure_ascii=False, sort_keys=True)})

    @cached_property
    def sha256(self) -> str:
        """The hash of `content`."""
        return hashlib.sha256(self.content).hexdigest()

    def write(self, path: str | PathLike[str]) -> None:
        """Write the head, whole or not at all. Raises `InputError` where it can't be written."""
        write_atomic(path, self.content)

    @cached_property
    def _strangers(self) -> set[str]:
        """The targets that a warning was given for."""
        return set()

    def _arrays(self) -> Arrays:
        return {"weights": self.weights, "bias": self.bias, "mean": self.mean, "scale": self.scale}


def head_file(stem: str, predictor: str, field: str, head: Head) -> str:
    """The name of the head's file beside a compiled program called `stem`; another head has another.

    Predictors of Python programs may be called `parts[0]`: what does not belong in a file's name becomes `_`.
    """
    plain = "".join(mark if mark.isalnum() or mark in "._-" else "_" for mark in f"{predictor}.{field}")
    return f"{stem}.{plain}.{head.sha256[:NAMED]}{ENDING}"


def read_head(
    folder: str | PathLike[str],
    name: str,
    *,
    sha256: str,
    labels: Sequence[str],
    layer: int | None,
    pooling: str,
    width: int | None = None,
) -> Head:
    """The head in the file `name` of `folder`, which is what the other arguments say of it.

    width: how many features the model gives, where that is known. Raises `InputError` for a name that leads out of the
    folder, a file that is missing or not a head, or one that is not as said.
    """
    path = _inside(Path(folder), name)
    content = read_bytes(path, MOST_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.lower():
        raise InputError(
            f"the file's SHA-256 is {found}",
            path=path,
            expected=sha256,
            hint="It is not the file that was written with the program: copy both together, or compile again.",
        )
    head = parse_head(content, path)
    for what, has, said in (
        ("labels", list(head.labels), list(labels)),
        ("layer", head.layer, layer),
        ("pooling", head.pooling, pooling),
        ("width", len(head.mean), len(head.mean) if width is None else width),
    ):
        if has != said:
            raise InputError(
                f"the head's {what}: {has!r}", path=path, expected=repr(said), hint="Compile the program again."
            )
    return head


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    plain = Path(name).name == name and name not in (".", "..") and "\\" not in name and "\0" not in name
    if not plain or not name.endswith(ENDING) or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"the head's file is {name!r}",
            path=folder,
            field="weights",
            expected=f"the name of a file in the program's own folder that ends in {ENDING}",
        )
    return path


def choice_of(head: Head, name: str) -> HeadChoice:
    """What a predictor's state says of `head`, which goes along in memory; `name`: of its file."""
    choice = HeadChoice(weights=name, sha256=head.sha256, labels=head.labels, layer=head.layer, pooling=head.pooling)
    choice._head = head
    return choice


def loaded(choice: HeadChoice) -> Head:
    """The head that goes along with `choice`. Raises `InputError` where its file was not read."""
    if not isinstance(choice._head, Head):
        raise InputError(
            f"the head in {choice.weights!r} was not read",
            hint="Load the compiled program from its file, with the heads' files beside it.",
        )
    return choice._head


def check_target(
    readouts: Iterable[ReadOut], engine: Engine, made_for: Target | None = None, path: str | None = None
) -> None:
    """Raise `InputError` where a head was fitted on another target than `engine`; warn of a matrix that was.

    made_for: the target of the compiled program, for heads that do not say on which they were fitted; path: its file.
    """
    for readout in readouts:
        for field, choice in readout.heads.items():
            check_head(field, choice, engine, made_for, path)


def check_head(
    field: str, choice: HeadChoice, engine: Engine, made_for: Target | None = None, path: str | None = None
) -> None:
    """`check_target` for the head of one output field. A matrix is warned of once for each other target."""
    head = choice._head if isinstance(choice._head, Head) else None
    told = head.target if head is not None else None
    theirs = told if told is not None or made_for is None else made_for.identity
    if theirs is None or theirs == engine.identity:
        return
    if choice.is_matrix:
        warned = head._strangers if head is not None else set()
        if engine.identity not in warned:
            warned.add(engine.identity)
            logger.warning(
                "the matrix of the output %r was fitted on another target (identity %s) than %s (identity %s): it may "
                "mend labels there that are right here; compile the program again",
                field, theirs, engine.name, engine.identity,
            )  # fmt: skip
        return
    known = made_for is not None and made_for.identity == theirs
    about = [part for part in (made_for.name, made_for.dtype, made_for.device) if part] if made_for and known else []
    raise InputError(
        f"the head of the output {field!r} does not go with {engine.name} (identity {engine.identity})",
        path=path,
        expected=f"the target that it was fitted on: {', '.join([*about, f'identity {theirs}'])}",
        hint="A head reads the hidden states of one model, dtype and kind of device: compile the program for this one, "
        "or use its parameters without heads, which stand under compiled.prompt_only.",
    )


def with_heads(readout: ReadOut, folder: Path | None) -> ReadOut:
    """The read-out with its heads read from `folder`. Raises `InputError`, see `read_head`."""
    if folder is None or not readout.heads:
        return readout
    heads = {}
    for field, choice in readout.heads.items():
        said = choice.model_dump(exclude={"weights"})
        heads[field] = choice if choice._head else choice_of(read_head(folder, choice.weights, **said), choice.weights)
    return readout.model_copy(update={"heads": heads})


def parse_head(content: bytes, path: str | PathLike[str]) -> Head:
    """The head in a safetensors file's bytes; `path` is for errors. Raises `InputError` for anything else."""
    try:
        arrays, told = load(content), _metadata(content)
        parts = arrays["weights"], arrays["bias"], arrays["mean"], arrays["scale"]
        head = Head(tuple(told["labels"]), *parts, told["layer"], told["pooling"], told.get("target"))
        problem = _problem(head, sorted(arrays))
    except (SafetensorError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"not a head: {error}", path=path, expected="a file that Cuecard wrote") from error
    if problem:
        raise InputError(f"not a head: {problem}", path=path, expected="a file that Cuecard wrote")
    return head


def _metadata(content: bytes) -> Any:
    """What stands in the header of a safetensors file under `__metadata__`, see the format's specification: eight
    bytes, little-endian, of length, then so many bytes of JSON.
    """
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["cuecard_head"])


def _problem(head: Head, names: list[str]) -> str | None:
    """What is wrong with a head that was read, None when nothing is."""
    if names != ["bias", "mean", "scale", "weights"]:
        return f"it holds {', '.join(names)}"
    if not head.labels or not all(isinstance(label, str) for label in head.labels):
        return f"its labels are {head.labels!r}"
    if head.pooling not in POOLINGS:
        return f"its pooling is {head.pooling!r}"
    if (head.layer is None) != (head.pooling == "scores") or not (head.layer is None or type(head.layer) is int):
        return f"its layer is {head.layer!r}, with the pooling {head.pooling!r}"
    if not (head.target is None or isinstance(head.target, str)):
        return f"its target is {head.target!r}"
    count, width = len(head.labels), head.weights.shape[-1] if head.weights.ndim else 0
    shapes = {"weights": (count, width), "bias": (count,), "mean": (width,), "scale": (width,)}
    if head.pooling == "scores" and width != count:
        return f"it takes {width} scores for {count} labels"
    for name, shape in shapes.items():
        array = getattr(head, name)
        if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
            return f"its {name} has the shape {array.shape} in {array.dtype}, where finite float32 {shape} belong"
    return None if (head.scale > 0).all() else "its scale is not above 0"
