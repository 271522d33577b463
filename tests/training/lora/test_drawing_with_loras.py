"""Drawing with an adapter on one expert: exact when off, checked in every part, its guide as is."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.lora_jobs import SETTINGS, few_draws, rows, velocities
from training.clusters import Cluster
from training.drawing.ensemble import Ensemble
from training.drawing.plan import Images, SampleOptions, SampleRequest
from training.errors import CheckpointError, ConfigError, LoraError, WrongBaseError
from training.experts.checkpoint import GUIDE_FILE, WEIGHTS_FILE, published_folder
from training.experts.loaded import load_expert
from training.experts.loop import train
from training.lora.files import ADAPTER_WEIGHTS_FILE
from training.lora.settings import LoraRows
from training.lora.train import LoraJob, train_lora, with_loras
from training.preparation.prepare import PreparedRun
from training.run import Run

__all__ = ["few_draws", "rows"]

pytestmark = pytest.mark.slow

PLAIN = SampleOptions(steps=4)
GUIDED = SampleOptions(steps=4, autoguidance=1.0)


@dataclass(frozen=True)
class Made:
    """Experts of both clusters, an adapter for that of cluster 0, and their run."""

    shared: Path
    experts: dict[int, Path]
    lora: Path

    def load(self, scale: float | None = None, **changes: Path) -> Ensemble:
        """The ensemble, with the adapter on at some strength."""
        folder = changes.get("lora", self.lora)
        loras = None if scale is None else {0: (folder, scale)}
        experts = {**self.experts, 0: changes.get("expert", self.experts[0])}
        return Ensemble.load(self.shared, experts, loras=loras)


@pytest.fixture(scope="module")
def made(
    prepared: PreparedRun, run: Run, rows: LoraRows, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    folder = tmp_path_factory.mktemp("made")
    experts = {}
    for info in prepared.clusters:
        cluster, state = Cluster.load(info.folder), folder / str(info.k)
        for _ in train(cluster, run, run.spec.train, state_dir=state):
            pass
        experts[info.k] = published_folder(state, run.spec.train.budget_samples)
    job = LoraJob(load_expert(experts[0], run), run, rows, SETTINGS, folder / "dark", "bafkbase")
    list(train_lora(job))
    return Made(prepared.shared, experts, folder / "dark")


def pictures(ensemble: Ensemble, options: SampleOptions = PLAIN) -> Tensor:
    return ensemble.generate_batch(["a disc", "two bars"] * 2, seed=3, options=options).pictures


def test_adapter_at_scale_0_draws_bit_for_bit_as_none(made: Made) -> None:
    plain = pictures(made.load())
    assert torch.equal(pictures(made.load(0.0)), plain)
    assert torch.equal(pictures(made.load()), plain)


def test_files_at_scale_0_are_those_of_none(made: Made) -> None:
    def pngs(ensemble: Ensemble) -> list[bytes]:
        events = ensemble.generate(SampleRequest("two bars", 3, 7, PLAIN))
        return [png for event in events if isinstance(event, Images) for png in event.pngs]

    plain = pngs(made.load())
    assert pngs(made.load(0.0)) == plain
    assert pngs(made.load(1.0)) != plain


def test_strength_changes_the_picture_with_its_sign(made: Made) -> None:
    drawn = [pictures(made.load(scale)) for scale in (0.0, 0.5, 1.0, -1.0)]
    for one in range(4):
        for other in range(one):
            assert not torch.equal(drawn[one], drawn[other])


def test_pictures_of_other_experts_are_not_touched(made: Made, run: Run) -> None:
    experts = {k: load_expert(folder, run) for k, folder in made.experts.items()}
    put_on = with_loras(experts, {0: (made.lora, 1.0)})
    assert put_on[1] is experts[1]
    assert not torch.equal(velocities(put_on[0], run), velocities(experts[0], run))


def test_guide_stays_the_bases_own(made: Made, run: Run) -> None:
    """Autoguidance pushes away from what the base was, adapter or not."""
    assert (made.experts[0] / GUIDE_FILE).exists()
    base = load_expert(made.experts[0], run)
    put_on = with_loras({0: base}, {0: (made.lora, 1.0)})[0]
    assert put_on.guide is base.guide
    plain, dark = made.load(), made.load(1.0)
    assert plain._guides.keys() == dark._guides.keys() == {0, 1}
    assert not torch.equal(pictures(dark, GUIDED), pictures(dark))
    assert torch.equal(pictures(made.load(0.0), GUIDED), pictures(plain, GUIDED))
    x, t = torch.randn(1, *run.facts.latent), torch.tensor([0.5])
    text = run.text.encode(["a disc"])
    answers = [each._guides[0].velocity(x, t, text.states, text.mask) for each in (plain, dark)]
    assert torch.equal(*answers)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: flip_last_byte(folder / ADAPTER_WEIGHTS_FILE),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        lambda folder: (folder / "lora.json").unlink(),
    ],
)
def test_altered_adapter_is_an_error_at_any_strength(
    made: Made, tmp_path: Path, spoil: Callable[[Path], object], scale: float
) -> None:
    shutil.copytree(made.lora, tmp_path / "dark")
    spoil(tmp_path / "dark")
    with pytest.raises(LoraError) as caught:
        made.load(scale, lora=tmp_path / "dark")
    assert not isinstance(caught.value, WrongBaseError)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_adapter_on_another_checkpoint_of_its_cluster_is_a_wrong_base(
    made: Made, cluster: Cluster, run: Run, tmp_path: Path, scale: float
) -> None:
    config = replace(run.spec.train, seed=run.spec.train.seed + 1)
    for _ in train(cluster, run, config, state_dir=tmp_path / "other"):
        pass
    other = published_folder(tmp_path / "other", config.budget_samples)
    with pytest.raises(WrongBaseError, match="bafkbase"):
        made.load(scale, expert=other)


def test_expert_that_an_adapter_is_for_is_never_left_out(made: Made, tmp_path: Path) -> None:
    """Another one may be: see the drawing without it."""
    shutil.copytree(made.experts[0], tmp_path / "expert")
    flip_last_byte(tmp_path / "expert" / WEIGHTS_FILE)
    assert made.load(expert=tmp_path / "expert").clusters == (1,)
    with pytest.raises(CheckpointError, match="altered"):
        made.load(1.0, expert=tmp_path / "expert")


def test_scale_out_of_range_is_refused(made: Made) -> None:
    with pytest.raises(ConfigError, match="scale"):
        made.load(16.5)
