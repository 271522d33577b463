"""An adapter's folder, read as if a stranger had sent it."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError, LoraError, ProbeError, TensorFileError
from training.experts.nets import NetShape
from training.files import digest_of
from training.lora.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    LORA_FILE,
    LORA_FILES,
    HeldOutLoss,
    LoraBase,
    LoraInfo,
    lora_files,
    read_info,
    read_lora,
    write_lora,
)
from training.lora.modules import MAX_WEIGHT, AdapterShape, fresh_weights
from training.lora.probe import Probe, read_probe
from training.tensors import MAX_HEADER_BYTES, pack_tensors

SHAPE = AdapterShape(NetShape("fashion-tiny", (16, 2, 2), "minilm-l6"), "attention", 2)
BASE = LoraBase("ab" * 32, "bafkbase", "cd" * 32, 1, "fm", "fashion-tiny", "minilm-l6", (16, 2, 2))
INFO = LoraInfo(
    schema=1,
    base=BASE,
    targets="attention",
    rank=2,
    alpha=4.0,
    modules=SHAPE.modules(),
    samples=48,
    batch=4,
    learning_rate=1e-3,
    caption_drop=0.1,
    seed=0,
    rows=42,
    data="ef" * 32,
    held_out=HeldOutLoss(6, 1.5, 0.5),
    licence="CC0-1.0",
    sha256="",
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in fresh_weights(SHAPE, 0).items()
    }


@pytest.fixture(scope="module")
def whole(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "whole"
    write_lora(folder, INFO, weights)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(whole, tmp_path / "mine")
    return tmp_path / "mine"


def change(path: Path, edit: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_bytes())
    edit(value)
    path.write_text(json.dumps(value))


def put_weights(folder: Path, data: bytes) -> None:
    """Other weights, with `lora.json` agreeing to them: a stranger can do that."""
    (folder / ADAPTER_WEIGHTS_FILE).write_bytes(data)
    change(folder / LORA_FILE, lambda value: value.update(sha256=digest_of(data)))


def test_what_is_written_is_read_back_exactly(whole: Path, weights: dict[str, Tensor]) -> None:
    info, read = read_lora(whole)
    assert replace(info, sha256="") == INFO
    assert info.sha256 == digest_of((whole / ADAPTER_WEIGHTS_FILE).read_bytes())
    assert list(read) == sorted(weights)
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert (info.scaling, info.shape) == (2.0, SHAPE)
    assert read_info(whole) == info


def test_probe_lies_beside_the_adapter_and_may_be_absent(
    whole: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    probe = Probe(torch.ones(2, 16, 2, 2), ("a disc", ""), 3)
    written = write_lora(tmp_path / "with", INFO, weights, probe)
    assert sorted(path.name for path in (tmp_path / "with").iterdir()) == sorted(LORA_FILES)
    assert read_lora(tmp_path / "with")[0] == written == read_info(whole)
    assert torch.equal(read_probe(tmp_path / "with", BASE.latent).latents, probe.latents)
    with pytest.raises(ProbeError, match=r"probe.json cannot be read"):
        read_probe(whole, BASE.latent)


def test_adapter_written_before_adapters_were_sold_is_one_s_own(folder: Path) -> None:
    change(folder / LORA_FILE, lambda value: value.pop("offer"))
    assert read_lora(folder)[0].offer == ""


def test_same_adapter_gives_the_same_bytes(weights: dict[str, Tensor]) -> None:
    assert lora_files(INFO, weights) == lora_files(INFO, dict(reversed(weights.items())))


def test_peft_reads_the_settings(whole: Path) -> None:
    from peft import LoraConfig, PeftConfig

    config = PeftConfig.from_pretrained(str(whole))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4.0, 0.0)
    assert set(config.target_modules) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert config.base_model_name_or_path == "bafkbase"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 8.0])
def test_weights_that_are_not_finite_or_too_large_are_not_written(
    weights: dict[str, Tensor], tmp_path: Path, bad: float
) -> None:
    name = next(iter(weights))
    spoilt = {**weights, name: weights[name].clone()}
    spoilt[name][0, 0] = bad
    with pytest.raises(LoraError, match=f"{name} reaches"):
        write_lora(tmp_path / "x", INFO, spoilt)
    assert list(tmp_path.iterdir()) == []


def test_largest_weight_is_what_sixteen_bits_hold(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    name = next(iter(weights))
    edge = {**weights, name: torch.full_like(weights[name], -MAX_WEIGHT)}
    write_lora(tmp_path / "x", INFO, edge)
    assert float(read_lora(tmp_path / "x")[1][name].min()) * 4096 == -32767


def test_facts_that_cannot_be_are_not_written(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        write_lora(tmp_path / "x", replace(INFO, alpha=-1.0), weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, LORA_FILE])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises((LoraError, TensorFileError), match=name):
        read_lora(folder)


def test_altered_weights_are_refused(folder: Path) -> None:
    path = folder / ADAPTER_WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(LoraError, match="altered"):
        read_lora(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_stranger_s_nan_is_refused_by_the_tensor_s_name(
    folder: Path, weights: dict[str, Tensor], bad: float
) -> None:
    name = sorted(weights)[3]
    put_weights(folder, pack_tensors({**weights, name: torch.full_like(weights[name], bad)}))
    with pytest.raises(TensorFileError, match=f"{name} holds NaN"):
        read_lora(folder)


def test_stranger_s_huge_weight_is_refused(folder: Path, weights: dict[str, Tensor]) -> None:
    name = sorted(weights)[3]
    put_weights(folder, pack_tensors({**weights, name: torch.full_like(weights[name], 1e30)}))
    with pytest.raises(LoraError, match=f"{name} reaches 1e\\+30"):
        read_lora(folder)


def test_weights_of_another_rank_are_refused_by_name_and_shape(folder: Path) -> None:
    other = replace(SHAPE, rank=3)
    put_weights(folder, pack_tensors(fresh_weights(other, 0)))
    with pytest.raises(
        TensorFileError, match=r"lora_[AB].weight: expected F32 \[.*2.*\], got F32 \[.*3.*\]"
    ):
        read_lora(folder)


def test_missing_and_unexpected_tensors_are_named(folder: Path, weights: dict[str, Tensor]) -> None:
    first, *_ = sorted(weights)
    put_weights(folder, pack_tensors({n: t for n, t in weights.items() if n != first}))
    with pytest.raises(TensorFileError, match=f"lacks tensor {first}"):
        read_lora(folder)
    put_weights(folder, pack_tensors({**weights, "stranger": torch.zeros(1)}))
    with pytest.raises(TensorFileError, match="unexpected tensor stranger"):
        read_lora(folder)


def test_hostile_headers_cost_nothing(folder: Path) -> None:
    for data in (
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 400) + b'{"a":' * 80,
        b"\x00\x00",
    ):
        put_weights(folder, data)
        with pytest.raises(TensorFileError):
            read_lora(folder)
    with (folder / ADAPTER_WEIGHTS_FILE).open("wb") as file:
        file.truncate(2**33)  # a sparse 8 GiB: never read
    with pytest.raises(TensorFileError, match="expected at most"):
        read_lora(folder)


def test_symbolic_link_is_not_followed(folder: Path, whole: Path) -> None:
    path = folder / ADAPTER_WEIGHTS_FILE
    path.unlink()
    path.symlink_to(whole / ADAPTER_WEIGHTS_FILE)
    with pytest.raises(TensorFileError, match="cannot be read"):
        read_lora(folder)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda v: v.update(schema=2), "schema 2"),
        (lambda v: v.update(rank=3), "adapter_config.json does not match"),
        (lambda v: v.update(rank=0), "alpha 4 at rank 0"),
        (lambda v: v.update(rank=10**9), "1..64"),
        (lambda v: v.update(alpha=1e9), "alpha"),
        (lambda v: v.update(targets="everything"), "known: attention"),
        (
            lambda v: v.update(targets="attention+ff"),
            r"expected .*0.ff.net.0.proj \(64 to 256\), got .*1.attn1.to_q \(64 to 64\)",
        ),
        (lambda v: v["modules"].pop(), "31 layers, its base has 32"),
        (
            lambda v: v["modules"][5].update(in_features=65),
            r"attn2.to_k \(64 to 64\).*\(65 to 64\)",
        ),
        (lambda v: v["base"].update(preset="XL/2"), r"\(1152 to 1152\)"),
        (lambda v: v["base"].update(preset="nothing"), "unknown model preset"),
        (lambda v: v["base"].update(objective="gan"), "unknown objective"),
        (lambda v: v["base"].update(latent=[16, 2**40, 2]), "impossible latent"),
        (lambda v: v["base"].update(cluster=-1), "must not be negative"),
        (lambda v: v.update(licence="x" * 201), "licence of 201"),
        (lambda v: v.update(offer="x" * 101), "offer named in 101"),
        (lambda v: v.update(more=1), "unknown key 'more'"),
        (lambda v: v.pop("data"), "missing key 'data'"),
        (lambda v: v.update(samples="many"), "expected int"),
    ],
)
def test_facts_that_cannot_be_are_refused(
    folder: Path, edit: Callable[[dict[str, object]], object], found: str
) -> None:
    change(folder / LORA_FILE, edit)
    with pytest.raises(LoraError, match=found):
        read_lora(folder)


@pytest.mark.parametrize(
    "edit", [lambda v: v.update(r=8), lambda v: v.update(use_dora=True), lambda v: v.pop("bias")]
)
def test_settings_for_peft_that_say_otherwise_are_refused(
    folder: Path, edit: Callable[[dict[str, object]], object]
) -> None:
    change(folder / ADAPTER_CONFIG_FILE, edit)
    with pytest.raises(LoraError, match=r"adapter_config.json does not match lora.json"):
        read_lora(folder)
