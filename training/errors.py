"""Errors of the training package: one base; every message says what, got, expected."""

from collections.abc import Sequence
from pathlib import Path


class TrainingError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(TrainingError):
    """A run, preset or training setting that cannot be meant: an unknown name, a missing key."""


class DataError(TrainingError):
    """The pictures or captions offered cannot make a run, or a cluster's data were altered."""


class OtherSpoolError(DataError):
    """An interrupted run lies where another one is to be made; it is kept."""


class ModelMissingError(TrainingError):
    """A model this run names (a text encoder, a codec) is not on this machine."""


class RouterMissingError(ConfigError):
    """A router asked for is not at hand.

    Attributes:
        router: its name.
    """

    def __init__(self, router: str, known: Sequence[str]) -> None:
        super().__init__(f"no {router} router of this run is here; there is {', '.join(known)}")
        self.router = router


class CheckpointError(TrainingError):
    """A checkpoint is incomplete, or belongs to another run, preset or codec."""


class LoraError(TrainingError):
    """An adapter is incomplete or altered, or was made for another base."""


class WrongBaseError(LoraError):
    """A whole adapter, and a checkpoint that it was not made for."""


class ProbeError(TrainingError):
    """A probe batch is missing, malformed, or cannot be measured on."""


class ExportError(TrainingError):
    """A model cannot be exported as asked: a cluster has no expert, or the folder is in use."""


class DivergedError(TrainingError):
    """The loss is no longer a finite number: nothing was saved from that step on."""


class TooLargeError(TrainingError):
    """Not even one sample at a time fits the memory there is."""


class CrewError(TrainingError):
    """One of the processes that train together is gone; the last save is still there."""


class DaskError(TrainingError):
    """A Dask cluster cannot be reached, or was lost while it worked; nothing here is altered."""


class TensorFileError(TrainingError):
    """A tensor file that is not what it should be.

    Args:
        path: the file.
        reason: what was expected and what was found.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path = path
        self.reason = reason


class DiskError(TrainingError):
    """The disk refused: it is full, or may not be written.

    Args:
        path: what could not be written.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} cannot be written: {error.strerror}; free some space and repeat the command"
        )
        self.path = path


class UnusableError(TrainingError):
    """One entry of a picture set that is left out; the set's reader counts it.

    Args:
        reason: one of few phrases, so that entries can be counted by it.
        detail: what was found, with its numbers.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
