"""Half of bench_train: samples/s of the trainer process inside a running node."""

from pathlib import Path
from typing import Any, Final

from local_swarm import LocalNode, cli, wait_for

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

    def rate(self, saves: int) -> float:
        """Samples/s from one published checkpoint to the one `saves` later, by the journal's clock.

        Nobody asks the node anything meanwhile: a benchmark's questions cost time as well.
        """
        before = len(self._published())
        self._node.start(run=self._run)
        try:
            self._node.wait_ready()
            wait_for(
                lambda: len(self._published()) > before + saves, "checkpoints", PATIENCE_S, poll_s=1
            )
        finally:
            self._node.stop()
        first, last = self._published()[before], self._published()[before + saves]
        return float((last["samples"] - first["samples"]) / (last["time"] - first["time"]))

    def _published(self) -> list[dict[str, Any]]:
        return [event for event in self._node.events() if event["event"] == "published"]
