"""Pictures and data that cannot be used: each says what, where and how to mend it.

And nothing half-written stays behind: the mended call works in the same place.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.small_disk import fill, small_disk
from tests.training.conftest import TINY_SPEC, draw_pictures
from tests.training.preparation.kill_prepare import contents
from training.clusters import Cluster, ClusterWriter, shard_name
from training.config import RunSpec
from training.errors import DiskError, TrainingError
from training.preparation import encode
from training.preparation.encode import Encoder, encode_batch
from training.preparation.prepare import PreparedRun, Progress, prepare_run
from training.run import Run
from training.sources.data import Pictures


def empty(folder: Path) -> None:
    folder.mkdir()


def one_picture(folder: Path) -> None:
    draw_pictures(folder, 1)


def unreadable(folder: Path) -> None:
    draw_pictures(folder, 8)
    for path in folder.glob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")


def without_captions(folder: Path) -> None:
    draw_pictures(folder, 8)
    lines = [json.dumps({"file_name": f"{i:03d}.png", "alt": "x"}) for i in range(8)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def only_numbers_for_names(folder: Path) -> None:
    draw_pictures(folder, 8)
    (folder / "metadata.jsonl").unlink()


def fewer_than_clusters(folder: Path) -> None:
    draw_pictures(folder, 6)


def all_the_same(folder: Path) -> None:
    draw_pictures(folder, 8)
    for path in folder.glob("*.png"):
        path.write_bytes((folder / "000.png").read_bytes())


def not_pictures(folder: Path) -> None:
    folder.mkdir()
    (folder / "holiday.mp4").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, r"bad: no pictures in it \(empty\); expected .*metadata\.jsonl"),
        (not_pictures, r"bad: no pictures in it \(only files named \*\.mp4\); expected"),
        (one_picture, r"bad: 4 clusters need at least 8 pictures, got 1; add pictures"),
        (unreadable, r"bad: no usable picture \(8 skipped\) 8 unreadable picture: 000\.png \("),
        (without_captions, r"8 no caption: metadata.jsonl line 1 \(no 'text'; there is: alt\)"),
        (only_numbers_for_names, r"no usable picture \(8 skipped\) 8 no caption: 000\.png, 001"),
        (fewer_than_clusters, r"at least 8 pictures, got 6; choose at most 3 clusters"),
        (all_the_same, r"4 clusters need as many different pictures, found only 1"),
    ],
)
def test_pictures_that_cannot_make_a_run_say_why_and_do_not_stand_in_the_way(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    bad, out, spec = tmp_path / "bad", tmp_path / "out", replace(TINY_SPEC, clusters=4)
    spoil(bad)
    with pytest.raises(TrainingError, match=message):
        prepare_run(bad, out, spec)
    shutil.rmtree(bad)
    draw_pictures(bad, 24)
    if spoil is all_the_same:  # encoded before this was seen, and kept for other K
        shutil.rmtree(out)
    assert len(prepare_run(bad, out, spec).clusters) == 4


@pytest.fixture
def folder(prepared: PreparedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.clusters[0].folder, tmp_path / "0"))


def rewrite(folder: Path, cluster: Cluster) -> None:
    """A cluster's folder with the hashes that fit."""
    index = cluster.index
    shutil.rmtree(folder)
    folder.mkdir()
    writer = ClusterWriter(folder, index.cluster, index.codec, index.latent, len(cluster))
    writer.add(cluster.stored, cluster.caption_of, cluster.row_captions())
    writer.close(cluster.captions)


def nan_in_latents(folder: Path) -> None:
    cluster = Cluster.load(folder)
    cluster.stored[3, 0, 0, 0] = float("nan")
    rewrite(folder, cluster)


def infinity_in_latents(folder: Path) -> None:
    cluster = Cluster.load(folder)
    cluster.stored[3, 0, 0, 0] = float("inf")
    rewrite(folder, cluster)


def altered_bit(folder: Path) -> None:
    path = folder / shard_name(0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(folder: Path) -> None:
    path = folder / shard_name(0)
    path.write_bytes(path.read_bytes()[:-1])


def gone(folder: Path) -> None:
    (folder / shard_name(0)).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_in_latents, r"latents-000\.safetensors: tensor latents holds NaN or infinite"),
        (infinity_in_latents, r"latents-000\.safetensors: tensor latents holds NaN or infinite"),
        (altered_bit, r"latents-000\.safetensors: row \d+ does not match its hash"),
        (cut_short, r"latents-000\.safetensors: \d+ bytes of data, the header describes"),
        (gone, r"latents-000\.safetensors: cannot be read: No such file"),
    ],
)
def test_spoiled_shard_is_named_with_the_mend(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(TrainingError, match=message) as caught:
        Cluster.load(folder)
    assert str(caught.value).endswith("delete the folder and fetch or make it again")


class Broken:
    """A codec that gives NaN for one picture."""

    latent = (16, 2, 2)
    digest = "d" * 64
    pins: Mapping[str, str] = {}

    def __init__(self, run: Run) -> None:
        self._run = run

    def stored(self) -> bytes:
        return b""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        latents = self._run.codec.encode(images)
        latents[1] = float("nan")
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._run.codec.decode(latents)


def test_picture_that_is_encoded_as_nan_is_left_out_and_counted(run: Run) -> None:
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    pictures = Pictures(images, ("a", "b", "c"))
    batch = encode_batch(pictures, Encoder(Broken(run), run.clusters.extractor))
    assert batch.captions == ("a", "c")
    assert bool(batch.latents.isfinite().all())
    assert str(batch.skipped) == "1 encoded as NaN or infinite numbers: picture of 'b'"


DISK = 4 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with small_disk(tmp_path / "disk", DISK) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("leave", [0, 16_384, 65_536, 100_000])
def test_full_disk_says_so_and_the_same_call_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, leave: int
) -> None:
    monkeypatch.setattr(encode, "MIN_BATCH", 2)
    monkeypatch.setattr(encode, "MAX_BATCH", 2)
    spec: RunSpec = TINY_SPEC
    expected = contents(prepare_run(pictures, tmp_path / "whole", spec).root)
    out = disk / "out"
    filler = fill(disk, leave=leave)
    with pytest.raises(DiskError, match=r"out.*: No space left on device; free some space"):
        prepare_run(pictures, out, spec)
    assert not list(out.rglob(".tmp-*"))
    assert not (out / "shared").exists()
    spooled = len(list(out.glob("spool/batch-*")))
    filler.unlink()
    seen: list[Progress] = []
    prepare_run(pictures, out, spec, seen.append)
    assert contents(out) == expected
    assert next(p.done for p in seen if p.phase == "encode") == 2 * spooled
