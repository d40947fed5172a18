"""What a model is for: the preprocessing, loss and metric of a task, and the data behind it.

Nothing here assumes that an input is one image: raw inputs and prepared inputs are tuples of
tensors with a leading batch dimension. Image classification is the first kind of task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from compress.stateless_rng import StatelessRNG
from compress.system.files import digest, sha256

Tensors = tuple[Tensor, ...]
BATCH = "batch"
"""What a file calls its batch dimension."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model, as its file has it: its name, and its open dimensions by number."""

    name: str = "input"
    dynamic: Mapping[int, str] = field(default_factory=lambda: {0: BATCH})


class Split(ABC):
    """An indexable part of a data set, which may lie on disk."""

    labelled: bool = True
    """Whether targets are classes of the task; else they mean nothing."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        """Return the raw inputs and the targets of the items at `index` (int64, shape (N,))."""

    def remade(self, how: Any) -> Split | None:
        """Return the same items, made otherwise from where they come; None where they can't be.

        `how` is the task's, such as the `Fit` by which image files are decoded.
        """
        return None

    def batches(self, batch_size: int) -> Iterator[tuple[Tensors, Tensor]]:
        """Yield every item once, in order."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.fetch(index)


class TensorSplit(Split):
    """A split held in memory: raw inputs and int64 targets, row by row."""

    def __init__(self, inputs: Tensors, targets: Tensor) -> None:
        lengths = {len(tensor) for tensor in (*inputs, targets)}
        if len(lengths) != 1:
            raise ValueError(f"inputs and targets differ in length: {sorted(lengths)}")
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        # Waiting for a copy would have a GPU finish all its pending work first.
        here = index.to(self.targets.device, non_blocking=True)
        return tuple(tensor[here] for tensor in self.inputs), self.targets[here]


class Subset(Split):
    """Some items of another split, in the given order."""

    def __init__(self, whole: Split, index: Tensor) -> None:
        self.whole = whole
        self.index = index
        self.labelled = whole.labelled

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        return self.whole.fetch(self.index[index])

    def remade(self, how: Any) -> Split | None:
        if type(self).fetch is not Subset.fetch:
            return None  # what a class of its own makes of the items would be lost
        whole = self.whole.remade(how)
        return None if whole is None else Subset(whole, self.index)


class InputChange(ABC):
    """A forward pre-hook that is part of a model: by tensor operations alone, it changes inputs.

    Its `repr` says what it does, since a model's outputs depend on it.
    """

    words: str
    """In words: the inputs that the model sees."""

    @abstractmethod
    def __call__(self, module: nn.Module, inputs: Tensors) -> Tensors: ...


@dataclass(frozen=True)
class Sight:
    """How a model sees items for which they are made anew: a teacher with a spec of its own.

    Its inputs are those that `task` prepares of `task.remade(split)`, in the same augmented views
    as the run's. Items that cannot be made anew it sees as the run's, by way of `change`.
    """

    task: Task
    change: InputChange | None
    words: str
    """In words: the inputs that the model sees."""

    def of(self, split: Split) -> Split:
        """Return the model's raw items of a split that can be made anew."""
        made = self.task.remade(split)
        assert made is not None, "the model has a sight because it can"
        return made


class Task(ABC):
    """A kind of problem: how raw inputs are prepared, what is minimised, what counts as right.

    So far one of choosing among classes: a target is the number of a class (int64), and a model
    gives one number for each of two or more classes.
    """

    kind: str
    name: str
    unit: ClassVar[str] = "items"
    """What progress counts, in the plural."""
    figure: ClassVar[str] = ""
    """What `measure` gives; '' where accuracy and what follows from it are all."""
    misfit: ClassVar[str] = ""
    """What to do where a model does not take the task's inputs, as a sentence."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """How files name the inputs, and which dimensions are open; by default the batch alone."""
        return ()

    @property
    def ragged(self) -> bool:
        """Whether items have lengths of their own; then every batch is padded by itself."""
        return any(spec.dynamic.keys() > {0} for spec in self.inputs)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what defines the task, as JSON: for records, the store and ONNX metadata."""

    def input_words(self) -> str:
        """Return for the report how raw inputs are prepared, and where that comes from."""
        return ""

    def output_words(self) -> str:
        """Return in words what a model's outputs are for one item."""
        shape = self.output_shape()
        return f"{shape[0]:,} classes" if len(shape) == 1 else f"outputs of shape {shape}"

    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of a model's outputs for one item, without the batch dimension."""

    @abstractmethod
    def probe(self, batch: int = 4) -> Tensors:
        """Return prepared inputs of `batch` different items, real ones if possible.

        Models are tried out on them, wherever a step has no data or needs none.
        """

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the factory of a model gets from the task, by name."""
        return {}

    def seen_by(self, settings: Any) -> tuple[Task, InputChange | None]:
        """Return the task of a model that was trained with inputs prepared by other settings.

        That model is built from its `arguments`, and gets the inputs of this task by way of the
        change. Raises ValueError if they cannot be brought to what the settings say.
        """
        return self, None

    def sight(self, settings: Any, usual: Any, splits: Sequence[Split]) -> Sight | None:
        """Return how that model sees splits whose items are made anew for it.

        None where it sees this task's, changed by `seen_by`. The `settings` are a user's; `usual`
        ones, or None, hold where these say nothing. Raises ValueError for settings that cannot be.
        """
        return None

    def remade(self, split: Split) -> Split | None:
        """Return a split of another task's items as this task's raw ones; None if it can't be."""
        return None

    def script(self) -> str:
        """Return Python code that makes a deployed file's inputs of a raw item; '' if none is."""
        return ""

    def metadata(self) -> dict[str, str]:
        """Return metadata on the inputs and outputs of a deployed file; values may be JSON."""
        return {}

    @property
    def augmented(self) -> bool:
        """Whether every view of an item looks different."""
        return False

    @property
    def augments_raw(self) -> bool:
        """Whether raw items are augmented one by one; then `augment_raw` is called, on the CPU."""
        return False

    @property
    def mixes(self) -> bool:
        """Whether an item is mixed with another one in training; then `mix` is called."""
        return False

    @abstractmethod
    def prepare(
        self, raw: Tensors, device: torch.device, rng: StatelessRNG | None = None
    ) -> Tensors:
        """Turn raw inputs into model inputs on `device`; with an `rng`, augment them there."""

    def augment_raw(self, raw: Tensors, rng: StatelessRNG) -> Tensors:
        """Return raw items augmented, while those before them are trained on; `prepare` follows."""
        raise NotImplementedError(f"{self.kind} does not augment raw items")

    def mix(
        self, items: tuple[Tensors, Tensor], others: tuple[Tensors, Tensor], rng: StatelessRNG
    ) -> tuple[Tensors, Tensor]:
        """Return inputs and targets of items mixed with others, one by one."""
        raise NotImplementedError(f"{self.kind} does not mix items")

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean training loss against hard targets, a scalar."""

    @abstractmethod
    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return for each item whether the output is right, a bool tensor of shape (N,)."""

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """Return the task's own `figure` of a file's outputs, float32 (N, ...), to targets (N,).

        It is the column `metric`, unless the user has a metric.
        """
        raise NotImplementedError(f"{self.kind} has no figure of its own")


