"""The program that trains one cluster: steps and checkpoints out, a request to stop in.

Takes {kind: "train", shared, models, data, state, start_from, threads, device, gpus, precision};
says `started`, `summary` (the cluster's routing summary, a file), `step` twice a second, `saved`
for each checkpoint, then `done`; or `failed`. {kind: "stop"}, SIGTERM, or the node hanging up:
saves and leaves.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from node.workers.link import ParentGoneError, ParentLink

logger = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 0.5
_NICE: Final = 5
"""Training yields to whatever a person waits for: drawing, the network, the screen."""


class Trainer:
    """One order, from its first step to its last checkpoint."""

    def __init__(self, link: ParentLink) -> None:
        self._link = link
        self._is_stopping = False
        self._is_heard = True
        self._is_started = False
        self._reported = 0.0

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: leave after the step under way."""
        self._is_stopping = True

    def should_stop(self) -> bool:
        """Whether to save and leave now; also hears the node."""
        if self._is_heard and not self._is_stopping:
            try:
                message = self._link.poll()
            except ParentGoneError:
                self._is_heard = False
                self._is_stopping = True
            else:  # only ever raised: a signal may have set it while we looked
                if message is not None and message["kind"] == "stop":
                    self._is_stopping = True
        return self._is_stopping

    def run(self, order: Mapping[str, Any]) -> None:
        """Train as ordered; on several GPUs this process leads the others."""
        from training.clusters import Cluster  # noqa: PLC0415
        from training.experts.distributed import lead  # noqa: PLC0415
        from training.experts.loop import SavedCheckpoint, train  # noqa: PLC0415
        from training.run import load_run  # noqa: PLC0415

        run = load_run(Path(order["shared"]), Path(order["models"]))
        cluster = Cluster.load(Path(order["data"]))
        job = _job(order, run.spec.train_config(cluster.number))
        state = Path(job.state)
        self._summarise(cluster, state.parent / f"summary-{cluster.number}.safetensors")
        with lead(job) as config:
            for event in train(
                cluster,
                run,
                config,
                state_dir=state,
                start_from=Path(job.start_from) if job.start_from else None,
                should_stop=self.should_stop,
            ):
                if isinstance(event, SavedCheckpoint):
                    self._say_saved(event)
                else:
                    self._say_step(event)
        self._say("done")

    def _say_saved(self, event: Any) -> None:  # noqa: ANN401  its module loads torch
        self._say(
            "saved",
            path=str(event.path),
            step=event.step,
            samples=event.samples,
            loss=event.loss,
        )

    def _say_step(self, event: Any) -> None:  # noqa: ANN401
        if not self._is_started:
            self._say("started", samples=event.samples)
            self._is_started = True
        if time.monotonic() - self._reported >= _REPORT_EVERY_S:
            self._reported = time.monotonic()
            self._say(
                "step",
                step=event.step,
                samples=event.samples,
                loss=event.loss,
                samples_per_s=event.samples_per_s,
                buckets=list(event.buckets),
                how=asdict(event.execution),
            )

    def _summarise(self, cluster: Any, path: Path) -> None:  # noqa: ANN401  its module loads torch
        from training.routers.summary import fit_summary, save_summary  # noqa: PLC0415

        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_summary(fit_summary(cluster.latents()), path)
        self._say("summary", path=str(path))

    def _say(self, kind: str, **facts: object) -> None:
        if not self._is_heard:
            return
        try:
            self._link.send({"kind": kind, **facts})
        except ParentGoneError:
            self._is_heard = False
            self._is_stopping = True

    def fail(self, error: Exception) -> None:
        """Tell the node why it cannot go on."""
        self._say("failed", error=str(error) or type(error).__name__)


def _job(order: Mapping[str, Any], config: Any) -> Any:  # noqa: ANN401  they load torch
    """What to train where, as this machine has it."""
    import torch  # noqa: PLC0415

    from training.experts.distributed import Job, process_count  # noqa: PLC0415

    device = device_of(order["device"])
    return Job(
        shared=order["shared"],
        models=order["models"],
        data=order["data"],
        state=order["state"],
        start_from=order["start_from"] or "",
        config=replace(
            config, threads=order["threads"], device=device, precision=order["precision"]
        ),
        processes=process_count(
            order["gpus"], device, torch.cuda.device_count(), batch=config.batch
        ),
    )


def device_of(wanted: str) -> str:
    """The torch device that a setting means: "auto" takes the GPU if there is one."""
    if wanted != "auto":
        return wanted
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Serve the node on the descriptor given as the first argument; one order, then leave."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    os.nice(_NICE)
    link = ParentLink(int(sys.argv[1]))
    trainer = Trainer(link)
    signal.signal(signal.SIGTERM, trainer.request_stop)
    try:
        order = link.receive()
    except ParentGoneError:
        return
    from training.errors import TrainingError  # noqa: PLC0415

    try:
        trainer.run(order)
    except (TrainingError, MemoryError, OSError) as error:
        logger.exception("training failed")
        trainer.fail(error)
    logging.shutdown()
    os._exit(0)  # all is saved; unloading torch would take a second more on a busy machine


if __name__ == "__main__":
    main()
