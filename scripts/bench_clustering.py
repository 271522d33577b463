#!/usr/bin/env python3
"""Clustering: what it costs on a million rows, and what its clusters are worth.

memory    synthetic feature rows in a float32 .npy file, as wide as pixel-pca's (32) and as
          DINOv2 ViT-L's (1024): wall time and peak memory of a process of its own, one thread,
          for both stages and for the cluster of every row
workers   the narrow rows again on a Dask cluster of two worker processes: same bits, other time
quality   Fashion-MNIST (the bundled 10k, the 60k where Debian's package is): plain k-means, two
          stages without and with the capacity rule, over several seeds; labels measure, no more
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from bench_machine import machine
from training.clustering.balance import CAPACITY, group
from training.clustering.cluster_report import cluster_report
from training.clustering.dask_map import dask_mapper
from training.clustering.kmeans import Job, assign, fine_stage, two_stage
from training.clustering.rows import MemoryRows, open_rows
from training.files import digest_of
from training.parts.pixel_pca import PixelPca
from training.sources.bundled import fashion_labels, load_fashion, read_idx_images, read_idx_labels

WIDTHS = (32, 1024)
LIMIT_BYTES = 2 * 2**30
GROUPS = 64  # of the synthetic rows
CLUSTERS = 8
FULL_SET = Path("/usr/share/datasets/fashion-mnist")
WRITTEN_AT_ONCE = 16_384


# --- memory -------------------------------------------------------------------------------------
def write_rows(path: Path, rows: int, width: int) -> None:
    """A mixture of `GROUPS` Gaussians of unequal weight, float32 [rows, width], seed 0."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(GROUPS, width, generator=generator) * 1.5
    weights = torch.rand(GROUPS, generator=generator) ** 2 + 0.01
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, WRITTEN_AT_ONCE):
            count = min(WRITTEN_AT_ONCE, rows - start)
            of = torch.multinomial(weights, count, replacement=True, generator=generator)
            noise = torch.randn(count, width, generator=generator)
            file.write((centres[of] + noise).numpy().tobytes())


def cluster_file(path: Path, passes: int, address: str | None) -> dict[str, Any]:
    """Both stages and all owners of the rows in a file, timed, in this process."""
    torch.set_num_threads(1)
    rows = open_rows(path)
    with job_for(address, passes) as job:
        began = time.perf_counter()
        fine, coarse = two_stage(rows, CLUSTERS, 0, job)
        clustered = time.perf_counter()
        owners = torch.cat([part.short() for part in assign(rows, fine, coarse, job)])
        assigned = time.perf_counter()
    bits = b"".join(part.numpy().tobytes() for part in (fine, coarse, owners))
    return {
        "rows": len(rows),
        "width": rows.width,
        "file_bytes": path.stat().st_size,
        "passes_over_all_rows_at_most": passes,
        "fine_centroids": len(fine),
        "cluster_s": clustered - began,
        "assign_s": assigned - clustered,
        "peak_bytes": peak_bytes(),
        "sizes": owners.bincount(minlength=CLUSTERS).tolist(),
        "sha256": digest_of(bits),
    }


@contextmanager
def job_for(address: str | None, passes: int) -> Iterator[Job]:
    """Here, or on a cluster."""
    if address is None:
        yield Job(full_passes=passes)
        return
    with dask_mapper(address) as mapper:
        yield Job(mapper, full_passes=passes)


