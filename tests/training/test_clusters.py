import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training import clusters
from training.clusters import (
    INDEX,
    Cluster,
    ClusterIndex,
    cluster_files,
    rows_per_shard,
    shard_name,
)
from training.errors import DataError, TensorFileError
from training.prepare import PreparedRun
from training.tensors import pack_tensors


@pytest.fixture
def folder(prepared: PreparedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.clusters[0].folder, tmp_path / "0"))


def test_loaded_cluster_gives_latents_and_captions_row_by_row(cluster: Cluster) -> None:
    assert cluster.number == 0
    assert cluster.latents().shape == (len(cluster), 16, 2, 2)
    assert cluster.latents().dtype == torch.float32
    assert len(cluster.row_captions()) == len(cluster)
    assert set(cluster.row_captions()) <= {"a disc", "two bars"}


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_rows_survive_any_number_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    per_shard = -(-10 // shards)
    monkeypatch.setattr(clusters, "rows_per_shard", lambda latent: per_shard)
    latents = torch.randn(10, 2, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    captions = torch.arange(10) % 3
    index = ClusterIndex(1, 3, "c" * 64, (2, 2, 2), (), ("a", "b", "c"))
    for name, data in cluster_files(index, latents, captions).items():
        (tmp_path / name).write_bytes(data)
    assert len(list(tmp_path.glob("*.safetensors"))) == shards
    loaded = Cluster.load(tmp_path)
    assert torch.equal(loaded.stored, latents)
    assert torch.equal(loaded.caption_of, captions)


def test_shard_stays_below_64_mib_and_fills_it() -> None:
    for latent in ((16, 4, 4), (4, 32, 32), (4, 128, 128)):
        row = 2 * latent[0] * latent[1] * latent[2] + 36
        assert 60 * 2**20 < rows_per_shard(latent) * row < 64 * 2**20 - 1024


def test_altered_row_is_named(folder: Path) -> None:
    path = folder / shard_name(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last byte of the last row's hash
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"latents-000.safetensors: row \d+ does not match its hash"
    ):
        Cluster.load(folder)


def test_latents_that_are_not_numbers_are_refused_with_the_file(folder: Path) -> None:
    whole = Cluster.load(folder)
    whole.stored[3, 0, 0, 0] = float("nan")
    files = cluster_files(whole.index, whole.stored, whole.caption_of)
    (folder / shard_name(0)).write_bytes(files[shard_name(0)])
    with pytest.raises(
        TensorFileError, match=r"latents-000\.safetensors: tensor latents holds NaN"
    ):
        Cluster.load(folder)


def test_row_pointing_outside_the_captions_is_refused(folder: Path) -> None:
    whole = Cluster.load(folder)
    hashes = torch.zeros(len(whole), 32, dtype=torch.uint8)
    for pointer in (-1, len(whole.captions)):
        captions = whole.caption_of.to(torch.int32).clone()
        captions[0] = pointer
        shard = {"latents": whole.stored, "caption": captions, "sha256": hashes}
        (folder / shard_name(0)).write_bytes(pack_tensors(shard))
        with pytest.raises(DataError, match="points to a caption"):
            Cluster.load(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.update(schema=2), "schema 2"),
        (lambda v: v.update(cluster=-1), "cluster -1"),
        (lambda v: v.update(cluster=4096), "cluster 4096"),
        (lambda v: v.update(rows=[]), "impossible row counts"),
        (lambda v: v.update(rows=[0]), "impossible row counts"),
        (lambda v: v.update(rows=[10**9]), "impossible row counts"),
        (lambda v: v.update(latent=[16, 0, 2]), "impossible latent shape"),
        (lambda v: v.update(latent=[16, 2]), "expected 3 values"),
        (lambda v: v.update(captions=[]), "no captions"),
        (lambda v: v.update(captions=[1]), "expected str"),
        (lambda v: v.pop("codec"), "missing key 'codec'"),
    ],
)
def test_index_that_cannot_be_used_says_why(
    folder: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    value = json.loads((folder / INDEX).read_bytes())
    change(value)
    (folder / INDEX).write_text(json.dumps(value))
    with pytest.raises(DataError, match=reason):
        Cluster.load(folder)


def test_altered_caption_is_noticed(folder: Path) -> None:
    value = json.loads((folder / INDEX).read_bytes())
    value["captions"] = [f"not {caption}" for caption in value["captions"]]
    (folder / INDEX).write_text(json.dumps(value))
    with pytest.raises(DataError, match="does not match its hash"):
        Cluster.load(folder)


def test_missing_shard_and_index_are_named(folder: Path) -> None:
    (folder / shard_name(0)).unlink()
    with pytest.raises(TensorFileError, match=r"latents-000\.safetensors: cannot be read"):
        Cluster.load(folder)
    (folder / INDEX).unlink()
    with pytest.raises(DataError, match=r"captions\.json: cannot be read"):
        Cluster.load(folder)
