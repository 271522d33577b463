"""How much of an adapter its answers have given away, and how much they may: arithmetic alone.

B A of rank r, in inputs and out outputs, has r (in + out - r) degrees of freedom. A scalar u A B v
is one equation about them. T rows X A B span a subspace of dimension min(T, r), and tell all that
A B does to it: as much as an adapter of that rank on T inputs has.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from node.errors import ErrorCode, NodeError


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """One adapted layer.

    Raises:
        ValueError: a rank that is no number from 1 to the smaller side.
    """

    inputs: int
    rank: int
    outputs: int

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= min(self.inputs, self.outputs):
            raise ValueError(f"rank {self.rank} of a layer of {self.inputs} to {self.outputs}")

    @property
    def freedom(self) -> int:
        """Degrees of freedom of what the adapter adds to this layer."""
        return self.rank * (self.inputs + self.outputs - self.rank)


@dataclass(frozen=True, slots=True)
class Leak:
    """What has been said of one layer, in all: scalars, rows of deltas, and proofs made of it."""

    scalars: int = 0
    rows: int = 0
    proofs: int = 0


@dataclass(frozen=True, slots=True)
class Spend:
    """What answering would add for one layer.

    Raises:
        ValueError: something negative.
    """

    scalars: int = 0
    rows: int = 0
    proofs: int = 0
    """Of the layer's commitment: the salt in it hides so many."""

    def __post_init__(self) -> None:
        if min(self.scalars, self.rows, self.proofs) < 0:
            raise ValueError(f"nothing can be taken back: {self}")


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each for any layer, whoever asks."""

    scalars: int
    rows: int
    proofs: int


class BudgetSpentError(NodeError):
    """An answer would give away more than the owner allows; nothing was spent.

    Attributes:
        module: the layer.
        what: "scalars", "rows" or "proofs".
        spent: of it before.
        limit: the most there may be.
    """

    def __init__(self, module: str, what: str, spent: int, limit: int) -> None:
        super().__init__(
            ErrorCode.REFUSED,
            f"{spent} of {limit} {what} of layer {module} are spent: the answer asks for more.",
            "ask for less; what is spent does not come back",
        )
        self.module = module
        self.what = what
        self.spent = spent
        self.limit = limit


def check_spend(module: str, leak: Leak, spend: Spend, limits: Limits) -> Leak:
    """What a layer's counts are after a spend.

    Args:
        module: its name.
        leak: of the adapter's layer so far.
        spend: what is to be added.
        limits: the most of each.

    Raises:
        BudgetSpentError: a limit would be passed. What stays as it is may lie above its limit.
    """
    for what, spent, added, limit in (
        ("scalars", leak.scalars, spend.scalars, limits.scalars),
        ("rows", leak.rows, spend.rows, limits.rows),
        ("proofs", leak.proofs, spend.proofs, limits.proofs),
    ):
        if added and spent + added > limit:
            raise BudgetSpentError(module, what, spent, limit)
    return Leak(leak.scalars + spend.scalars, leak.rows + spend.rows, leak.proofs + spend.proofs)


def leak_percent(size: ModuleSize, leak: Leak) -> float:
    """How much of one layer is known to who put all answers together: 0 to 100."""
    return 100 * min(1.0, _known(size, leak) / size.freedom)


@dataclass(frozen=True, slots=True)
class AdapterLeak:
    """How much of a whole adapter is known.

    Attributes:
        percent: mean over its layers, by their degrees of freedom.
        worst: the layer known best; empty if nothing is known of any.
        worst_percent: of that layer.
    """

    percent: float
    worst: str
    worst_percent: float


def adapter_leak(sizes: Mapping[str, ModuleSize], leaks: Mapping[str, Leak]) -> AdapterLeak:
    """What all answers about an adapter tell of it.

    Args:
        sizes: every adapted layer, by name.
        leaks: those that anything was said of.

    Raises:
        ValueError: an adapter of no layers, or a leak of a layer that it does not have.
    """
    strangers = sorted(leaks.keys() - sizes.keys())
    if strangers or not sizes:
        raise ValueError(f"an adapter of {len(sizes)} layers that leaked {strangers[:1]}")
    known = {name: leak_percent(size, leaks.get(name, Leak())) for name, size in sizes.items()}
    total = sum(size.freedom for size in sizes.values())
    mean = sum(known[name] * size.freedom for name, size in sizes.items()) / total
    worst = max(known, key=lambda name: known[name])
    return AdapterLeak(mean, worst if known[worst] else "", known[worst])


def _known(size: ModuleSize, leak: Leak) -> float:
    """Degrees of freedom that are known; each scalar counts as one that the rows do not tell.

    As many rows as there are inputs tell them all; more are as many again, and tell nothing new.
    """
    rank = min(leak.rows, size.rank)
    return leak.scalars + rank * (leak.rows + size.outputs - rank)
