"""Parts of bench_verification: what salt costs, and what the circuit of the paper costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from verification.circuit import Shape, circuit_of
from verification.srs import SHIPPED
from verification_bench import Adapter, Kind, Workbench, derive_keys, plain
from verification_meter import Figures
from verification_spawn import medians, say

ROWS_LIMIT_S = 240.0
"""For each step of the paper's circuit; one that takes longer is said to."""


def bilinear(shape: Shape, logrows: int, salt: tuple[int, int]) -> Kind:
    """Our circuit at a size of one's choice."""
    return Kind({"shape": plain(shape), "salt": salt}, logrows)


def pinned(shape: Shape) -> Kind:
    """Our circuit as it is."""
    circuit = circuit_of(shape)
    return bilinear(shape, circuit.logrows, (circuit.salt_rows, circuit.salt_columns))


def unsalted(shape: Shape) -> Kind:
    """The smallest without salt, by the same rule: at most three committed columns."""
    fits = (k for k in SHIPPED if shape.weights <= 3 * (2**k - 8))
    return bilinear(shape, next(fits, SHIPPED[-1]), (0, 0))


def measure_salt(
    shapes: Sequence[Shape], bench: Workbench, repeats: int, rounds: int
) -> list[Figures]:
    """Each shape with salt and without, in turns."""
    rows = []
    for shape in shapes:
        say(f"salt on and off, {shape}")
        found = bench.in_turns({"salted": pinned(shape), "bare": unsalted(shape)}, repeats, rounds)
        with_salt, without = found["salted"], found["bare"]
        ratios = {
            "prove_ratio": with_salt["prove"]["cpu_s"] / without["prove"]["cpu_s"],
            "verify_ratio": with_salt["verify"]["warm_cpu_ms"] / without["verify"]["warm_cpu_ms"],
        }
        rows.append({"shape": plain(shape), **found, **ratios})
    return rows


def measure_rows(
    shape: Shape, sizes: Mapping[int, int], bench: Workbench, repeats: int
) -> list[Figures]:
    """Deltas, X A B with X public, in the two ways the library has.

    Args:
        shape: of A and B.
        sizes: tokens to k: the cheapest size that has room for X and delta.
        bench: where.
        repeats: of a proof; one of the longest.
    """
    found = []
    for tokens, logrows in sizes.items():
        for freivalds in (False, True):
            say(f"the paper's circuit, {tokens} tokens, k = {logrows}, Freivalds: {freivalds}")
            model = {"shape": plain(shape), "tokens": tokens, "freivalds": freivalds}
            times = 1 if logrows > 14 else repeats
            figures = bench.alone(Kind(model, logrows), times, 5, ROWS_LIMIT_S)
            facts = {"tokens": tokens, "freivalds": freivalds, "repeats": times}
            found.append(facts | {"is_test_srs": logrows not in SHIPPED} | figures)
    return found


def measure_deltas(
    shape: Shape, tokens: Sequence[int], folder: Path, repeats: int
) -> list[Figures]:
    """The same deltas by our proof: a delta statement of so many rows."""
    keys, found = folder / "keys", []
    derive_keys(keys, [plain(shape)])
    for rows in tokens:
        say(f"our proof of deltas, {rows} tokens")
        place = folder / f"deltas-{rows}"
        adapter = Adapter.make(place, keys, [("layer", *plain(shape))])
        adapter.commit()
        proofs = [adapter.prove(rows) for _ in range(repeats)]
        figures = {"prove": medians(proofs), "verify": adapter.verify(6), "fold": adapter.fold()}
        found.append({"tokens": rows, "repeats": repeats, **figures})
    return found
