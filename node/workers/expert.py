"""The program that draws: holds router and experts in memory, carries out one order at a time.

Takes {kind: "draw", shared, models, experts: {cluster: folder}, summaries: {cluster: file},
routers: {kind: folder}, loras: {cluster: [folder, scale]}, prompt, n, seed, strategy, top_k,
threshold, router, sampler, steps, guidance, autoguidance, threads, device}; says `route`,
`progress` at each step, `image` (PNG bytes), then `done`; or `failed`. {kind: "cancel"} ends the
order within one step.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from node.workers.link import Message, ParentGoneError, ParentLink

logger = logging.getLogger(__name__)

_Paths = tuple[tuple[str, str], ...]
_Loras = tuple[tuple[str, str, float], ...]
_EnsembleKey = tuple[str, str, _Paths, _Paths, _Paths, _Loras]
_WITHOUT_LORA = "draw without it: --no-lora"


class _Cancelled(Exception):
    """The node does not want the rest."""


class Easel:
    """Keeps the ensemble of the last order, since the next one is mostly for the same experts."""

    def __init__(self) -> None:
        self._key: _EnsembleKey | None = None
        self._ensemble: Any = None

    def ensemble(self, order: Mapping[str, Any]) -> Any:  # noqa: ANN401  its module loads torch
        """The ensemble an order asks for, loaded if it is another than the last."""
        from training.drawing.ensemble import Ensemble  # noqa: PLC0415

        experts, summaries, routers = order["experts"], order["summaries"], order["routers"]
        loras = {int(k): (Path(folder), scale) for k, (folder, scale) in order["loras"].items()}
        key = (
            order["shared"],
            order["models"],
            tuple(experts.items()),
            tuple(summaries.items()),
            tuple((kind, _version(Path(folder))) for kind, folder in routers.items()),
            tuple((_contents(folder), str(k), scale) for k, (folder, scale) in loras.items()),
        )
        if key != self._key:
            self._key = None
            self._ensemble = Ensemble.load(
                Path(order["shared"]),
                {int(cluster): Path(folder) for cluster, folder in experts.items()},
                {int(cluster): Path(file) for cluster, file in summaries.items()},
                {kind: Path(folder) for kind, folder in routers.items()},
                loras,
                models=Path(order["models"]),
            )
            self._key = key
        return self._ensemble


def _version(folder: Path) -> str:
    """A folder and the time it was written: a router trained anew lies where the old one lay."""
    return f"{folder}@{folder.stat().st_mtime_ns if folder.exists() else 0}"


def _contents(folder: Path) -> str:
    """A folder and when each of its files was written: an adapter altered in place is read anew."""
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return f"{folder}@{[(file.name, file.stat().st_mtime_ns) for file in files]}"


def draw(order: Mapping[str, Any], easel: Easel) -> Iterator[Message]:
    """Carry out one order; see the module's docstring."""
    from training.drawing.mixture import Strategy  # noqa: PLC0415
    from training.drawing.plan import (  # noqa: PLC0415
        Images,
        Route,
        RouterName,
        SampleOptions,
        Sampler,
        SampleRequest,
        Step,
    )

    options = SampleOptions(
        strategy=Strategy(order["strategy"]),
        sampler=Sampler(order["sampler"]),
        steps=order["steps"],
        guidance=order["guidance"],
        autoguidance=order["autoguidance"],
        top_k=order["top_k"],
        threshold=order["threshold"],
        router=None if order["router"] is None else RouterName(order["router"]),
    )
    request = SampleRequest(order["prompt"], order["n"], order["seed"], options)
    for event in easel.ensemble(order).generate(request):
        match event:
            case Route():
                yield {
                    "kind": "route",
                    "shares": {str(k): share for k, share in event.experts.items()},
                    "missing": {str(k): share for k, share in event.missing.items()},
                    "starters": {str(k): share for k, share in event.starters.items()},
                    "unaided": list(event.unaided),
                    "unguided": list(event.unguided),
                }
            case Step():
                yield {"kind": "progress", "step": event.step, "steps": event.steps}
            case Images():
                shares = {str(k): share for k, share in event.shares.items()}
                for number, png in enumerate(event.pngs, start=event.first):
                    yield {"kind": "image", "index": number, "png": png, "shares": shares}


def carry_out(link: ParentLink, order: Mapping[str, Any], easel: Easel) -> None:
    """Draw one order and say how it went."""
    from training.errors import TrainingError  # noqa: PLC0415

    started = time.monotonic()
    try:
        for message in draw(order, easel):
            link.send(message)
            if (news := link.poll()) is not None and news["kind"] == "cancel":
                raise _Cancelled
    except _Cancelled:
        logger.info("order cancelled")
    except (TrainingError, ValueError, MemoryError) as error:
        logger.exception("order failed")
        code, fix = _means(error)
        why = str(error) or "out of memory"
        link.send({"kind": "failed", "code": code, "error": f"drawing failed: {why}", "fix": fix})
        return
    link.send({"kind": "done", "seconds": time.monotonic() - started})


def _means(error: Exception) -> tuple[str, str]:
    """The label of a failure's `node.errors.ErrorCode`, and what helps."""
    from training import errors  # noqa: PLC0415

    match error:
        case errors.RouterMissingError(router=router):
            is_trained = router != "gauss"
            fix = f"train one here: paris-node router train --kind {router}" if is_trained else ""
            return "not_found", fix
        case errors.ModelMissingError():
            return "not_found", ""
        case errors.WrongBaseError():
            return "refused", _WITHOUT_LORA
        case errors.LoraError():
            return "verification_failed", f"get or train the LoRA again, or {_WITHOUT_LORA}"
        case errors.CheckpointError() | errors.TensorFileError():
            return "verification_failed", "see which file: paris-node logs"
    return "failed", ""


def main() -> None:
    """Serve the node on the descriptor given as the first argument, until it hangs up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    link = ParentLink(int(sys.argv[1]))
    os.nice(1)
    easel = Easel()
    try:
        while True:
            order = link.receive()
            if order["kind"] == "draw":
                _prepare_torch(int(str(order["threads"])))
                carry_out(link, order, easel)
    except ParentGoneError:
        logger.info("the node is gone")


def _prepare_torch(threads: int) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
