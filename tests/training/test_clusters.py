import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training import clusters
from training.clusters import INDEX, Cluster, ClusterWriter, rows_per_shard, shard_name
from training.errors import DataError, TensorFileError
from training.preparation.prepare import PreparedRun
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


def write(folder: Path, latents: Tensor, captions: list[str], parts: tuple[int, ...]) -> None:
    """Write a cluster in pieces of so many rows."""
    folder.mkdir(exist_ok=True)
    unique = sorted(set(captions))
    places = torch.tensor([unique.index(caption) for caption in captions])
    writer = ClusterWriter(folder, 3, "c" * 64, (2, 2, 2), len(latents))
    begin = 0
    for size in parts:
        rows = slice(begin, begin + size)
        writer.add(latents[rows], places[rows], captions[rows])
        begin += size
    writer.close(unique)


def ten_rows() -> tuple[Tensor, list[str]]:
    latents = torch.randn(10, 2, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    return latents, [f"{'cab'[i % 3]}" for i in range(10)]


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("parts", [(10,), (1, 9), (3, 0, 4, 3), (1,) * 10])
def test_rows_survive_any_number_of_shards_and_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, parts: tuple[int, ...]
) -> None:
    per_shard = -(-10 // shards)
    monkeypatch.setattr(clusters, "rows_per_shard", lambda latent: per_shard)
    latents, captions = ten_rows()
    write(tmp_path / "pieces", latents, captions, parts)
    write(tmp_path / "whole", latents, captions, (10,))
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) == shards
    loaded = Cluster.load(tmp_path / "pieces")
    assert torch.equal(loaded.stored, latents)
    assert loaded.row_captions() == captions
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "pieces" / path.name).read_bytes() == path.read_bytes()


def test_rows_that_were_not_announced_are_refused(tmp_path: Path) -> None:
    latents, captions = ten_rows()
    with pytest.raises(ValueError, match="9 rows of 10 were written"):
        write(tmp_path / "few", latents, captions, (9,))
    writer = ClusterWriter(tmp_path, 0, "c" * 64, (2, 2, 2), 9)
    with pytest.raises(ValueError, match="more than 9 rows"):
        writer.add(latents, torch.zeros(10, dtype=torch.int64), captions)


def test_index_that_no_reader_would_take_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MAX_JSON_BYTES", 100)
    latents, captions = ten_rows()
    with pytest.raises(DataError, match=r"cluster 3: its 3 different captions take .* more clust"):
        write(tmp_path, latents, captions, (10,))
    assert not (tmp_path / INDEX).exists()


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
    shutil.rmtree(folder)
    folder.mkdir()
    index = whole.index
    writer = ClusterWriter(folder, index.cluster, index.codec, index.latent, len(whole))
    writer.add(whole.stored, whole.caption_of, whole.row_captions())
    writer.close(whole.captions)
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
