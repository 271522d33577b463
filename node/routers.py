"""Trained routers of a run in this home: where they lie, and what there is to train one from.

`runs/<run>/routers/<kind>/` holds one of each kind; of gauss, which needs no training, how sure it
may be. They are this node's own: none is taken from or
given to peers, since a router made to mislead would send pictures to experts of somebody's choice.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.runs import BUILTIN_FOLDER, builtin_run_id
from p2p.blobs import BlobStore, blobs_of
from p2p.codec import unpack
from p2p.errors import BlobMissingError, DecodeError, StorageError
from p2p.file_sets import FileSet
from p2p.ids import BlobId, RunId
from p2p.limits import CHUNK_SIZE
from p2p.records import RunManifest

KINDS: Final = ("learned", "synthetic", "gauss")
_FILE: Final = "router.json"
_EXPERT_FILE: Final = "expert.json"


@dataclass(frozen=True, slots=True)
class RouterPlace:
    """A run's corner of a home.

    Args:
        home: of the node.
        run: the run's id.
        manifest: of the run.
        models: folder of pretrained parts.
    """

    home: Home
    run: RunId
    manifest: RunManifest
    models: Path | None = None

    @property
    def folder(self) -> Path:
        """`runs/<run>` in the home."""
        return self.home.runs / self.run

    def router(self, kind: str) -> Path:
        """Where the trained router of a kind lies, or would lie."""
        return routers_folder(self.folder) / kind

    def shared(self, blobs: BlobStore) -> Path:
        """The run's shared folder, on disk.

        Raises:
            NodeError: if this home does not hold it.
        """
        found = self._unpacked(blobs, self.manifest.shared, "shared")
        if found is None:
            raise NodeError(
                ErrorCode.NOT_FOUND,
                f"The files of run {self.run} are not in this home.",
                f"join it once: paris-node start --run {self.run}",
            )
        return found

    def data(self, blobs: BlobStore) -> dict[int, Path]:
        """The clusters whose data lie in this home, as folders."""
        roots = enumerate(self.manifest.data)
        found = {k: self._unpacked(blobs, root, f"clusters/{k}") for k, root in roots}
        return {k: path for k, path in found.items() if path is not None}

    def experts(self) -> dict[int, Path]:
        """The furthest trained expert of each cluster that lies here, pulled or our own."""
        found = {}
        for cluster in range(self.manifest.clusters):
            pulled = self.folder.glob(f"experts/{cluster}/*/{_EXPERT_FILE}")
            own = self.folder.glob(f"train/{cluster}/save-*/expert/{_EXPERT_FILE}")
            files = sorted([*pulled, *own], key=lambda path: (_samples(path), str(path)))
            if files:
                found[cluster] = files[-1].parent
        return found

    def _unpacked(self, blobs: BlobStore, root: BlobId, shipped: str) -> Path | None:
        """A folder of the run on disk: unpacked before, unpacked now, or as the package ships it.

        Raises:
            NodeError: if the disk refuses.
        """
        target = self.folder / "unpacked" / root
        if target.exists():
            return target
        try:
            files = unpack(FileSet, blobs.get(root), max_size=CHUNK_SIZE).files
            if not blobs.missing(blob for blob, _ in blobs_of(files)):
                blobs.materialise(files, target)
                return target
        except BlobMissingError:
            pass  # not here: the package may have it
        except (DecodeError, StorageError) as error:
            if target.exists():  # the node was faster, and folders appear whole
                return target
            raise NodeError(
                ErrorCode.RESOURCE, f"The run cannot be unpacked: {error}.", "free some disk space"
            ) from error
        return BUILTIN_FOLDER / shipped if self.run == builtin_run_id() else None


def routers_folder(run_folder: Path) -> Path:
    """The folder of all trained routers of a run."""
    return run_folder / "routers"


def trained_routers(run_folder: Path) -> dict[str, Path]:
    """Kind -> folder of the routers that are whole."""
    root = routers_folder(run_folder)
    return {kind: root / kind for kind in KINDS if (root / kind / _FILE).is_file()}


def _samples(path: Path) -> int:
    """Pictures an expert saw; 0 if its file does not say: it is checked when it is loaded."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return 0
    samples = facts.get("samples") if isinstance(facts, dict) else None
    return samples if isinstance(samples, int) else 0
