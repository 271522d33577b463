from pathlib import Path

import pytest
import torch

from training.clusters import Cluster
from training.errors import DataError
from training.preparation.prepare import PreparedRun
from training.routers.router_data import joined, labelled_pictures
from training.routers.router_training import labelled
from training.run import Run


def test_pictures_of_a_folder_get_the_latents_and_clusters_the_run_gave_them(
    pictures: Path, prepared: PreparedRun, run: Run
) -> None:
    found = labelled_pictures(pictures, run)
    own = labelled([Cluster.load(info.folder) for info in prepared.clusters])
    assert torch.bincount(found.clusters).tolist() == list(run.facts.rows)
    for cluster in (0, 1):
        ours = found.latents[found.clusters == cluster]
        assert torch.allclose(ours, own.latents[own.clusters == cluster], atol=5e-3)
    assert len(joined([found, own])) == 2 * len(own)


def test_folder_without_a_picture_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no usable picture"):
        labelled_pictures(tmp_path, run)
