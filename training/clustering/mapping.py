"""One function over many blocks of rows, results in order: here, or on other machines.

`LocalMapper` runs in this process; `dask_map` spreads the same calls over a Dask cluster.
Code that maps adds up results in a way that does not depend on how the rows were cut.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

B = TypeVar("B")
R = TypeVar("R")


class Mapper(Protocol):
    """Runs a function on every block."""

    def map_blocks(
        self, function: Callable[..., R], blocks: Iterable[B], *constants: object
    ) -> Iterator[R]:
        """Yield `function(block, *constants)` of every block, in their order.

        Blocks are taken as results are, a few ahead at most: memory does not grow with their
        number.

        Args:
            function: of a module, not nested in another (another machine must find it).
            blocks: values that can be sent away: rows of files, small tensors.
            constants: the same for all.
        """
        ...


class LocalMapper:
    """Runs here, one block after the other."""

    def map_blocks(
        self, function: Callable[..., R], blocks: Iterable[B], *constants: object
    ) -> Iterator[R]:
        """See `Mapper`."""
        for block in blocks:
            yield function(block, *constants)


LOCAL: Final = LocalMapper()
