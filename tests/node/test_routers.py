import json
from pathlib import Path

import pytest

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.routers import RouterPlace, routers_folder, trained_routers
from node.runs import builtin_run_id, import_run, install_builtin_run, load_manifest
from p2p.blobs import BlobStore
from p2p.records import ClaimPolicy
from tests.training.conftest import TINY_SPEC, draw_pictures
from training.clusters import Cluster
from training.preparation.prepare import PreparedRun, prepare_run
from training.run import load_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    folder = tmp_path_factory.mktemp("run")
    return prepare_run(draw_pictures(folder / "pictures"), folder / "out", TINY_SPEC)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "blobs", floor_bytes=0)


@pytest.fixture
def place(prepared: PreparedRun, blobs: BlobStore, tmp_path: Path) -> RouterPlace:
    created = import_run(prepared, blobs, ClaimPolicy())
    return RouterPlace(Home.at(tmp_path), created.run, created.manifest)


def write_expert(folder: Path, samples: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "expert.json").write_text(json.dumps({"samples": samples}))
    return folder


def test_only_whole_routers_of_known_kinds_are_offered(tmp_path: Path) -> None:
    root = routers_folder(tmp_path)
    for name in ("learned", "synthetic", "guessed", "learned.new", ".training-learned-0"):
        (root / name).mkdir(parents=True)
        if name != "synthetic":
            (root / name / "router.json").write_text("{}")
    assert trained_routers(tmp_path) == {"learned": root / "learned"}


def test_run_made_here_is_unpacked_and_reads_as_it_was_made(
    place: RouterPlace, blobs: BlobStore, prepared: PreparedRun
) -> None:
    assert load_run(place.shared(blobs)).digest == prepared.load().digest
    data = place.data(blobs)
    assert [len(Cluster.load(folder)) for folder in data.values()] == [
        info.n for info in prepared.clusters
    ]
    assert place.data(blobs) == data


def test_clusters_whose_data_are_not_here_are_left_out(
    place: RouterPlace, blobs: BlobStore
) -> None:
    blobs.unpin(place.manifest.data[0])
    blobs.collect_garbage(min_age_s=0)
    assert list(place.data(blobs)) == [1]


def test_run_that_is_not_here_says_how_to_get_it(place: RouterPlace, tmp_path: Path) -> None:
    empty = BlobStore.open(tmp_path / "empty", floor_bytes=0)
    with pytest.raises(NodeError, match="not in this home") as caught:
        place.shared(empty)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert "paris-node start --run" in caught.value.fix
    assert place.data(empty) == {}


def test_builtin_run_is_taken_from_the_package_until_it_is_installed(
    blobs: BlobStore, tmp_path: Path
) -> None:
    run = install_builtin_run(blobs)
    place = RouterPlace(Home.at(tmp_path), run, load_manifest(run, blobs))
    assert run == builtin_run_id()
    empty = BlobStore.open(tmp_path / "empty", floor_bytes=0)
    shipped = place.shared(empty)
    assert not shipped.is_relative_to(tmp_path)
    assert load_run(place.shared(blobs)).digest == load_run(shipped).digest
    assert place.shared(blobs).is_relative_to(tmp_path)


def test_furthest_trained_expert_of_each_cluster_is_found(place: RouterPlace) -> None:
    pulled = place.folder / "experts" / "0"
    write_expert(pulled / "bafkreia", 100)
    best = write_expert(pulled / "bafkreib", 900)
    write_expert(place.folder / "train" / "0" / "save-000000000300" / "expert", 300)
    own = write_expert(place.folder / "train" / "1" / "save-000000000016" / "expert", 16)
    assert place.experts() == {0: best, 1: own}


@pytest.mark.parametrize("samples", ["many", None])
def test_expert_that_says_nothing_of_its_samples_comes_last(
    place: RouterPlace, samples: object
) -> None:
    pulled = place.folder / "experts" / "0"
    write_expert(pulled / "bafkreiz", samples)
    best = write_expert(pulled / "bafkreia", 1)
    assert place.experts() == {0: best}
