"""Training a router for a run of this home: what there is to learn from, and where it is kept.

Done by the process that asks, with or without a running node; torch is loaded when it begins.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from node.errors import ErrorCode, NodeError
from node.routers import RouterPlace, routers_folder
from p2p.blobs import BlobStore

if TYPE_CHECKING:
    from training.routers.calibration import LabelledLatents
    from training.routers.gauss_calibration import GaussInfo
    from training.routers.learned_router import RouterInfo
    from training.run import Run

_FEWEST_CLUSTERS: Final = 2


@dataclass(frozen=True, slots=True)
class RouterOrder:
    """What a person may choose.

    Args:
        kind: one of `node.routers.KINDS`.
        samples: noisy latents to train on.
        pictures: how many the experts draw (synthetic).
        data: sources of pictures beside the run's own (learned).
        preset: of the net; None for what suits the run's latents.
        seed: of the training, and of what the experts draw.
        threads: of torch.
        device: a torch device, or "auto".
    """

    kind: str
    samples: int
    pictures: int
    data: tuple[str, ...]
    preset: str | None
    seed: int
    threads: int
    device: str


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told how far it is, and asked whether to stop.

    Args:
        on_progress: phase ("draw" or "train"), done, total.
        should_stop: asked between steps.
    """

    on_progress: Callable[[str, int, int], None]
    should_stop: Callable[[], bool]


def train_here(
    place: RouterPlace, blobs: BlobStore, order: RouterOrder, watcher: Watcher
) -> "RouterInfo | GaussInfo":
    """Train a router and keep it in the home; an order that was stopped goes on from there.

    Gauss has nothing to train: its confidence is measured, and its temperatures fitted.

    Raises:
        NodeError: nothing to learn from, or `INTERRUPTED` if the watcher had it stopped.
        TrainingError: data, experts or saves that cannot be used.
        OSError: the disk refuses.
    """
    from training.routers.learned_router import save_router  # noqa: PLC0415
    from training.routers.router_training import (  # noqa: PLC0415
        DEFAULT_TRAIN,
        RouterSettings,
        RouterStep,
        train_router,
    )
    from training.run import load_run  # noqa: PLC0415

    config = replace(
        DEFAULT_TRAIN,
        budget_samples=order.samples,
        seed=order.seed,
        threads=order.threads,
        device=_device(order.device),
    )
    if order.kind == "gauss":
        return _measured(place, blobs, order, watcher)
    settings = RouterSettings(preset=order.preset, kind=order.kind, train=config)
    run = load_run(place.shared(blobs), place.models)
    if order.kind == "synthetic":
        rows, names = _drawn(place, run, order, watcher)
        settings = replace(settings, experts=names)
    else:
        rows = _gathered(place, blobs, run, order.data)
    name = sha256(repr(replace(order, threads=1, device="")).encode()).hexdigest()[:16]
    saves = routers_folder(place.folder) / f".training-{order.kind}-{name}"
    saves.parent.mkdir(parents=True, exist_ok=True)
    training = train_router(
        rows, run, settings, state_dir=saves, should_stop=watcher.should_stop
    )  # fmt: skip
    for event in training:
        if isinstance(event, RouterStep):
            watcher.on_progress("train", event.samples, order.samples)
            continue
        save_router(event.router, place.router(order.kind))
        shutil.rmtree(saves)
        return event.router.info
    raise _stopped("What was learned is kept.")


def _measured(
    place: RouterPlace, blobs: BlobStore, order: RouterOrder, watcher: Watcher
) -> "GaussInfo":
    """Measure gauss on the data in this home, or on the experts' pictures if there are too few."""
    from training.routers.gauss_calibration import measure_gauss, save_gauss  # noqa: PLC0415
    from training.run import load_run  # noqa: PLC0415

    run = load_run(place.shared(blobs), place.models)
    if len(place.data(blobs)) >= _FEWEST_CLUSTERS or order.data:
        rows, source = _gathered(place, blobs, run, order.data), "data"
    else:
        rows, source = _drawn(place, run, order, watcher)[0], "experts"
    info = measure_gauss(rows, run, source, order.seed)
    save_gauss(info, place.router(order.kind))
    return info


def _gathered(
    place: RouterPlace, blobs: BlobStore, run: "Run", sources: tuple[str, ...]
) -> "LabelledLatents":
    """The run's data in this home, and the pictures of `sources`.

    Raises:
        NodeError: if they are of fewer than two clusters.
    """
    from training.clusters import Cluster  # noqa: PLC0415
    from training.routers.router_data import joined, labelled_pictures  # noqa: PLC0415
    from training.routers.router_training import labelled  # noqa: PLC0415

    own = [Cluster.load(folder) for folder in place.data(blobs).values()]
    parts = [labelled_pictures(source, run) for source in sources]
    parts += [labelled([cluster]) for cluster in own]
    known = {cluster for part in parts for cluster in part.clusters.tolist()}
    if len(known) < _FEWEST_CLUSTERS:
        held = f"cluster {known.pop()}" if known else "none"
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"A learned router needs data of two clusters or more; here: {held}.",
            "give pictures with --data, or take the experts': --kind synthetic",
        )
    return joined(parts)


def _drawn(
    place: RouterPlace, run: "Run", order: RouterOrder, watcher: Watcher
) -> tuple["LabelledLatents", dict[str, str]]:
    """Pictures of the experts in this home, and those experts' digests by cluster.

    Raises:
        NodeError: if there are fewer than two experts, or it was stopped.
    """
    from training.experts.loaded import load_expert  # noqa: PLC0415
    from training.routers.synthetic import draw_labelled  # noqa: PLC0415

    experts = {k: load_expert(folder, run) for k, folder in place.experts().items()}
    if len(experts) < _FEWEST_CLUSTERS:
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"Drawing latents needs two experts or more; {len(experts)} of "
            f"{run.spec.clusters} lie in this home.",
            "fetch them: paris-node experts find    then: paris-node experts pull CID",
        )
    drawing = draw_labelled(run, experts, order.pictures, order.seed)
    while True:
        try:
            drawn = next(drawing)
        except StopIteration as end:
            return end.value, {str(k): one.info.model_digest for k, one in experts.items()}
        watcher.on_progress("draw", drawn.done, drawn.total)
        if watcher.should_stop():
            raise _stopped("Nothing was trained yet.")


def _stopped(what: str) -> NodeError:
    return NodeError(
        ErrorCode.INTERRUPTED, f"Stopped. {what}", "the same command goes on from there"
    )


def _device(wanted: str) -> str:
    import torch  # noqa: PLC0415

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
