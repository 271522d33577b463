"""The real expert program draws with a real adapter, and says what is wrong with another."""

import shutil
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import trio

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.studio import Studio
from node.workers.link import Message
from tests.support.lora_jobs import SETTINGS
from tests.training.conftest import TINY_SPEC, draw_pictures
from training.clusters import Cluster
from training.experts.checkpoint import published_folder
from training.experts.loaded import load_expert
from training.experts.loop import train
from training.lora.settings import LoraRows
from training.lora.train import LoraJob, train_lora
from training.preparation.prepare import prepare_run
from training.sources.folders import load_folder

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Made:
    """Two checkpoints of cluster 0's expert, and an adapter for the later one."""

    shared: Path
    earlier: Path
    later: Path
    lora: Path

    def order(self, expert: Path, *lora: object) -> Message:
        return {
            "kind": "draw", "shared": str(self.shared), "models": "none",
            "experts": {"0": str(expert)}, "summaries": {}, "routers": {},
            "loras": {"0": list(lora)} if lora else {}, "prompt": "two bars", "n": 1, "seed": 1,
            "strategy": "all", "top_k": 2, "threshold": 0.1, "router": None, "sampler": "ab2",
            "steps": 2, "guidance": 2.0, "autoguidance": 0.0, "threads": 1, "device": "cpu",
        }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lora-program")
    pictures = draw_pictures(folder / "pictures")
    prepared = prepare_run(pictures, folder / "run", TINY_SPEC)
    run, config, state = prepared.load(), TINY_SPEC.train, folder / "state"
    for _ in train(Cluster.load(prepared.clusters[0].folder), run, config, state_dir=state):
        pass
    later = published_folder(state, config.budget_samples)
    earlier = published_folder(state, config.budget_samples - config.save_samples)
    loaded = load_folder(pictures, run.spec.image_size, run.spec.image_channels)
    rows = LoraRows(run.codec.encode(255 - loaded.images).half(), loaded.captions)
    list(train_lora(LoraJob(load_expert(later, run), run, rows, SETTINGS, folder / "dark")))
    yield Made(prepared.shared, earlier, later, folder / "dark")
    torch.set_num_threads(before)


async def drawn(studio: Studio, order: Message) -> object:
    async with aclosing(studio.draw(order)) as news:
        (png,) = [message["png"] async for message in news if message["kind"] == "image"]
        return png


async def refusal(studio: Studio, order: Message) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await drawn(studio, order)
    return caught.value


async def test_adapter_draws_at_its_strength_comes_off_and_fails_verification_when_altered(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lora = tmp_path / "dark"
    shutil.copytree(made.lora, lora)
    studio = Studio(Home.at(tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(studio.run)
        with trio.fail_after(240):
            plain = await drawn(studio, made.order(made.later))
            dark = await drawn(studio, made.order(made.later, str(lora), 1.0))
            assert await drawn(studio, made.order(made.later, str(lora), 0.0)) == plain != dark
            wrong = await refusal(studio, made.order(made.earlier, str(lora), 1.0))
            assert wrong.code is ErrorCode.REFUSED
            assert "was made for the checkpoint" in wrong.message
            assert await drawn(studio, made.order(made.later, str(lora), 1.0)) == dark
            with (lora / "adapter_model.safetensors").open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"\x01")
            altered = await refusal(studio, made.order(made.later, str(lora), 1.0))
            assert altered.code is ErrorCode.VERIFICATION_FAILED
            assert "altered" in altered.message
            assert "--no-lora" in altered.fix
            assert await drawn(studio, made.order(made.later)) == plain
        nursery.cancel_scope.cancel()
