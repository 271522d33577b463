"""The run that ships with the package: whole, the same everywhere, and what its recipe gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node.errors import ErrorCode, NodeError
from node.runs import BUILTIN_FOLDER, builtin_run_id, install_builtin_run, load_manifest
from p2p.blobs import BlobStore
from training.clusters import Cluster
from training.preparation.prepare import prepare_run
from training.run import load_run

LATENT_TOLERANCE = 2e-2
"""Half-precision latents of the same picture on another machine; they are of order 1."""


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "blobs", floor_bytes=0)


def test_it_installs_under_the_id_the_package_names(store: BlobStore) -> None:
    run = install_builtin_run(store)
    assert run == builtin_run_id()
    manifest = load_manifest(run, store)
    assert store.missing([manifest.shared, *manifest.data]) == ()
    assert install_builtin_run(store) == run


def test_altered_package_data_is_refused(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    copy = tmp_path / "builtin"
    shutil.copytree(BUILTIN_FOLDER, copy)
    path = copy / "clusters" / "0" / "captions.json"
    path.write_text(path.read_text().replace("sandal", "dragon"))
    monkeypatch.setattr("node.runs.BUILTIN_FOLDER", copy)
    with pytest.raises(NodeError, match="altered") as caught:
        install_builtin_run(store)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED


@pytest.mark.slow
def test_its_recipe_builds_it_again_within_a_tolerance(tmp_path: Path) -> None:
    shipped = load_run(BUILTIN_FOLDER / "shared")
    rebuilt = prepare_run("fashion", tmp_path / "run", replace(shipped.spec)).load()

    for ours, theirs in zip(rebuilt.facts.rows, shipped.facts.rows, strict=True):
        assert abs(ours - theirs) <= 0.01 * theirs
    torch.testing.assert_close(rebuilt.clusters.fine, shipped.clusters.fine, atol=1e-2, rtol=1e-2)
    for number in range(shipped.spec.clusters):
        ours_k = Cluster.load(tmp_path / "run" / "clusters" / str(number))
        theirs_k = Cluster.load(BUILTIN_FOLDER / "clusters" / str(number))
        assert ours_k.captions == theirs_k.captions
        mean_gap = (ours_k.latents().mean(0) - theirs_k.latents().mean(0)).abs().max()
        spread_gap = (ours_k.latents().std(0) - theirs_k.latents().std(0)).abs().max()
        assert mean_gap < LATENT_TOLERANCE
        assert spread_gap < LATENT_TOLERANCE
