"""Probe batches on disk, read as if a stranger had sent them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.errors import ProbeError
from training.lora.layers import PROBE_FILE, PROBE_FILES, PROBE_WEIGHTS_FILE
from training.lora.probe import (
    MAX_CAPTION_BYTES,
    MAX_LATENT,
    MAX_PROBE_ROWS,
    MAX_SEED,
    Probe,
    probe_files,
    read_probe,
    write_probe,
)
from training.tensors import pack_tensors

LATENT = (4, 2, 2)
CAPTIONS = ("a disc", "two bars", "")


def latents(rows: int = 3) -> Tensor:
    return torch.randn(rows, *LATENT, generator=torch.Generator().manual_seed(rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_probe(tmp_path / "probe", Probe(latents(), CAPTIONS, 5))
    return tmp_path / "probe"


def put_latents(folder: Path, tensor: Tensor, name: str = "latents") -> None:
    (folder / PROBE_WEIGHTS_FILE).write_bytes(pack_tensors({name: tensor}))


def put_facts(folder: Path, **changes: object) -> None:
    path = folder / PROBE_FILE
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def test_what_is_written_is_read_back_exactly(folder: Path) -> None:
    probe = read_probe(folder, LATENT)
    assert torch.equal(probe.latents, latents())
    assert (probe.captions, probe.seed, len(probe)) == (CAPTIONS, 5, 3)
    assert sorted(path.name for path in folder.iterdir()) == sorted(PROBE_FILES)


def test_same_probe_gives_the_same_bytes(folder: Path) -> None:
    assert probe_files(read_probe(folder, LATENT)) == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_draws_depend_on_the_seed_alone_and_spread_over_rows_and_times() -> None:
    probe = Probe(latents(), CAPTIONS, 5)
    torch.manual_seed(9)  # nothing may come from torch's global randomness
    draws, again = probe.draws(7), probe.draws(7)
    assert torch.equal(draws.noise, again.noise)
    assert torch.equal(draws.times, again.times)
    assert draws.times.sort().values.tolist() == pytest.approx([(i + 0.5) / 7 for i in range(7)])
    assert draws.captions == (*CAPTIONS, *CAPTIONS, CAPTIONS[0])
    assert torch.equal(draws.data[3:6], probe.latents)
    assert not torch.equal(replace(probe, seed=6).draws(7).noise, draws.noise)


def test_most_rows_and_longest_caption_and_largest_seed_are_taken(tmp_path: Path) -> None:
    captions = ("é" * (MAX_CAPTION_BYTES // 2),) * MAX_PROBE_ROWS
    tensor = latents(MAX_PROBE_ROWS)
    tensor[0, 0, 0, 0] = MAX_LATENT
    write_probe(tmp_path / "probe", Probe(tensor, captions, MAX_SEED))
    assert read_probe(tmp_path / "probe", LATENT).captions == captions


def test_own_captions_are_cut_between_characters() -> None:
    probe = Probe.of(latents(2).half(), ("x" + "é" * 600, "\ud800"), 0)
    assert probe.captions == ("x" + "é" * 511, "?")
    assert probe.latents.dtype == torch.float32


@pytest.mark.parametrize("name", PROBE_FILES)
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ProbeError, match=f"{name}.* cannot be read"):
        read_probe(folder, LATENT)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"schema": 2}, "schema 2"),
        ({"captions": []}, "1 to 64 rows, this one 0"),
        ({"captions": ["a"] * 65}, "1 to 64 rows, this one 65"),
        ({"captions": ["a"] * 4}, r"expected F32 \[4, 4, 2, 2\], got F32 \[3, 4, 2, 2\]"),
        ({"captions": ["a", "b" * 1025, "c"]}, "caption 1 of the probe has 1025 bytes"),
        ({"captions": ["a", "b", "é" * 513]}, "caption 2 of the probe has 1026 bytes"),
        ({"captions": ["\ud800", "b", "c"]}, "caption 0 of the probe is no text"),
        ({"captions": [1, 2, 3]}, "expected str"),
        ({"captions": "abc"}, "expected a list"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "expected int"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_stranger_s_facts_that_cannot_be_are_refused(
    folder: Path, changes: dict[str, object], found: str
) -> None:
    put_facts(folder, **changes)
    with pytest.raises(ProbeError, match=found):
        read_probe(folder, LATENT)


def test_stranger_s_endless_facts_are_not_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / PROBE_FILE).write_bytes(b"[" * (512 * 1024 + 1))
    monkeypatch.setattr("training.lora.probe.parse_json", None)
    with pytest.raises(ProbeError, match="longer than 524288 bytes"):
        read_probe(folder, LATENT)


def test_stranger_s_facts_that_are_no_json_are_refused(folder: Path) -> None:
    (folder / PROBE_FILE).write_bytes(b"[" * 4000)
    with pytest.raises(ProbeError, match="not a JSON object"):
        read_probe(folder, LATENT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_stranger_s_latents_that_are_not_finite_are_refused(folder: Path, bad: float) -> None:
    spoilt = latents()
    spoilt[1, 2, 0, 1] = bad
    put_latents(folder, spoilt)
    with pytest.raises(ProbeError, match="holds NaN or infinite"):
        read_probe(folder, LATENT)


def test_stranger_s_huge_latents_are_refused(folder: Path) -> None:
    spoilt = latents()
    spoilt[1, 2, 0, 1] = -65505.0
    put_latents(folder, spoilt)
    with pytest.raises(ProbeError, match="latents reach 65505"):
        read_probe(folder, LATENT)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: latents(2), r"got F32 \[2, 4, 2, 2\]"),
        (lambda: torch.zeros(3, 4, 4, 4), r"got F32 \[3, 4, 4, 4\]"),
        (lambda: latents().double(), "got F64"),
        (lambda: latents().half(), "got F16"),
    ],
)
def test_latents_of_another_shape_or_type_than_the_run_s_are_refused(
    folder: Path, make: Callable[[], Tensor], found: str
) -> None:
    put_latents(folder, make())
    with pytest.raises(ProbeError, match=found):
        read_probe(folder, LATENT)


def test_file_of_other_tensors_is_refused(folder: Path) -> None:
    put_latents(folder, latents(), name="weights")
    with pytest.raises(ProbeError, match="lacks tensor latents"):
        read_probe(folder, LATENT)


def test_file_that_is_far_too_long_is_never_read(folder: Path) -> None:
    with (folder / PROBE_WEIGHTS_FILE).open("wb") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(ProbeError, match="expected at most"):
        read_probe(folder, LATENT)


def test_symbolic_link_to_latents_is_not_followed(folder: Path) -> None:
    path = folder / PROBE_WEIGHTS_FILE
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(ProbeError, match="cannot be read"):
        read_probe(folder, LATENT)


@pytest.mark.parametrize(
    ("tensor", "captions"),
    [(latents(2), CAPTIONS), (latents().flatten(1), CAPTIONS), (latents(4), CAPTIONS)],
)
def test_probe_in_memory_has_a_caption_for_each_latent(
    tensor: Tensor, captions: tuple[str, ...]
) -> None:
    with pytest.raises(ProbeError, match="for 3 captions"):
        Probe(tensor, captions, 0)


@pytest.mark.parametrize("count", [0, MAX_PROBE_ROWS + 1])
def test_own_probe_has_a_row_and_not_too_many(count: int) -> None:
    with pytest.raises(ProbeError, match=f"1 to 64 rows, this one {count}"):
        Probe.of(torch.zeros(count, *LATENT), ("a",) * count, 0)


def test_probe_in_memory_is_finite() -> None:
    with pytest.raises(ProbeError, match="reach nan"):
        Probe(latents() * float("nan"), CAPTIONS, 0)
