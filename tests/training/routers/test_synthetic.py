from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError
from training.routers.synthetic import Drawn, all_drawn, draw_labelled
from training.run import Run


@dataclass(frozen=True)
class PointExpert:
    """An expert whose data are one point: v = (x_t - x_0) / t leads there from anywhere."""

    value: float
    objective: str = "fm"

    def velocity(self, x_t: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        del states, mask
        return (x_t - self.value) / t[:, None, None, None]


EXPERTS: Mapping[int, PointExpert] = {0: PointExpert(-1.0), 1: PointExpert(2.0)}


def test_every_cluster_is_drawn_by_its_own_expert_and_by_its_size(run: Run) -> None:
    found = all_drawn(draw_labelled(run, EXPERTS, 40))
    expected = torch.where(found.clusters == 0, -1.0, 2.0)[:, None, None, None]
    assert torch.allclose(found.latents, expected.expand_as(found.latents), atol=0.05)
    share = float((found.clusters == 0).float().mean())
    assert share == pytest.approx(run.facts.rows[0] / sum(run.facts.rows), abs=0.03)


def test_drawing_reports_and_depends_on_its_seed_alone(run: Run) -> None:
    drawing = draw_labelled(run, EXPERTS, 300, seed=1)
    reports = []
    while True:
        try:
            reports.append(next(drawing))
        except StopIteration as end:
            found = end.value
            break
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert reports[-1] == Drawn(len(found), len(found))
    again = all_drawn(draw_labelled(run, EXPERTS, 300, seed=1))
    assert torch.equal(again.latents, found.latents)


def test_small_clusters_are_not_left_out(run: Run) -> None:
    assert set(all_drawn(draw_labelled(run, EXPERTS, 2)).clusters.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("experts", "count"),
    [({0: EXPERTS[0]}, 10), ({0: EXPERTS[0], 9: EXPERTS[1]}, 10), (EXPERTS, 0)],
)
def test_too_few_experts_or_strangers_are_refused(
    run: Run, experts: Mapping[int, PointExpert], count: int
) -> None:
    with pytest.raises(ConfigError, match="expected two or more"):
        all_drawn(draw_labelled(run, experts, count))
