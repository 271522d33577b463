"""The data of one cluster: latents with captions in shards, every row hashed.

A cluster folder holds `captions.json` (the index) and `latents-000.safetensors`, ... It may come
from a stranger: headers, shapes, finiteness and row hashes are checked before a row is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.config import MAX_CLUSTERS, SCHEMA, LatentShape
from training.errors import ConfigError, DataError
from training.jsonio import canonical_json, from_json, read_json, to_json
from training.tensors import TensorSpec, pack_tensors, read_tensors

INDEX: Final = "captions.json"
SHARD_BYTES: Final = 64 * 2**20
MAX_ROWS: Final = 2**31 - 1
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class ClusterIndex:
    """`captions.json` of a cluster folder.

    Args:
        schema: 1.
        cluster: its number.
        codec: digest of the codec that made the latents.
        latent: channels, height, width.
        rows: rows of each shard.
        captions: unique captions; rows point into this list.
    """

    schema: int
    cluster: int
    codec: str
    latent: tuple[int, int, int]
    rows: tuple[int, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """One cluster's data in memory, checked.

    Args:
        index: what its folder says about it.
        stored: float16 [N, C, H, W].
        caption_of: int64 [N], into `index.captions`.
    """

    index: ClusterIndex
    stored: Tensor
    caption_of: Tensor

    @property
    def number(self) -> int:
        """Which cluster of its run."""
        return self.index.cluster

    @property
    def captions(self) -> tuple[str, ...]:
        """The unique captions."""
        return self.index.captions

    def __len__(self) -> int:
        return len(self.stored)

    def latents(self) -> Tensor:
        """float32 [N, C, H, W]."""
        return self.stored.float()

    def row_captions(self) -> list[str]:
        """The caption of every row."""
        return [self.index.captions[i] for i in self.caption_of.tolist()]

    @classmethod
    def load(cls, folder: Path) -> "Cluster":
        """Read and check a cluster folder.

        Raises:
            DataError: an altered row, a shard or index that is not what it should be.
            TensorFileError: a shard whose file is malformed or holds NaN; names the file.
        """
        index = _read_index(folder / INDEX)
        latents, captions = [], []
        for number, rows in enumerate(index.rows):
            path = folder / shard_name(number)
            found = read_tensors(path, _shard_schema(rows, index.latent))
            _check_rows(path, found, index.captions)
            latents.append(found["latents"])
            captions.append(found["caption"].long())
        return cls(index, torch.cat(latents), torch.cat(captions))


def cluster_files(index: ClusterIndex, latents: Tensor, captions: Tensor) -> dict[str, bytes]:
    """The files of a cluster folder; the same rows give the same bytes.

    Args:
        index: its `rows` are filled in here.
        latents: float16 [N, C, H, W].
        captions: int64 [N], into `index.captions`.
    """
    per_shard = rows_per_shard(index.latent)
    files: dict[str, bytes] = {}
    rows = []
    blocks = zip(torch.split(latents, per_shard), torch.split(captions, per_shard), strict=True)
    for number, (block, names) in enumerate(blocks):
        rows.append(len(block))
        files[shard_name(number)] = pack_tensors(
            {
                "latents": block,
                "caption": names.to(torch.int32),
                "sha256": _row_hashes(block, names, index.captions),
            }
        )
    files[INDEX] = canonical_json({**to_json(index), "rows": rows})
    return files


def shard_name(number: int) -> str:
    """`latents-000.safetensors` and so on."""
    return f"latents-{number:03d}.safetensors"


def rows_per_shard(latent: LatentShape) -> int:
    """Rows that keep a shard at or below `SHARD_BYTES`."""
    row_bytes = 2 * latent[0] * latent[1] * latent[2] + 4 + _HASH_BYTES
    return max(1, (SHARD_BYTES - 4096) // row_bytes)


def _read_index(path: Path) -> ClusterIndex:
    try:
        index = from_json(ClusterIndex, read_json(path), path.name)
    except ConfigError as error:
        raise DataError(f"cluster folder {path.parent.name}: {error}") from error
    problem = _index_problem(index)
    if problem:
        raise DataError(f"cluster folder {path.parent.name}: {path.name}: {problem}")
    return index


def _index_problem(index: ClusterIndex) -> str:
    """Why this index cannot be used; empty if it can."""
    if index.schema != SCHEMA:
        return f"schema {index.schema}, this program reads {SCHEMA}"
    if not 0 <= index.cluster < MAX_CLUSTERS:
        return f"cluster {index.cluster} is out of range"
    if not all(0 < side <= 4096 for side in index.latent):
        return f"impossible latent shape {list(index.latent)}"
    if not index.rows or not all(0 < n <= rows_per_shard(index.latent) for n in index.rows):
        return "impossible row counts"
    if sum(index.rows) > MAX_ROWS or not index.captions:
        return "no captions, or too many rows"
    return ""


def _shard_schema(rows: int, latent: LatentShape) -> dict[str, TensorSpec]:
    return {
        "latents": TensorSpec("F16", (rows, *latent)),
        "caption": TensorSpec("I32", (rows,)),
        "sha256": TensorSpec("U8", (rows, _HASH_BYTES)),
    }


def _check_rows(path: Path, found: dict[str, Tensor], captions: tuple[str, ...]) -> None:
    pointers = found["caption"]
    if int(pointers.min()) < 0 or int(pointers.max()) >= len(captions):
        raise DataError(f"{path.name}: a row points to a caption that is not in the index")
    same = (_row_hashes(found["latents"], pointers, captions) == found["sha256"]).all(1)
    if not bool(same.all()):
        row = int(same.long().argmin())
        raise DataError(f"{path.name}: row {row} does not match its hash: it was altered")


def _row_hashes(latents: Tensor, names: Tensor, captions: tuple[str, ...]) -> Tensor:
    """uint8 [N, 32]: sha256 over each row's latent bytes and its caption."""
    hashes = b"".join(_hashes(latents, names, captions))
    return torch.frombuffer(bytearray(hashes), dtype=torch.uint8).reshape(-1, _HASH_BYTES)


def _hashes(latents: Tensor, names: Tensor, captions: tuple[str, ...]) -> Iterator[bytes]:
    encoded = [caption.encode() for caption in captions]
    rows = latents.contiguous().reshape(len(latents), -1).view(torch.uint8).numpy()
    for row, name in zip(rows, names.tolist(), strict=True):
        yield sha256(row.tobytes() + encoded[name]).digest()
