import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from training.config import PRESETS, RunSpec, TrainConfig, preset, run_spec_from_json
from training.errors import ConfigError
from training.experts.nets import NetShape
from training.jsonio import MAX_JSON_BYTES, canonical_json, parse_json, to_json

SPEC = RunSpec("shoes", clusters=4)


def test_run_spec_survives_json() -> None:
    spec = replace(SPEC, seed=3, train=TrainConfig(batch=8, learning_rate=1e-3))
    assert run_spec_from_json(json.loads(canonical_json(to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.pop("codec"), "missing key 'codec'"),
        (lambda v: v["train"].pop("seed"), "missing key 'seed'"),
        (lambda v: v.update(colour="red"), "unknown key 'colour'"),
        (lambda v: v["train"].update(momentum=1), "unknown key 'momentum'"),
        (lambda v: v.update(clusters="4"), "clusters: expected int"),
        (lambda v: v.update(clusters=True), "clusters: expected int"),
        (lambda v: v.update(clusters=0), "clusters must lie in"),
        (lambda v: v.update(clusters=5000), "clusters must lie in"),
        (lambda v: v.update(preset="huge"), "unknown model preset 'huge'"),
        (lambda v: v.update(name=""), "run name"),
        (lambda v: v.update(name="x" * 65), "run name"),
        (lambda v: v.update(image_size=8), "image_size must lie in"),
        (lambda v: v.update(image_channels=2), "image_channels must be"),
        (lambda v: v.update(train=[]), "train: expected an object"),
        (lambda v: v["train"].update(batch=0), "batch must be at least 1"),
        (lambda v: v["train"].update(learning_rate=0), "learning_rate must be positive"),
        (lambda v: v["train"].update(learning_rate=float("nan")), "finite"),
        (lambda v: v["train"].update(ema_decay=1.01), "ema_decay must lie in"),
        (lambda v: v["train"].update(threads=257), "threads must be at most"),
        (lambda v: v["train"].update(clip_norm=-1.0), "clip_norm not negative"),
        (lambda v: v["train"].update(precision="fp8"), "unknown precision 'fp8'"),
        (lambda v: v["train"].update(objective="magic"), "unknown objective 'magic'"),
        (lambda v: v.update(objectives=["fm"]), "1 objectives for 4 clusters"),
        (lambda v: v.update(objectives=["fm", "fm", "fm", "magic"]), "unknown objective 'magic'"),
    ],
)
def test_run_spec_that_cannot_be_meant_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], named: str
) -> None:
    value: dict[str, Any] = json.loads(canonical_json(to_json(SPEC)))
    change(value)
    with pytest.raises(ConfigError, match=named):
        run_spec_from_json(value)


def test_a_spec_written_before_a_field_was_added_still_reads() -> None:
    value: dict[str, Any] = json.loads(canonical_json(to_json(SPEC)))
    del value["objectives"]
    del value["train"]["clip_norm"]
    before = run_spec_from_json(value)
    assert before == replace(SPEC, train=replace(SPEC.train, clip_norm=0.0))
    assert SPEC.train.clip_norm > 0  # what is new is clipped, what is old goes on as it was


def test_each_expert_trains_for_its_own_objective() -> None:
    spec = replace(SPEC, objectives=("fm", "ddpm-eps", "fm", "fm"))
    found = [spec.train_config(cluster).objective for cluster in range(4)]
    assert found == ["fm", "ddpm-eps", "fm", "fm"]
    assert SPEC.train_config(3) == SPEC.train
    assert run_spec_from_json(json.loads(canonical_json(to_json(spec)))) == spec


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe",
        b" " * (MAX_JSON_BYTES + 1),
    ],
    ids=["empty", "list", "cut", "twice", "nan", "deep", "not-utf8", "long"],
)
def test_bytes_that_are_not_a_json_object_are_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match="here"):
        parse_json(data, "here")


@pytest.mark.parametrize(
    ("name", "latent", "text", "parameters"),
    [
        ("fashion-tiny", (16, 4, 4), "minilm-l6", 343_632),
        ("tiny-cpu", (4, 32, 32), "minilm-l6", 1_277_072),
        ("tiny-cpu", (4, 32, 32), "clip-vit-l14", 1_326_224),
        ("S/2", (4, 32, 32), "clip-vit-l14", 29_989_264),
        ("B/2", (4, 32, 32), "clip-vit-l14", 118_960_912),
        ("XL/2", (4, 32, 32), "clip-vit-l14", 607_003_792),
    ],
)
def test_presets_have_their_documented_size(
    name: str, latent: tuple[int, int, int], text: str, parameters: int
) -> None:
    assert NetShape(name, latent, text).parameters() == parameters


@pytest.mark.parametrize(
    ("name", "width", "layers"), [("S/2", 384, 12), ("B/2", 768, 12), ("XL/2", 1152, 28)]
)
def test_large_presets_have_the_papers_sizes(name: str, width: int, layers: int) -> None:
    assert (PRESETS[name].width, PRESETS[name].layers, PRESETS[name].patch_size) == (
        width,
        layers,
        2,
    )


def test_preset_refuses_latents_that_its_patch_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="divisible by 2"):
        preset("tiny-cpu").net_config((4, 3, 3), 384)
    with pytest.raises(ConfigError, match="square"):
        preset("fashion-tiny").net_config((4, 4, 2), 384)
