"""What a folder in the published layout may not be: every mismatch has a name."""

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.paris_folder import FakeParis, change_json, write_json, write_paris
from training.exchange.paris_layout import LayoutError
from training.exchange.paris_model import read_layout

EXPERT = "expert_1/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> FakeParis:
    return write_paris(tmp_path_factory.mktemp("paris") / "model")


@pytest.fixture
def folder(original: FakeParis, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.folder, tmp_path / "model"))


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(LayoutError) as caught:
        read_layout(folder)
    return caught.value.problems


def retensor(path: Path, **changes: Any) -> None:
    """Write the file again with some tensors replaced, added, or (None) left out."""
    tensors: dict[str, Any] = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_a_whole_folder_is_read(folder: Path) -> None:
    (folder / "README.md").write_text("a card")
    (folder / "inference.py").write_text("raise SystemExit")  # as published; never opened
    layout = read_layout(folder)
    assert layout.latent == (4, 8, 8)
    assert [net.config.expert_id for net in layout.experts] == [0, 1, 2]
    assert layout.ignored == ()


def test_no_folder_and_an_empty_one_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "nowhere") == ("there is no such folder",)
    assert problems(tmp_path) == ("model_index.json is missing", "config.json is missing")


def test_missing_and_extra_experts_are_all_named(folder: Path) -> None:
    shutil.rmtree(folder / "expert_0")
    shutil.copytree(folder / "expert_2", folder / "expert_7")
    shutil.copytree(folder / "expert_2", folder / "expert_02")  # no number of the layout
    assert problems(folder) == (
        "expert_0 is missing: config.json says 3 experts",
        "expert_7 is one too many: config.json says 3 experts",
    )


def test_router_of_another_number_of_clusters_is_named(folder: Path) -> None:
    other = write_paris(folder.parent / "other", clusters=4)
    shutil.rmtree(folder / "router")
    shutil.copytree(other.folder / "router", folder / "router")
    found = problems(folder)
    assert "router/config.json: a router of 4 for 3 experts" in found
    assert "router: a router for [4] clusters, but 3 experts" in found


@pytest.mark.parametrize("count", [0, -1, 4097, 10**12])
def test_impossible_number_of_experts_is_named(folder: Path, count: int) -> None:
    for name in ("config.json", "model_index.json"):
        change_json(folder / name, num_experts=count)
    assert problems(folder) == (f"config.json: num_experts is {count}, not 1..4096",)


def test_huge_number_of_experts_makes_one_short_message(folder: Path) -> None:
    for name in ("config.json", "model_index.json"):
        change_json(folder / name, num_experts=4096)
    with pytest.raises(LayoutError, match="and 4081 more") as caught:
        read_layout(folder)
    assert len(str(caught.value)) < 2000


def test_index_and_config_that_disagree_are_named(folder: Path) -> None:
    change_json(folder / "model_index.json", num_experts=8)
    assert problems(folder) == ("model_index.json: num_experts is 8, config.json says 3",)


def test_tensor_of_another_shape_names_expected_and_got(folder: Path) -> None:
    retensor(folder / EXPERT, text_proj=None, pos_embed=torch.zeros(1, 4, 24))
    retensor(folder / EXPERT, **{"t_block.1.bias": None, "final_layer.linear.bias": torch.zeros(9)})
    assert problems(folder) == (
        f"{EXPERT}: tensor t_block.1.bias is missing, expected [144]",
        f"{EXPERT}: tensor final_layer.linear.bias: expected [16], got [9]",
        f"{EXPERT}: tensor pos_embed: expected [1, 16, 24], got [1, 4, 24]",
    )


def test_latent_side_against_positions_is_named(folder: Path) -> None:
    change_json(folder / "config.json", image_size=16)
    found = problems(folder)
    assert f"{EXPERT}: tensor pos_embed: expected [1, 64, 24], got [1, 16, 24]" in found
    change_json(folder / "config.json", image_size=9)
    assert any(
        "patch_size 2 does not divide the latent's side 9" in line for line in problems(folder)
    )


def test_text_width_against_text_encoder_is_named(folder: Path) -> None:
    (folder / "text_encoder").mkdir()
    write_json(folder / "text_encoder" / "config.json", {"hidden_size": 768})
    assert problems(folder) == (
        "text_encoder/config.json: hidden_size is 768, the experts take 20",
    )
    change_json(folder / "expert_2" / "config.json", text_embed_dim=21)
    found = problems(folder)
    assert "experts take text states of different widths: [20, 21]" in found
    assert any("text_proj.weight: expected [24, 21], got [24, 20]" in line for line in found)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("expert_id", 2, "expert_id is 2, expected 1"),
        ("use_class_conditioning", True, "use_class_conditioning is True, expected False"),
        ("use_adaln_single", False, "use_adaln_single is False, expected True"),
        ("in_channels", 8, "in_channels is 8, expected 4"),
        ("mlp_ratio", 2.0, "mlp_ratio is 2.0, expected 4.0"),
        ("num_heads", 5, "5 heads do not divide 24"),
        ("num_layers", 10**9, "1000000000 layers of width 24"),
        ("hidden_size", "24", "hidden_size: expected int, got str '24'"),
        ("qk_norm", True, "unknown key 'qk_norm'"),
    ],
)
def test_config_that_means_another_net_is_named(
    folder: Path, key: str, value: object, expected: str
) -> None:
    change_json(folder / "expert_1" / "config.json", **{key: value})
    assert any(
        line.startswith("expert_1/config.json") and expected in line for line in problems(folder)
    )


