"""A part of bench_verification: what the time of a proof is made of, and other layouts tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verification.circuit import Shape, circuit_of
from verification.srs import SHIPPED
from verification_bench import Adapter, Kind, Workbench, derive_keys, plain
from verification_compare import bilinear, pinned
from verification_meter import Figures
from verification_spawn import medians, say

SMALLEST = Shape(64, 4, 64)
EMPTY = Shape(2, 1, 2)
INNER_COLUMNS = (1, 2, 4)


@dataclass(frozen=True)
class Tries:
    """What is tried.

    Args:
        shape: whose proof is taken apart, and laid out otherwise.
        others: laid out at the next size as well.
        sizes: k that the smallest shape is laid out at.
        repeats: of each proof.
    """

    shape: Shape
    others: Sequence[Shape]
    sizes: Sequence[int]
    repeats: int


def measure_floor(tries: Tries, bench: Workbench, folder: Path) -> Figures:
    """All of it.

    Args:
        tries: what.
        bench: where.
        folder: for keys and an adapter; is made.
    """
    shape, repeats = tries.shape, tries.repeats
    return {
        "shape": plain(shape),
        "columns": circuit_of(shape).columns,
        "parts": _parts(shape, bench, folder, repeats),
        "by_size": _by_size(tries.sizes, bench, repeats),
        "empty": _tried(EMPTY, bilinear(EMPTY, circuit_of(shape).logrows, (0, 0)), bench, repeats),
        "layouts": _layouts(tries, bench),
    }


def _parts(shape: Shape, bench: Workbench, folder: Path, repeats: int) -> Figures:
    """Our proof's time by what it is spent on."""
    say(f"the parts of a proof, {shape}")
    derive_keys(folder / "keys", [plain(shape)])
    adapter = Adapter.make(folder / "adapter", folder / "keys", [("layer", *plain(shape))])
    adapter.commit()
    made = bench.set_up(pinned(shape))
    turns = [(adapter.prove(), made.prove()) for _ in range(repeats)]
    ours, bare = (medians(rows) for rows in zip(*turns, strict=True))
    check = made.verify(11)
    verify = adapter.verify(12)
    return {
        "ours": ours,
        "bare": bare,
        "verify_ms": verify["warm_cpu_ms"],
        "verify_native_ms": check["warm_cpu_ms"],
        **adapter.fold(),
    }


def _by_size(sizes: Sequence[int], bench: Workbench, repeats: int) -> list[Figures]:
    """The smallest shape's circuit in columns far longer than it needs."""
    circuit = circuit_of(SMALLEST)
    salt = (circuit.salt_rows, circuit.salt_columns)
    found = []
    for logrows in sizes:
        say(f"{SMALLEST} at k = {logrows}")
        found.append(_tried(SMALLEST, bilinear(SMALLEST, logrows, salt), bench, repeats))
    return found


def _layouts(tries: Tries, bench: Workbench) -> list[Figures]:
    """The same weights and salt otherwise: other columns for dot products, the next k."""
    shape, own = tries.shape, pinned(tries.shape)
    kinds = [
        (shape, Kind(own.model, logrows, inner))
        for logrows in (own.logrows, own.logrows + 1)
        for inner in INNER_COLUMNS
        if logrows in SHIPPED
    ]
    for other in tries.others:
        own = pinned(other)
        kinds += [(other, own), (other, Kind(own.model, own.logrows + 1))]
    found = []
    for one, kind in kinds:
        say(f"{one} at k = {kind.logrows} with {kind.inner} inner columns")
        found.append(_tried(one, kind, bench, tries.repeats))
    return found


def _tried(shape: Shape, kind: Kind, bench: Workbench, repeats: int) -> Figures:
    is_ours = shape != EMPTY and kind == pinned(shape)
    return {"shape": plain(shape), "is_ours": is_ours, **bench.alone(kind, repeats, 11)}
