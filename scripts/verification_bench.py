"""What bench_verification measures with: adapters as nodes treat them, and circuits of any kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verification.circuit import Shape
from verification.srs import SHIPPED, SrsFolder
from verification_meter import Figures
from verification_spawn import LIMIT_S, ChildError, child, medians, say

Module = tuple[str, int, int, int]
"""Name, inputs, rank, outputs."""


def plain(shape: Shape) -> tuple[int, int, int]:
    """As children take it."""
    return shape.inputs, shape.rank, shape.outputs


def derive_keys(keys: Path, shapes: Sequence[tuple[int, int, int]]) -> Figures:
    """Keys of some shapes, in a fresh process."""
    return child("ours", "set_up", {"keys": keys, "shapes": shapes})


@dataclass(frozen=True)
class Adapter:
    """An adapter of random weights in a folder; each method is one fresh process.

    Args:
        folder: of the adapter.
        keys: folder of derived keys.
    """

    folder: Path
    keys: Path

    @classmethod
    def make(cls, folder: Path, keys: Path, modules: Sequence[Module]) -> "Adapter":
        """Draw one with these layers; the folder is made."""
        child("ours", "prepare", {"folder": folder, "modules": modules})
        return cls(folder, keys)

    def commit(self) -> Figures:
        """To all layers."""
        return self._do("commit")

    def prove(self, rows: int = 0) -> Figures:
        """The offer's own proofs, or deltas of so many rows, of all layers."""
        return self._do("prove", rows=rows)

    def verify(self, rounds: int = 1) -> Figures:
        """All proofs, so often in one process."""
        return self._do("verify", rounds=rounds)

    def fold(self) -> Figures:
        """Reading and folding the first statement."""
        return child("ours", "fold", {"folder": self.folder})

    def wire(self) -> Figures:
        """Bytes that travel."""
        return child("ours", "wire", {"folder": self.folder})

    def _do(self, job: str, **more: object) -> Figures:
        return child("ours", job, {"folder": self.folder, "keys": self.keys, **more})


@dataclass(frozen=True)
class Kind:
    """One way to lay a circuit out.

    Args:
        model: as `verification_bare.set_up` takes it.
        logrows: k.
        inner: columns of one dot product.
    """

    model: Mapping[str, Any]
    logrows: int
    inner: int = 2


class Workbench:
    """Sets circuits up in folders, and measures them.

    Args:
        folder: for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    def srs(self, logrows: int) -> Path:
        """The ceremony's SRS of that size; above the shipped ones a test SRS made here."""
        if logrows in SHIPPED:
            return SrsFolder()(logrows)
        path = self._folder / f"TEST-ONLY-{logrows}.srs"
        if not path.exists():
            say(f"making a test SRS, for this comparison only, k = {logrows}")
            child("bare", "test_srs", {"path": path, "logrows": logrows})
        return path

    def set_up(self, kind: Kind, limit_s: float = LIMIT_S) -> "SetUp":
        """Make a circuit and its keys.

        Raises:
            ChildError: it does not fit, or takes too long.
        """
        self._made += 1
        folder, srs = self._folder / f"circuit-{self._made}", self.srs(kind.logrows)
        arguments = {"model": dict(kind.model), "logrows": kind.logrows, "inner": kind.inner}
        spent = child("bare", "set_up", {"folder": folder, "srs": srs, **arguments}, limit_s)
        return SetUp(kind, folder, srs, spent, limit_s)

    def in_turns(self, kinds: Mapping[str, Kind], repeats: int, rounds: int) -> dict[str, Figures]:
        """Figures of each kind, the medians of processes that take turns."""
        made = {name: self.set_up(kind) for name, kind in kinds.items()}
        proofs: dict[str, list[Figures]] = {name: [] for name in made}
        verifies: dict[str, list[Figures]] = {name: [] for name in made}
        for _ in range(repeats):
            for name, one in made.items():
                proofs[name].append(one.prove())
                verifies[name].append(one.verify(rounds))
        return {
            name: one.figures(medians(proofs[name]), medians(verifies[name]))
            for name, one in made.items()
        }

    def alone(self, kind: Kind, repeats: int, rounds: int, limit_s: float = LIMIT_S) -> Figures:
        """Figures of one kind; {failed: why} if it cannot be had."""
        try:
            one = self.set_up(kind, limit_s)
            proofs = medians([one.prove() for _ in range(repeats)])
            return one.figures(proofs, one.verify(rounds))
        except ChildError as error:
            return {"logrows": kind.logrows, "inner": kind.inner, "failed": str(error)}


@dataclass(frozen=True)
class SetUp:
    """A circuit with its keys."""

    kind: Kind
    folder: Path
    srs: Path
    spent: Figures
    limit_s: float

    def prove(self) -> Figures:
        """Once, in a fresh process."""
        return self._do("prove")

    def verify(self, rounds: int) -> Figures:
        """In one fresh process."""
        return self._do("verify", rounds=rounds)

    def figures(self, prove: Figures, verify: Figures) -> Figures:
        """Together."""
        return {
            "logrows": self.kind.logrows,
            "inner": self.kind.inner,
            "set_up": self.spent,
            "prove": prove,
            "verify": verify,
        }

    def _do(self, job: str, **more: object) -> Figures:
        return child("bare", job, {"folder": self.folder, "srs": self.srs, **more}, self.limit_s)