def test_the_unknown_is_passed_over_only_on_request(folder: Path) -> None:
    change_json(folder / "expert_1" / "config.json", qk_norm=True)
    retensor(folder / EXPERT, extra=torch.zeros(2))
    unknown = (
        "expert_1/config.json: unknown key 'qk_norm'",
        f"{EXPERT}: tensor extra [2] is not of this architecture",
    )
    assert problems(folder) == unknown
    layout = read_layout(folder, ignores_unknown=True)
    assert layout.ignored == unknown
    assert "extra" not in layout.load_expert(1).net.state_dict()


def test_pickles_are_refused_with_the_reason(folder: Path) -> None:
    (folder / EXPERT).unlink()
    torch.save({}, folder / "expert_1" / "diffusion_pytorch_model.bin")
    assert problems(folder) == (
        f"{EXPERT} is missing (diffusion_pytorch_model.bin is a pickle: opening one runs its code)",
    )


def test_links_are_refused_wherever_they_lie(folder: Path) -> None:
    real = folder / "expert_1" / "diffusion_pytorch_model.safetensors"
    shutil.move(real, folder.parent / "weights")
    real.symlink_to(folder.parent / "weights")
    shutil.move(folder / "router", folder.parent / "elsewhere")
    (folder / "router").symlink_to(folder.parent / "elsewhere")
    found = problems(folder)
    assert f"{EXPERT} is a link: copy the folder with what its links name (cp -rL)" in found
    assert any(line.startswith("router/config.json is a link") for line in found)


def test_a_folder_reached_by_a_link_is_read(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    assert len(read_layout(folder.parent / "link").experts) == 3


def test_a_pipe_is_no_file_and_is_not_opened(folder: Path) -> None:
    (folder / EXPERT).unlink()
    os.mkfifo(folder / EXPERT)  # opening it would wait for ever
    assert problems(folder) == (f"{EXPERT} is not a plain file",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short for a header length"),
        (struct.pack("<Q", 2**40), "header of 1099511627776 bytes, at most"),
        (struct.pack("<Q", 8) + b"{" * 8, "header is not JSON"),
        (struct.pack("<Q", 2) + b"{}" + b"x", "1 bytes of data, the header describes 0"),
    ],
)
def test_hostile_headers_are_named(folder: Path, data: bytes, reason: str) -> None:
    (folder / EXPERT).write_bytes(data)
    (found,) = problems(folder)
    assert found.startswith(f"{EXPERT}: ")
    assert reason in found


def test_path_in_the_index_is_never_followed(folder: Path) -> None:
    """The index says which classes and folders to load: nothing of it is used but three facts."""
    change_json(folder / "model_index.json", vae=["../../evil", "Class"], scheduler="/etc/passwd")
    assert read_layout(folder).parts == ()


def test_json_that_is_none_is_named(folder: Path) -> None:
    (folder / "expert_1" / "config.json").write_text("{'single': 1}")
    (folder / "model_index.json").write_text("[]")
    assert problems(folder) == ("model_index.json: expected a JSON object, got list",)
    write_json(folder / "model_index.json", {})
    (found,) = problems(folder)
    assert found.startswith("expert_1/config.json: not a JSON object")


def test_nan_in_weights_is_found_when_they_are_loaded(folder: Path) -> None:
    from training.errors import TensorFileError

    retensor(folder / EXPERT, pos_embed=torch.full((1, 16, 24), torch.nan))
    with pytest.raises(TensorFileError, match="tensor pos_embed holds NaN"):
        read_layout(folder).load_expert(1)


def test_integer_weights_are_named(folder: Path) -> None:
    retensor(folder / EXPERT, pos_embed=torch.zeros(1, 16, 24, dtype=torch.int32))
    assert problems(folder) == (f"{EXPERT}: tensor pos_embed: expected F32, F16 or BF16, got I32",)


def test_router_larger_than_any_of_ours_is_named(folder: Path) -> None:
    change_json(folder / "router" / "config.json", num_layers=65)
    assert any("router: 65 layers of width 16" in line for line in problems(folder))
