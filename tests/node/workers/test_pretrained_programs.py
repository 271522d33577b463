"""A run of pretrained parts through the programs of a node: made, trained, drawn from."""

import shutil
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.errors import ErrorCode, NodeError
from node.home import Home
from node.studio import Studio
from node.supervise import open_worker
from node.workers.link import Message
from tests.support.hub_models import write_models
from tests.training.conftest import TINY_SPEC, draw_pictures
from training.preparation.prepare import PrepareOptions, prepare_run

SPEC = replace(
    TINY_SPEC,
    codec="sd-vae-ft-mse",
    extractor="dinov2-vitl14",
    text="clip-vit-l14",
    train=replace(TINY_SPEC.train, budget_samples=8, save_samples=8),
)


@pytest.mark.slow
async def test_workers_find_the_parts_in_the_folder_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = write_models(tmp_path / "models")
    pictures = draw_pictures(tmp_path / "pictures", 12)
    options = PrepareOptions(models=models)
    made = prepare_run(pictures, tmp_path / "run", SPEC, options=options)
    common: Message = {
        "shared": str(made.shared), "models": str(models), "threads": 1, "device": "cpu"
    }  # fmt: skip
    order: Message = {
        "kind": "train", "data": str(made.clusters[0].folder), "state": str(tmp_path / "state"),
        "cluster": 0, "start_from": None, "precision": "auto", "gpus": 1, **common,
    }  # fmt: skip
    log = tmp_path / "trainer.log"
    with trio.fail_after(240):
        async with open_worker("node.workers.trainer", log=log, grace_s=10) as worker:
            await worker.send(order)
            while (message := await worker.receive())["kind"] != "saved":
                assert message["kind"] != "failed", message
        wanted: Message = {
            "kind": "draw", "experts": {"0": message["path"]}, "summaries": {}, "routers": {},
            "prompt": "a disc", "n": 1, "seed": 1, "strategy": "sticky", "top_k": 2,
            "threshold": 0.1, "router": None, "sampler": "ab2", "steps": 2, "guidance": 2.0,
            "autoguidance": 0.0, "loras": {},
            **common,
        }  # fmt: skip
        studio = Studio(Home.at(tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(studio.run)
            async with aclosing(studio.draw(wanted)) as news:
                kinds = [message["kind"] async for message in news]
            assert kinds.count("image") == 1
            shutil.rmtree(models / "sd-vae-ft-mse")
            elsewhere = {**wanted, "models": str(tmp_path / "elsewhere")}
            with pytest.raises(NodeError, match="codec sd-vae-ft-mse is not on this") as caught:
                async with aclosing(studio.draw(elsewhere)) as news:
                    await anext(news)
            assert caught.value.code is ErrorCode.NOT_FOUND
            nursery.cancel_scope.cancel()
