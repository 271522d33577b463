"""Models that others made, as folders in this home: brought in, listed, drawn with.

No node need run, and nothing is fetched. What a run trained here is written out by
`node.exporting`.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.config import Config
from node.errors import ErrorCode, NodeError
from node.home import Home
from p2p.errors import StorageError

if TYPE_CHECKING:
    from training.drawing.plan import SampleOptions
    from training.exchange.imported import ImportRecord

_ROUTINGS: Final = {"sticky": "sticky", "top-1": "top1", "top-2": "top2", "full": "all"}
"""Routing as the published model calls it -> the strategy's name here."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeptModel:
    """An imported model in this home."""

    name: str
    folder: Path
    record: "ImportRecord"

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def import_folder(
    home: Home,
    source: Path,
    name: str | None,
    *,
    ignores_unknown: bool = False,
    on_file: Callable[[int, int], None] | None = None,
) -> KeptModel:
    """Check a folder that someone gave and keep a copy.

    Raises:
        NodeError: the folder does not fit its layout, or the name is in use or none.
    """
    from training.exchange.imported import import_model  # noqa: PLC0415

    chosen = folder_name(source.resolve().name) if name is None else name
    target = _models(home) / _checked_name(chosen)
    if target.exists():
        raise NodeError(
            ErrorCode.REFUSED,
            f"There is a model called {chosen} already.",
            f"choose another name: paris-node models import {source} --name NAME",
        )
    with explained():
        target.parent.mkdir(parents=True, exist_ok=True)
        record = import_model(source, target, ignores_unknown=ignores_unknown, on_file=on_file)
    return KeptModel(chosen, target, record)


def kept_models(home: Home) -> tuple[KeptModel, ...]:
    """The imported models of a home, by name."""
    folder = _models(home)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return tuple(find_model(home, name) for name in names if _NAME.fullmatch(name))


def find_model(home: Home, name: str) -> KeptModel:
    """An imported model.

    Raises:
        NodeError: if there is none of that name, or its record is damaged.
    """
    from training.exchange.imported import read_import  # noqa: PLC0415

    folder = _models(home) / _checked_name(name)
    if not folder.is_dir():
        raise NodeError(
            ErrorCode.NOT_FOUND,
            f"There is no model called {name} in this home.",
            "see those that are: paris-node models list",
        )
    with explained():
        return KeptModel(name, folder, read_import(folder))


@dataclass(frozen=True, slots=True)
class DrawnPictures:
    """What was drawn: PNG files, each expert's share, and how."""

    pngs: tuple[bytes, ...]
    shares: Mapping[int, float]
    routing: str
    seconds: float


def draw_with(
    kept: KeptModel,
    prompt: str,
    said: Mapping[str, Any],
    *,
    config: Config,
    on_step: Callable[[int, int], None],
) -> DrawnPictures:
    """Draw in this process.

    Args:
        kept: the model.
        prompt: what to draw.
        said: n, seed, and routing, steps, guidance, each None for the model's own.
        config: its threads and its folder of pretrained parts are used.
        on_step: told of progress.

    Raises:
        NodeError: the model was damaged, or a part it needs is not on this machine.
    """
    import torch  # noqa: PLC0415

    from training.drawing.plan import Images, SampleRequest, Step  # noqa: PLC0415
    from training.exchange.imported import PUBLISHED  # noqa: PLC0415
    from training.exchange.open_model import open_model  # noqa: PLC0415

    if said["routing"] == "sticky" and kept.record.kind == PUBLISHED:
        raise NodeError(
            ErrorCode.USAGE,
            "A published model has no captions to choose one expert by.",
            "--routing top-1, top-2 or full",
        )
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    pngs: list[bytes] = []
    shares: Mapping[int, float] = {}
    with explained():
        ensemble, usual = open_model(kept.folder, config.models_folder)
        options = _options(usual, said)
        request = SampleRequest(prompt, said["n"], said["seed"], options)
        for event in ensemble.generate(request):
            match event:
                case Step():
                    on_step(event.step, event.steps)
                case Images():
                    pngs += event.pngs
                    shares = event.shares
    routing = {name: key for key, name in _ROUTINGS.items()}[options.strategy.value]
    return DrawnPictures(tuple(pngs), shares, routing, time.monotonic() - started)


def _options(usual: "SampleOptions", said: Mapping[str, Any]) -> "SampleOptions":
    from training.drawing.mixture import Strategy  # noqa: PLC0415

    changes = {key: said[key] for key in ("steps", "guidance") if said[key] is not None}
    if said["routing"] is not None:
        changes["strategy"] = Strategy(_ROUTINGS[said["routing"]])
    return replace(usual, **changes)


def remove_model(home: Home, name: str) -> None:
    """Delete an imported model.

    Raises:
        NodeError: if there is none of that name, or the disk refuses.
    """
    folder = _models(home) / _checked_name(name)
    if not folder.is_dir():
        find_model(home, name)
    with explained():
        shutil.rmtree(folder)


def _models(home: Home) -> Path:
    return home.data / "imported"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NodeError(
            ErrorCode.USAGE,
            f"{name!r:.80} cannot be a model's name.",
            "up to 64 letters, digits, '.', '_' and '-', not beginning with a sign",
        )
    return name


def folder_name(text: str) -> str:
    """A name for a folder, made of a title."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "model"


@contextmanager
def explained() -> Iterator[None]:
    """What goes wrong below, as a sentence for a person."""
    from training.errors import ModelMissingError, TrainingError  # noqa: PLC0415
    from training.exchange.paris_layout import LayoutError  # noqa: PLC0415

    try:
        yield
    except LayoutError as error:
        raise NodeError(
            ErrorCode.VERIFICATION_FAILED,
            "The folder is not a model in the published layout:\n  " + "\n  ".join(error.shown),
            "see the layout: paris-node models import --help",
        ) from error
    except TrainingError as error:
        is_missing = isinstance(error, ModelMissingError)
        code = ErrorCode.NOT_FOUND if is_missing else ErrorCode.FAILED
        raise NodeError(code, f"{error}.", "") from error
    except (OSError, StorageError) as error:
        raise NodeError(
            ErrorCode.RESOURCE, f"The files cannot be written or read: {error}.", "free some disk"
        ) from error
