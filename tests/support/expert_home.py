"""A home whose store holds a tiny run and one real expert of it, as a node leaves them."""

from dataclasses import dataclass
from pathlib import Path

from node.home import Home, prepare
from node.keeping import keep_checkpoint
from node.runs import import_run
from p2p.blobs import BlobStore
from p2p.codec import BLOB_KEY, seal
from p2p.ids import BlobId, ClusterId, RunId
from p2p.records import CheckpointManifest, ClaimPolicy
from tests.support.people import alice
from tests.training.conftest import TINY_SPEC, draw_pictures
from training.clusters import Cluster
from training.experts.checkpoint import published_folder
from training.experts.loop import train
from training.preparation.prepare import prepare_run


@dataclass(frozen=True, slots=True)
class ExpertHome:
    """Where it is, and what lies in it."""

    home: Home
    run: RunId
    cid: BlobId
    pictures: Path


def make_expert_home(folder: Path) -> ExpertHome:
    """Make one under `folder`: a second or two."""
    pictures = draw_pictures(folder / "pictures")
    prepared = prepare_run(pictures, folder / "run", TINY_SPEC)
    config = TINY_SPEC.train
    state = folder / "state"
    for _ in train(
        Cluster.load(prepared.clusters[0].folder), prepared.load(), config, state_dir=state
    ):
        pass
    home = Home.at(folder / "home")
    prepare(home)
    blobs = BlobStore.open(home.blobs, floor_bytes=0)
    run = import_run(prepared, blobs, ClaimPolicy()).run
    return ExpertHome(home, run, _publish(blobs, run, state, config.budget_samples), pictures)


def _publish(blobs: BlobStore, run: RunId, state: Path, samples: int) -> BlobId:
    folder = published_folder(state, samples)
    entries = blobs.add_files({path.name: path for path in folder.iterdir()})
    manifest = CheckpointManifest(
        run=run,
        cluster=ClusterId(0),
        epoch=1,
        step=12,
        samples=samples,
        loss=0.5,
        parent=None,
        files=entries,
        created_at=0.0,
    )
    envelope = seal(manifest, alice, key=BLOB_KEY, expires_at=None)
    return keep_checkpoint(blobs, envelope, manifest.cluster, samples, entries)
