"""A run's folders from its spool: each row to its cluster, captions counted, `shared/`.

Rows are copied a batch at a time; what grows with the data is the list of different captions, and
two numbers a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.clusters import ClusterWriter
from training.config import SCHEMA, RunSpec
from training.errors import DiskError
from training.files import digest_of, whole_folder, write_folder
from training.jsonio import canonical_json, to_json
from training.parts.codecs import NewCodec
from training.parts.text import PretrainedText, TextEncoder
from training.preparation.encode import Report
from training.preparation.spool import Spool, read_batch
from training.routers.caption_summary import (
    OPEN_CAPTIONS,
    fit_caption_summary,
    pack_caption_summary,
)
from training.routers.captions import mean_states
from training.run import (
    CAPTIONS_FILE,
    CLUSTERS_FILE,
    CODEC_FILE,
    MEANINGS_FILE,
    RUN_FILE,
    CaptionCounts,
    ClusterMap,
    RunFacts,
    shared_files,
)
from training.tensors import pack_tensors

MAX_CAPTIONS: Final = 4096
"""Listed with their counts in `shared/captions.json`, the most frequent; the rest is summed up."""


@dataclass(frozen=True, slots=True, eq=False)
class CaptionColumn:
    """The caption of every row, as a number.

    Args:
        texts: every caption once, sorted.
        rows: int32 [N], the place of each row's caption in `texts`.
    """

    texts: Sequence[str]
    rows: Tensor

    @classmethod
    def of(cls, spool: Spool) -> "CaptionColumn":
        """All captions of a spool, by row."""
        order = sorted(range(len(spool.captions)), key=spool.captions.__getitem__)
        rank = torch.empty(len(order), dtype=torch.int32)
        rank[torch.tensor(order)] = torch.arange(len(order), dtype=torch.int32)
        numbers = [torch.tensor(batch.captions, dtype=torch.int64) for batch in spool.batches()]
        return cls([spool.captions[number] for number in order], rank[torch.cat(numbers)])


@dataclass(frozen=True, slots=True, eq=False)
class Assembly:
    """What a run is made of, once its pictures are encoded and clustered.

    Args:
        spec: of the run.
        codec: made the latents.
        clusters: the clustering.
        owners: int64 [N], the cluster of every row.
        captions: of every row.
        text: the text encoder.
    """

    spec: RunSpec
    codec: NewCodec
    clusters: ClusterMap
    owners: Tensor
    captions: CaptionColumn
    text: PretrainedText

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each cluster."""
        return tuple(self.owners.bincount(minlength=self.spec.clusters).tolist())


def write_clusters(out: Path, spool: Spool, made: Assembly, report: Report) -> None:
    """Write `out`, one folder per cluster, all or nothing; rows keep the source's order.

    Raises:
        DataError: a cluster with more different captions than its index can hold.
        DiskError: the disk is full.
    """
    total = len(made.owners)
    try:
        with whole_folder(out) as folder:
            writers = [_writer(folder / str(k), k, n, made) for k, n in enumerate(made.sizes)]
            unique = list(_captions_of_clusters(made))
            done = 0
            for batch in spool.batches():
                rows = slice(done, done + batch.rows)
                _add_batch(batch.path, made, rows, writers, unique)
                done += batch.rows
                report(done, total)
            for writer, numbers in zip(writers, unique, strict=True):
                writer.close([made.captions.texts[i] for i in numbers.tolist()])
    except OSError as error:
        raise DiskError(out, error) from error


def _writer(folder: Path, k: int, rows: int, made: Assembly) -> ClusterWriter:
    folder.mkdir()
    return ClusterWriter(folder, k, made.codec.digest, made.codec.latent, rows)


def _captions_of_clusters(made: Assembly) -> Iterator[Tensor]:
    """The captions of each cluster, int32, rising: sorted by text, since they are numbered so."""
    for k in range(made.spec.clusters):
        yield torch.unique(made.captions.rows[made.owners == k])


def _add_batch(
    path: Path,
    made: Assembly,
    rows: slice,
    writers: Sequence[ClusterWriter],
    unique: Sequence[Tensor],
) -> None:
    latents = read_batch(path).latents
    owners, captions = made.owners[rows], made.captions.rows[rows]
    for k in torch.unique(owners).tolist():
        chosen = owners == k
        places = torch.searchsorted(unique[k], captions[chosen])
        texts = [made.captions.texts[i] for i in captions[chosen].tolist()]
        writers[k].add(latents[chosen], places, texts)


def count_captions(captions: CaptionColumn, owners: Tensor, clusters: int) -> CaptionCounts:
    """How often each caption occurs in each cluster; rare captions of a large set are summed up."""
    total = captions.rows.bincount(minlength=len(captions.texts)).tolist()
    ranked = sorted(range(len(total)), key=lambda i: (-total[i], i))
    listed = sorted(ranked[:MAX_CAPTIONS])
    column = torch.full((len(total),), len(listed), dtype=torch.int64)  # the last one: all others
    column[torch.tensor(listed)] = torch.arange(len(listed))
    table = [
        column[captions.rows[owners == k]].bincount(minlength=len(listed) + 1).tolist()
        for k in range(clusters)
    ]
    return CaptionCounts(
        tuple(captions.texts[i] for i in listed),
        tuple(tuple(row[:-1]) for row in table),
        tuple(row[-1] for row in table),
    )


def _meanings(counts: CaptionCounts, text: TextEncoder) -> bytes:
    """What each cluster's listed captions mean, as a file."""
    table = torch.tensor(counts.counts).T
    return pack_caption_summary(fit_caption_summary(mean_states(text, counts.captions), table))


def write_shared(folder: Path, made: Assembly) -> None:
    """Write the folder that every node holds, all or nothing.

    Raises:
        DiskError: the disk is full.
    """
    spec, codec, clusters = made.spec, made.codec, made.clusters
    tensors = {
        **clusters.extractor.tensors(),
        "fine": clusters.fine,
        "coarse": clusters.coarse.to(torch.int32),
    }
    counts = count_captions(made.captions, made.owners, spec.clusters)
    files = {
        CODEC_FILE: codec.stored(),
        CLUSTERS_FILE: pack_tensors(tensors),
        CAPTIONS_FILE: canonical_json(to_json(counts)),
    }
    files = {name: files[name] for name in shared_files(spec)}
    if len(counts.captions) > OPEN_CAPTIONS:
        files[MEANINGS_FILE] = _meanings(counts, made.text)
    facts = RunFacts(
        schema=SCHEMA,
        spec=spec,
        latent=codec.latent,
        rows=made.sizes,
        fine=len(clusters.fine),
        features=clusters.extractor.dim,
        pixels=clusters.extractor.pixels,
        digests={name: digest_of(data) for name, data in files.items()},
        models={**codec.pins, **clusters.extractor.pins, **made.text.pins},
    )
    files[RUN_FILE] = canonical_json(to_json(facts))
    try:
        write_folder(folder, files)
    except OSError as error:
        raise DiskError(folder, error) from error
