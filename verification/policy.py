"""What a node takes of others' offers, beyond their being true."""

from collections.abc import Mapping
from dataclasses import dataclass

from verification.circuit import MAX_RANK
from verification.effect import norm_squared, total_norm
from verification.errors import PolicyError
from verification.statement import Statement


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits on offers.

    Attributes:
        max_rank: of an adapter.
        least_ratio: of ||dW|| to ||W|| over the adapted layers; below it an adapter does nothing.
        most_ratio: above it an adapter replaces the model instead of adapting it, and its
            predicted effect means nothing.
        loss_tolerance: by which a measured loss may miss the signed claim, as a part of it.
    """

    max_rank: int = MAX_RANK
    least_ratio: float = 1e-4
    most_ratio: float = 1.0
    loss_tolerance: float = 0.02

    def check_rank(self, rank: int) -> None:
        """Refuse too high a rank.

        Raises:
            PolicyError: naming both.
        """
        if rank > self.max_rank:
            raise PolicyError(f"rank {rank}; this node takes at most {self.max_rank}")

    def check_size(self, squares: Mapping[str, float], base_norms: Mapping[str, float]) -> float:
        """Refuse an adapter that is nothing, or far too much.

        Args:
            squares: by module, `norm_squared` of it.
            base_norms: by module, ||W||_F of the base.

        Returns:
            The ratio ||dW|| / ||W|| over all modules.

        Raises:
            PolicyError: outside the band, naming the ratio and the band.
        """
        base = total_norm(base_norms[name] * base_norms[name] for name in squares)
        ratio = total_norm(squares.values()) / base if base else float("inf")
        if not self.least_ratio <= ratio <= self.most_ratio:
            raise PolicyError(
                f"the adapter changes its layers by {ratio:.3g} of their norm; this node takes "
                f"{self.least_ratio:g} to {self.most_ratio:g}"
            )
        return ratio

    def check_claim(self, claimed: float, measured: float) -> None:
        """Refuse a delivery whose loss is worse than its maker signed.

        Args:
            claimed: loss of the probe with the adapter, as signed.
            measured: the same, measured here.

        Raises:
            PolicyError: worse than the claim by more than the tolerance.
        """
        if not measured <= claimed * (1 + self.loss_tolerance):  # NaN is not, either
            raise PolicyError(
                f"the probe's loss is {measured:.4f} with the adapter; {claimed:.4f} was claimed"
            )


def check_not_zero(statement: Statement) -> float:
    """Refuse an adapter that changes nothing in a layer, by an offer's proof of it.

    Returns:
        The estimate of ||A B||_F^2 at scaling 1.

    Raises:
        PolicyError: all values are zero, which is certain for A B = 0 and else never seen.
    """
    square = norm_squared(statement.values, 1.0)
    if square == 0.0:
        raise PolicyError(f"{statement.module}: the adapter is zero there")
    return square
