from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.support.hub_models import write_sd_vae
from training.errors import ConfigError, ModelMissingError
from training.parts import sd_vae
from training.parts.hub import Models, part_digest
from training.parts.libraries import autoencoder_class
from training.parts.sd_vae import SdVae


def pictures(count: int, side: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator).byte()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vae")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return write_sd_vae(folder / "sd-vae-ft-mse")


@pytest.fixture(scope="module")
def codec(folder: Path, reference: Any) -> SdVae:
    return SdVae(32, 3, Models(folder))


def test_latents_are_the_scaled_mean_that_the_library_computes(
    codec: SdVae, reference: Any
) -> None:
    images = pictures(5, 32)
    posterior = reference.encode(images.float() / 127.5 - 1).latent_dist
    found = codec.encode(images)
    assert found.shape == (5, *codec.latent) == (5, 4, 4, 4)
    assert torch.allclose(found, posterior.mean * 0.18215, atol=1e-6)
    assert torch.equal(found, codec.encode(images))


def test_pictures_come_back_as_the_library_paints_them(codec: SdVae, reference: Any) -> None:
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = (reference.decode(latents / 0.18215).sample + 1) / 2
    found = codec.decode(latents)
    assert torch.allclose(found, expected.clamp(0, 1), atol=1e-6)
    assert bool(((found > 0) & (found < 1)).any())


@pytest.mark.slow
def test_weights_are_those_the_library_itself_loads(folder: Path, codec: SdVae) -> None:
    """diffusers knows of the old names too: its own loader is the judge."""
    theirs = autoencoder_class().from_pretrained(
        folder / "sd-vae-ft-mse", local_files_only=True, low_cpu_mem_usage=False
    )
    images = pictures(2, 32)
    with torch.no_grad():
        mode = theirs.eval().encode(images.float() / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(codec.encode(images), mode * 0.18215, atol=1e-6)


def test_grey_pictures_are_colour_inside(folder: Path, codec: SdVae) -> None:
    grey = SdVae(32, 1, Models(folder))
    images = pictures(2, 32, 1)
    assert torch.equal(grey.encode(images), codec.encode(images.expand(-1, 3, -1, -1)))
    latents = codec.encode(pictures(2, 32))
    assert grey.decode(latents).shape == (2, 1, 32, 32)
    assert torch.allclose(grey.decode(latents), codec.decode(latents).mean(1, keepdim=True))


def test_a_picture_does_not_depend_on_how_many_go_through_together(
    codec: SdVae, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(5, 32)
    together = codec.encode(images)
    monkeypatch.setattr(sd_vae, "BLOCK_PIXELS", 2 * 32 * 32)
    assert codec._block == 2
    assert torch.allclose(codec.encode(images), together, atol=1e-6)
    monkeypatch.setattr(sd_vae, "BLOCK_PIXELS", 1)
    assert codec._block == 1
    assert codec.encode(images[:0]).shape == (0, 4, 4, 4)
    assert codec.decode(torch.empty(0, 4, 4, 4)).shape == (0, 3, 32, 32)


def test_half_precision_around_it_changes_nothing(codec: SdVae) -> None:
    images = pictures(2, 32)
    latents = codec.encode(images)
    decoded = codec.decode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(images), latents)
        assert torch.equal(codec.decode(latents), decoded)
    assert latents.dtype == decoded.dtype == torch.float32


def test_only_large_pictures_go_through_in_tiles(
    folder: Path, codec: SdVae, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(1, 64)
    whole = SdVae(64, 3, Models(folder)).encode(images)
    assert codec._net.tile_sample_min_size == 512
    monkeypatch.setattr(sd_vae, "TILE", 64)
    assert torch.equal(SdVae(64, 3, Models(folder)).encode(images), whole)
    monkeypatch.setattr(sd_vae, "TILE", 32)
    tiled = SdVae(64, 3, Models(folder))
    found = tiled.encode(images)
    assert found.shape == whole.shape
    assert not torch.allclose(found, whole, atol=1e-3)
    assert tiled.decode(found).shape == (1, 3, 64, 64)


def test_digest_is_of_its_files(folder: Path, codec: SdVae, tmp_path: Path) -> None:
    assert codec.digest == part_digest("sd-vae-ft-mse", codec.pins)
    assert SdVae(64, 1, Models(folder)).digest == codec.digest
    write_sd_vae(tmp_path / "sd-vae-ft-mse", seed=1)
    assert SdVae(32, 3, Models(tmp_path)).digest != codec.digest
    assert codec.stored() == b""


def test_wrong_pictures_are_refused(folder: Path, codec: SdVae) -> None:
    with pytest.raises(ConfigError, match="divisible by 8, got 20"):
        SdVae(20, 3, Models(folder))
    with pytest.raises(ValueError, match="expected uint8 pictures"):
        codec.encode(pictures(1, 32).float())
    with pytest.raises(ValueError, match=r"expected uint8 pictures \(3, 32, 32\)"):
        codec.encode(pictures(1, 32, 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scaling_factor": 0.13025}, r"scaling_factor is 0\.13025, expected 0\.18215"),
        ({"latent_channels": 16}, "latent_channels is 16, expected 4"),
        ({"block_out_channels": [8, 8]}, "levels is 2, expected 4"),
        ({"latent_channels": True}, "latent_channels: unexpected value True"),
        ({"norm_num_groups": 3}, "describes no such network"),
        ({"up_block_types": ["NoSuchBlock"] * 4}, "describes no such network"),
    ],
)
def test_another_autoencoder_is_refused_by_its_config(
    folder: Path, reference: Any, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    import json

    write_sd_vae(tmp_path / "sd-vae-ft-mse")
    path = tmp_path / "sd-vae-ft-mse" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelMissingError, match=reason):
        SdVae(32, 3, Models(tmp_path)).encode(pictures(1, 32))


def test_half_precision_weights_are_refused_by_the_tensors_name(tmp_path: Path) -> None:
    write_sd_vae(tmp_path / "sd-vae-ft-mse")
    path = tmp_path / "sd-vae-ft-mse" / "diffusion_pytorch_model.safetensors"
    halved = {name: t.half() for name, t in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halved, path)
    with pytest.raises(ModelMissingError, match=r"tensor .*: expected F32 .*, got F16"):
        SdVae(32, 3, Models(tmp_path)).encode(pictures(1, 32))
