"""The data of one cluster: latents with captions in shards, every row hashed.

A cluster folder holds `captions.json` (the index) and `latents-000.safetensors`, ... It may come
from a stranger: headers, shapes, finiteness and row hashes are checked before a row is used.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.config import MAX_CLUSTERS, SCHEMA, LatentShape
from training.errors import ConfigError, DataError, TensorFileError
from training.files import sync_folder, write_at, write_file
from training.jsonio import MAX_JSON_BYTES, canonical_json, from_json, read_json, to_json
from training.tensors import TensorSpec, pack_header, read_tensors, tensor_bytes

INDEX: Final = "captions.json"
SHARD_BYTES: Final = 64 * 2**20
MAX_ROWS: Final = 2**31 - 1
_HASH_BYTES: Final = 32
_MEND: Final = "delete the folder and fetch or make it again"


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
            try:
                found = read_tensors(path, _shard_schema(rows, index.latent))
            except TensorFileError as error:
                raise TensorFileError(path, f"{error.reason}; {_MEND}") from error
            _check_rows(path, found, index.captions)
            latents.append(found["latents"])
            captions.append(found["caption"].long())
        return cls(index, torch.cat(latents), torch.cat(captions))


class ClusterWriter:
    """Writes the data of one cluster a few rows at a time; the number of all is known before.

    The same rows give the same bytes however they are cut.

    Args:
        folder: exists, and is empty.
        cluster: its number.
        codec: digest of the codec that made the latents.
        latent: channels, height, width.
        rows: how many there will be, at least one.
    """

    def __init__(
        self, folder: Path, cluster: int, codec: str, latent: LatentShape, rows: int
    ) -> None:
        size = rows_per_shard(latent)
        shards = (*[size] * (rows // size), *([rows % size] if rows % size else []))
        self._folder = folder
        self._index = ClusterIndex(SCHEMA, cluster, codec, latent, shards, ())
        self._done = 0

    def add(self, latents: Tensor, captions: Tensor, texts: Sequence[str]) -> None:
        """Write the next rows.

        Args:
            latents: float16 [N, C, H, W].
            captions: int64 [N], each its caption's place in the list that `close` is given.
            texts: the caption of each row, in words.

        Raises:
            OSError: the disk is full.
            ValueError: more rows than were announced.
        """
        if self._done + len(latents) > sum(self._index.rows):
            raise ValueError(f"more than {sum(self._index.rows)} rows")
        if not len(latents):
            return
        size = rows_per_shard(self._index.latent)
        hashes = _row_hashes(latents, texts)
        begin = 0
        while begin < len(latents):
            number, within = divmod(self._done, size)
            end = min(len(latents), begin + size - within)
            part = {
                "latents": latents[begin:end].contiguous(),
                "caption": captions[begin:end].to(torch.int32),
                "sha256": hashes[begin:end],
            }
            self._write(number, within, part)
            self._done += end - begin
            begin = end

    def close(self, captions: Sequence[str]) -> None:
        """Write the index.

        Args:
            captions: the unique captions, in the order that `add` was told of.

        Raises:
            DataError: so many captions that no reader would take the index.
            OSError: the disk is full.
            ValueError: fewer rows than were announced.
        """
        if self._done != sum(self._index.rows):
            raise ValueError(f"{self._done} rows of {sum(self._index.rows)} were written")
        index = replace(self._index, captions=tuple(captions))
        data = canonical_json(to_json(index))
        if len(data) > MAX_JSON_BYTES:
            raise DataError(
                f"cluster {index.cluster}: its {len(captions)} different captions take "
                f"{len(data)} bytes, at most {MAX_JSON_BYTES}; choose more clusters"
            )
        write_file(self._folder / INDEX, data)
        sync_folder(self._folder)

    def _write(self, number: int, row: int, part: Mapping[str, Tensor]) -> None:
        """Put rows into a shard, which is made with its first."""
        rows = self._index.rows[number]
        schema = _shard_schema(rows, self._index.latent)
        head, places = pack_header(schema)
        path = self._folder / shard_name(number)
        flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if row == 0 else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if row == 0:
                write_at(descriptor, head, 0)
            for name, tensor in part.items():
                row_bytes = schema[name].size_bytes // rows
                write_at(descriptor, tensor_bytes(tensor), places[name] + row * row_bytes)
            if row + len(part["latents"]) == rows:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        raise DataError(f"cluster folder {path.parent.name}: {error}; {_MEND}") from error
    problem = _index_problem(index)
    if problem:
        raise DataError(f"cluster folder {path.parent.name}: {path.name}: {problem}; {_MEND}")
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
        raise DataError(f"{path.name}: a row points to a caption that is not in the index; {_MEND}")
    texts = [captions[i] for i in pointers.tolist()]
    same = (_row_hashes(found["latents"], texts) == found["sha256"]).all(1)
    if not bool(same.all()):
        row = int(same.long().argmin())
        raise DataError(f"{path.name}: row {row} does not match its hash: it was altered; {_MEND}")


def _row_hashes(latents: Tensor, texts: Sequence[str]) -> Tensor:
    """uint8 [N, 32]: sha256 over each row's latent bytes and its caption."""
    rows = latents.flatten(1).numpy()
    hashes = b"".join(
        sha256(row.tobytes() + text.encode()).digest()
        for row, text in zip(rows, texts, strict=True)
    )
    return torch.frombuffer(bytearray(hashes), dtype=torch.uint8).reshape(-1, _HASH_BYTES)
