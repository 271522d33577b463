"""Half of bench_train: samples/s of the trainer process inside a running node, over its API."""

import time
from pathlib import Path
from typing import Final

from local_swarm import LocalNode, cli, wait_for

WARM_UP_SAMPLES: Final = 3_000
ENDLESS_SAMPLES: Final = 4_000_000
PATIENCE_S: Final = 120.0


class TrainingNode:
    """A node alone that trains one cluster of the bundled set.

    Args:
        folder: where its home is made.
        save_every: samples between two published checkpoints.
    """

    def __init__(self, folder: Path, save_every: int) -> None:
        self._node = LocalNode(folder / "node")
        created = cli(
            *("run", "create", "fashion", "--clusters", "1", "--samples", str(ENDLESS_SAMPLES)),
            *("--save-every", str(save_every)),
            home=self._node.home,
        )
        self._run = created["run"]

    def rate(self, samples: int) -> float:
        """Samples/s over that many samples: publishing, renewing and serving the API included."""
        self._node.start(run=self._run)
        try:
            self._node.wait_ready()
            wait_for(self._samples, "its first step", PATIENCE_S)
            warm = self._samples() + WARM_UP_SAMPLES
            wait_for(lambda: self._samples() >= warm, "warm-up", PATIENCE_S)
            first, begun = self._edge()
            wait_for(lambda: self._samples() >= first + samples, "the samples", PATIENCE_S)
            last, ended = self._edge()
            return (last - first) / (ended - begun)
        finally:
            self._node.stop()

    def _samples(self) -> int:
        training = self._node.status()["training"]
        return int(training["samples"]) if training else 0

    def _edge(self) -> tuple[int, float]:
        """The next moment at which the node hears of new samples."""
        before = self._samples()
        after = wait_for(
            lambda: (now := self._samples()) != before and now, "a step", PATIENCE_S, poll_s=0.005
        )
        return int(after), time.monotonic()