@dataclass(frozen=True)
class Data:
    """The splits of a data source. Only measuring uses `test`; no step gets it.

    `fingerprint` is a SHA-256 over the content of the source, `training_fingerprint` over what is
    not for testing ('': over all of it, which then never changes). The validation split is a
    function of the latter, not of a run's seed. `note` says what a reader of the record must know.
    """

    task: Task
    train: Split
    validation: Split
    calibration: Split
    test: Split
    fingerprint: str
    note: str = ""
    training_fingerprint: str = ""
    untrainable: str = ""
    """Why nothing can be trained on it; '' if it can."""
    calibration_fingerprint: str = ""
    """Of the calibration split, where it comes from another source."""

    def words(self) -> str:
        """Return what there is: the classes, and how many items for what."""
        validation = f"{len(self.validation):,} for validation"
        counts = [f"{len(self.train):,} {self.task.unit} for training", validation]
        if self.untrainable:
            counts = [f"no {self.task.unit} for training", f"{validation} and calibration"]
        counts.append(f"{len(self.test):,} for testing")
        return f"{self.task.name}: {self.task.output_words()}, {', '.join(counts)}"

    def identity(self) -> str:
        """Return a hash of what a step may use, so not of the test split: content and order."""
        splits = (self.train, self.validation, self.calibration)
        contents = [self.training_fingerprint or self.fingerprint]
        contents += filter(None, [self.calibration_fingerprint])
        return digest([*contents, *map(arrangement, splits)])

    def test_identity(self) -> str:
        """Return a hash of what is measured with: the source, and its test items in order."""
        return digest([self.fingerprint, arrangement(self.test)])


def arrangement(split: Split) -> list[Any]:
    """Return, as JSON, which items a split holds, in which order, as far as it is a subset."""
    if isinstance(split, Subset):
        index = split.index.cpu().to(torch.int64).contiguous()
        return [sha256(index.numpy().tobytes()), *arrangement(split.whole)]
    return [len(split)]


def prepared_batches(
    task: Task, split: Split, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensors, Tensor]]:
    """Yield (inputs, targets) of a split in order, prepared without augmentation."""
    for raw, targets in split.batches(batch_size):
        yield task.prepare(raw, torch.device(device)), targets


STACKED = 64
"""Items that are prepared at once where many are stacked."""


def stacked_inputs(task: Task, split: Split, count: int) -> Tensors:
    """Return `count` items, evenly spaced over a split, as one prepared batch per input.

    Evenly spaced, because image files lie sorted by class.
    """
    index = spaced(count, len(split))
    found: list[Tensor] = []
    done = 0
    # Some at a time: what preparing needs besides would take several times their memory. Of ragged
    # items it pads all to the longest.
    for some in index.split(max(1, len(index)) if task.ragged else STACKED):
        raw, _ = split.fetch(some)
        prepared = task.prepare(raw, torch.device("cpu"))
        if len(some) == len(index):
            return prepared
        found = found or [one.new_empty((len(index), *one.shape[1:])) for one in prepared]
        for whole, part in zip(found, prepared, strict=True):
            whole[done : done + len(some)] = part
        done += len(some)
    return tuple(found)


def other_lengths(task: Task, split: Split, count: int = 4) -> list[Tensors]:
    """Return single prepared items in their own lengths; nothing where inputs have one shape."""
    if not task.ragged:
        return []
    fetched = [split.fetch(index[None])[0] for index in spaced(count, len(split))]
    return [task.prepare(raw, torch.device("cpu")) for raw in fetched]


def spaced(count: int, length: int) -> Tensor:
    """Return `count` numbers below `length`, evenly spaced (all, if there are fewer)."""
    count = min(count, length)
    return torch.arange(count) * length // max(count, 1)
