import json
from pathlib import Path

import pytest
import torch

from training.errors import CheckpointError, DataError
from training.routers.calibration import LabelledLatents
from training.routers.gauss_calibration import (
    GaussInfo,
    load_tempering,
    measure_gauss,
    read_gauss_info,
    save_gauss,
)
from training.run import Run


def ragged(run: Run, count: int = 600) -> LabelledLatents:
    """Two clusters whose numbers are far from Gaussian: the closed form is too sure of them."""
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(count) % 2
    noise = torch.randn(count, *run.facts.latent, generator=generator) ** 3
    return LabelledLatents(noise + 0.15 * (2.0 * clusters - 1)[:, None, None, None], clusters)


@pytest.fixture
def info(run: Run) -> GaussInfo:
    return measure_gauss(ragged(run), run, "data")


def test_overconfidence_of_the_closed_form_is_found_and_mended(info: GaussInfo) -> None:
    first = info.calibration.buckets[0]
    assert first.is_overconfident
    assert first.temperature > 1.5
    assert first.after.error < first.before.error
    assert info.clusters == (0, 1)
    assert sum(info.counts) == 480


def test_measured_temperatures_read_back(info: GaussInfo, run: Run, tmp_path: Path) -> None:
    save_gauss(info, tmp_path / "gauss")
    save_gauss(info, tmp_path / "gauss")
    assert read_gauss_info(tmp_path / "gauss") == info
    assert load_tempering(tmp_path / "gauss", run) == info.calibration.tempering


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"run": "0" * 64}, "another run"),
        ({"schema": 2}, "schema 2"),
        ({"kind": "learned"}, "'learned'"),
        ({"source": "hearsay"}, "'hearsay'"),
        ({"more": 1}, "unknown key"),
    ],
)
def test_what_is_of_another_run_or_kind_is_refused(
    info: GaussInfo, run: Run, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    save_gauss(info, tmp_path / "gauss")
    path = tmp_path / "gauss" / "router.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(CheckpointError, match=named):
        load_tempering(tmp_path / "gauss", run)


def test_one_cluster_alone_cannot_be_measured(run: Run) -> None:
    rows = ragged(run)
    with pytest.raises(DataError, match="two clusters or more"):
        measure_gauss(LabelledLatents(rows.latents, rows.clusters * 0), run, "data")
