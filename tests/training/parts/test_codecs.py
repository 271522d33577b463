from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError, TensorFileError
from training.parts.codecs import check_codec
from training.parts.patch_pca import PatchPca, _position_kinds
from training.sources.bundled import load_fashion


@pytest.fixture(scope="module")
def fashion() -> Tensor:
    return load_fashion().images[:1500]


@pytest.fixture(scope="module")
def codec(fashion: Tensor) -> PatchPca:
    return PatchPca.fit(fashion)


def test_unseen_pictures_come_back_closely(codec: PatchPca) -> None:
    unseen = load_fashion().images[5000:5500]
    error = (codec.decode(codec.encode(unseen)) - unseen.float() / 255).square().mean()
    variance = (unseen.float() / 255).var()
    assert float(error) < 0.05 * float(variance)


def test_decoder_is_better_than_the_plain_inverse(codec: PatchPca) -> None:
    """Where latents carry the noise that sampling leaves, neighbours help."""
    unseen = load_fashion().images[5000:5500]
    latents = codec.encode(unseen)
    noisy = latents + 0.2 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    inverse = torch.linalg.pinv(codec.basis)
    plain = (noisy.permute(0, 2, 3, 1) @ inverse + codec.mean).reshape(-1, 4, 4, 8, 8)
    plain_images = plain.permute(0, 1, 3, 2, 4).reshape(-1, 1, 32, 32).clamp(0, 1)
    wanted = unseen.float() / 255
    ours = (codec.decode(noisy) - wanted).square().mean()
    assert float(ours) < 0.95 * float((plain_images - wanted).square().mean())


def test_latents_have_zero_mean_and_unit_average_variance(codec: PatchPca, fashion: Tensor) -> None:
    latents = codec.encode(fashion)
    assert codec.latent == tuple(latents.shape[1:]) == (16, 4, 4)
    assert abs(float(latents.mean())) < 1e-3
    assert float(latents.var(dim=(0, 2, 3)).mean()) == pytest.approx(1, abs=0.01)


def test_stored_codec_is_the_same_codec(codec: PatchPca, tmp_path: Path, fashion: Tensor) -> None:
    path = tmp_path / "codec.safetensors"
    path.write_bytes(codec.stored())
    loaded = PatchPca.load(path, 32, 1)
    assert loaded.digest == codec.digest
    latents = codec.encode(fashion[:9])
    assert torch.equal(loaded.encode(fashion[:9]), latents)
    assert torch.equal(loaded.decode(latents), codec.decode(latents))


def test_codec_of_another_picture_size_is_refused(codec: PatchPca, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    path.write_bytes(codec.stored())
    with pytest.raises(TensorFileError, match="expected F16"):
        PatchPca.load(path, 64, 1)
    with pytest.raises(TensorFileError, match="expected F32"):
        PatchPca.load(path, 32, 3)


def test_colour_pictures_of_a_large_grid_share_decoders_by_border() -> None:
    images = torch.randint(0, 256, (40, 3, 80, 80), generator=torch.Generator().manual_seed(0))
    codec = PatchPca.fit(images.to(torch.uint8))
    assert codec.decoder.shape == (9, 145, 192)
    assert codec.decode(codec.encode(images.to(torch.uint8))[:2]).shape == (2, 3, 80, 80)
    assert _position_kinds(10)[[0, 0, 5, 9], [0, 5, 5, 9]].tolist() == [0, 1, 4, 8]


def test_one_colour_only_still_gives_finite_latents() -> None:
    codec = PatchPca.fit(torch.full((8, 1, 16, 16), 200, dtype=torch.uint8))
    latents = codec.encode(torch.full((2, 1, 16, 16), 200, dtype=torch.uint8))
    assert bool(latents.isfinite().all())
    assert torch.allclose(codec.decode(latents), torch.tensor(200 / 255), atol=0.01)


def test_wrong_pictures_and_names_are_refused(codec: PatchPca) -> None:
    with pytest.raises(ValueError, match="expected uint8 pictures"):
        codec.encode(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="expected uint8 pictures"):
        codec.encode(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="divisible by 8"):
        PatchPca.fit(torch.zeros(4, 1, 20, 20, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="known: patch-pca"):
        check_codec("jpeg")
    assert codec.encode(torch.zeros(0, 1, 32, 32, dtype=torch.uint8)).shape == (0, 16, 4, 4)
