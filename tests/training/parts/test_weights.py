from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from training.errors import ModelMissingError
from training.parts.hub import ModelFiles, ModelPart
from training.parts.weights import Naming, build_frozen, chosen_settings, read_settings

PART = ModelPart("part", "codec", ("config.json", "w.safetensors"), "1 MB", repository="a/b")
GOOD = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def files(folder: Path) -> ModelFiles:
    return ModelFiles(PART, {name: folder / name for name in PART.files}, {})


def build(
    folder: Path, tensors: dict[str, torch.Tensor], naming: Naming | None = None
) -> nn.Module:
    safetensors.torch.save_file(tensors, folder / "w.safetensors")
    return build_frozen(lambda: nn.Linear(3, 2), files(folder), "w.safetensors", naming or Naming())


def test_network_has_the_files_numbers_and_is_frozen(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net = build(tmp_path, GOOD)
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 2), 3.0))
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_names_are_matched_whichever_side_is_older(tmp_path: Path) -> None:
    naming = Naming(renames=((r"^(outer\.)?kernel$", "weight"),), unread=("other.",))
    tensors = {"outer.kernel": GOOD["weight"], "bias": GOOD["bias"]}
    net = build(tmp_path, {**tensors, "other.half": torch.tensor([torch.nan])}, naming)
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 2), 3.0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": torch.ones(1)}, "has unexpected tensor extra"),
        ({"bias": torch.zeros(3)}, r"tensor bias: expected F32 \[2\], got F32 \[3\]"),
        ({"bias": torch.tensor([0, torch.nan])}, "tensor bias holds NaN"),
        ({"kernel": torch.ones(2, 3)}, "holds a tensor twice, under two names"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_tensors_name(
    tmp_path: Path, change: dict[str, torch.Tensor], reason: str
) -> None:
    with pytest.raises(ModelMissingError, match=rf"codec part: w\.safetensors: {reason}"):
        build(tmp_path, {**GOOD, **change}, Naming(renames=(("kernel", "weight"),)))


def test_lacking_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match=r"lacks tensor bias \(1 missing\)"):
        build(tmp_path, {"weight": GOOD["weight"]})


def test_pickle_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "w.safetensors")
    with pytest.raises(ModelMissingError, match=r"w\.safetensors: header of"):
        build_frozen(lambda: nn.Linear(3, 2), files(tmp_path), "w.safetensors", Naming())


def test_settings_are_taken_by_name_and_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"width": 3, "auto_map": "run.me", "wide": true}')
    assert read_settings(files(tmp_path), {"width": int, "absent": str}) == {"width": 3}
    for known in ({"width": str}, {"wide": int}):
        with pytest.raises(ModelMissingError, match=r"config\.json: wid.*unexpected value"):
            chosen_settings(files(tmp_path), {"width": 3, "wide": True}, known)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelMissingError, match="expected a JSON object"):
        read_settings(files(tmp_path), {})