def peak_bytes() -> int:
    """Most resident memory this process had since it was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux alone")


def apart(path: Path, passes: int, address: str | None = None) -> dict[str, Any]:
    """`cluster_file` in a process of its own, so that the peak is its own."""
    command = [sys.executable, __file__, "--file", str(path), "--passes", str(passes)]
    command += ["--address", address] if address else []
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    return found


def on_workers(path: Path, passes: int) -> dict[str, Any]:
    """The same on two worker processes of this machine."""
    from distributed import LocalCluster  # noqa: PLC0415

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,  # workers complain of a scheduler that ends before them
    ) as cluster:
        return apart(path, passes, cluster.scheduler_address)


# --- quality ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Set:
    """Features of pictures, and their labels, which measure."""

    name: str
    features: Tensor
    labels: Tensor


def sets() -> Iterator[Set]:
    """Fashion-MNIST, 10k and, where it is installed, 60k."""
    images = load_fashion().images
    yield Set("fashion 10k", PixelPca.fit(images)(images), fashion_labels())
    if FULL_SET.is_dir():
        images = read_idx_images(FULL_SET / "train-images-idx3-ubyte.gz")
        labels = read_idx_labels(FULL_SET / "train-labels-idx1-ubyte.gz")
        yield Set("fashion 60k", PixelPca.fit(images)(images), labels)


def ways(data: Set, clusters: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    """Name -> owners of every row. The two-stage ways share their fine stage."""
    rows = MemoryRows(data.features)
    generator = torch.Generator().manual_seed(seed)
    fine, counts = fine_stage(rows, clusters, generator)
    state = generator.get_state()

    def grouped(capacity: float) -> Tensor:
        generator.set_state(state)
        coarse = group(fine, counts, clusters, generator, capacity)
        return torch.cat(list(assign(rows, fine, coarse)))

    def plain() -> Tensor:
        found = KMeans(clusters, n_init=8, random_state=seed).fit(data.features.numpy())
        return torch.from_numpy(found.labels_).long()

    return {
        "plain k-means": plain,
        "two-stage": lambda: grouped(inf),
        "two-stage, capacity": lambda: grouped(CAPACITY),
    }


def quality(seeds: int) -> list[dict[str, Any]]:
    """A row per set, K, way and seed."""
    found = []
    for data in sets():
        for clusters in (4, 8):
            for seed in range(seeds):
                for way, owners in ways(data, clusters, seed).items():
                    report = cluster_report(
                        MemoryRows(data.features), owners(), clusters, data.labels
                    )
                    case = {"set": data.name, "clusters": clusters, "way": way, "seed": seed}
                    found.append({**case, **report.as_json()})
    return found


# --- what is printed ----------------------------------------------------------------------------
def print_memory(measured: list[dict[str, Any]]) -> None:
    print("rows       width  file       passes  cluster   every row's  peak memory")
    for row in measured:
        print(
            f"{row['rows']:<10,} {row['width']:<6} {row['file_bytes'] / 2**30:5.2f} GiB  "
            f"{row['passes_over_all_rows_at_most']:<7} {row['cluster_s']:6.0f} s  "
            f"{row['assign_s']:9.0f} s  {row['peak_bytes'] / 2**30:8.2f} GiB  "
            f"{'under' if row['peak_bytes'] < LIMIT_BYTES else 'OVER'} 2 GiB"
        )


def print_quality(measured: list[dict[str, Any]]) -> None:
    print("set          K  way                  smallest  largest  silhouette  NMI   (medians)")
    cases = dict.fromkeys((row["set"], row["clusters"], row["way"]) for row in measured)
    for name, clusters, way in cases:
        rows = [r for r in measured if (r["set"], r["clusters"], r["way"]) == (name, clusters, way)]
        small, large, silhouette, nmi = (
            statistics.median(row[key] for row in rows)
            for key in ("smallest_share", "largest_share", "silhouette", "nmi")
        )
        print(
            f"{name:12} {clusters}  {way:20} {small:8.3f}  {large:7.3f}  {silhouette:10.3f}  "
            f"{nmi:.3f}"
        )


def measure_files(folder: Path, options: argparse.Namespace, parts: set[str]) -> dict[str, Any]:
    """Write the synthetic rows, cluster them, print."""
    figures: dict[str, Any] = {"memory": []}
    narrow, wide = (folder / f"{width}.npy" for width in WIDTHS)
    write_rows(narrow, options.rows, WIDTHS[0])
    figures["memory"].append(apart(narrow, options.passes))
    if "memory" in parts:
        write_rows(wide, options.rows, WIDTHS[1])
        figures["memory"].append(apart(wide, options.wide_passes))
    print_memory(figures["memory"])
    if "workers" in parts:
        figures["workers"] = on_workers(narrow, options.passes)
        here, there = figures["memory"][0], figures["workers"]
        is_same = "the same" if here["sha256"] == there["sha256"] else "NOT the same"
        print(
            f"two Dask workers: {there['cluster_s']:.0f} s, here {here['cluster_s']:.0f} s; "
            f"centroids, map and owners are {is_same} to the bit"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the synthetic files")
    parser.add_argument("--passes", type=int, default=10, help="over all rows, at most")
    parser.add_argument("--wide-passes", type=int, default=3, help="the same for the wide rows")
    parser.add_argument("--seeds", type=int, default=3, help="for the quality")
    parser.add_argument("--only", choices=("memory", "workers", "quality"), help="one part")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        print(json.dumps(cluster_file(options.file, options.passes, options.address)))
        return
    where, began = machine(), time.perf_counter()
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load_at_start']} at the start")
    figures: dict[str, Any] = {"machine": where}
    parts = {options.only} if options.only else {"memory", "workers", "quality"}
    if parts & {"memory", "workers"}:
        with tempfile.TemporaryDirectory() as folder:
            figures |= measure_files(Path(folder), options, parts)
    if "quality" in parts:
        figures["quality"] = quality(options.seeds)
        print_quality(figures["quality"])
    figures["wall_s"] = time.perf_counter() - began
    print(f"{figures['wall_s']:.0f} s in all, seeds 0 to {options.seeds - 1}")
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
