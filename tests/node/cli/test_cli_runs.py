"""`run create` as a person types it: what it prints, and what it says of bad pictures."""

from pathlib import Path

import pytest

from node.errors import ErrorCode
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.hub_models import write_models
from tests.training.conftest import draw_pictures


def test_run_of_a_folder_says_what_was_made_and_what_was_left_out(run: Run, tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "discs", 12)
    (folder / "003.png").write_bytes(b"broken")
    arguments = ("run", "create", "discs", "--clusters", "2", "--image-size", "16")
    answer = answer_of(run(*arguments, "--preset", "fashion-tiny", "--json"))
    assert (answer["name"], answer["image_size"], answer["image_channels"]) == ("discs", 16, 1)
    assert sum(answer["cluster_sizes"]) == 11
    assert answer["skipped"] == [
        {
            "reason": "unreadable picture",
            "count": 1,
            "examples": ["003.png (UnidentifiedImageError)"],
        }
    ]
    text = run(*arguments, "--preset", "fashion-tiny").stdout
    assert answer["run"] in text.splitlines()[0], "the same run again"
    assert "pictures   16x16 pixels, grey, as a sample of them is" in text
    assert "apart      the largest holds" in text
    assert f"silhouette {answer['silhouette']:.2f} (1 far apart" in text
    assert "skipped    1 unreadable picture: 003.png (UnidentifiedImageError)" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none",), ErrorCode.FAILED, "there is no such file or folder"),
        (("empty",), ErrorCode.FAILED, "no pictures in it (empty)"),
        (("one", "--clusters", "1"), ErrorCode.FAILED, "need at least 2 pictures, got 1"),
        (("few",), ErrorCode.FAILED, "4 clusters need at least 8 pictures, got 6"),
        (("few", "--codec", "jpeg"), ErrorCode.USAGE, "unknown codec 'jpeg'"),
        (("few", "--image-size", "20", "--clusters", "2"), ErrorCode.USAGE, "divisible by 8"),
        (("few", "--image-size", "9999"), ErrorCode.USAGE, "--image-size"),
        (("notes.txt",), ErrorCode.FAILED, "cannot be read as pictures"),
    ],
)
def test_bad_pictures_and_choices_are_refused_with_a_way_out(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: ErrorCode, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    draw_pictures(tmp_path / "one", 1)
    draw_pictures(tmp_path / "few", 6)
    exit_code, error = refusal_of(run("run", "create", *arguments, "--json"))
    assert exit_code == code.exit_code
    assert message in error["message"]
    assert error["fix"]


PRETRAINED = (
    "run", "create", "few", "--clusters", "2", "--image-size", "16", "--preset", "fashion-tiny",
    "--codec", "sd-vae-ft-mse", "--extractor", "dinov2-vitl14", "--text", "clip-vit-l14",
)  # fmt: skip


def test_pretrained_part_that_is_not_here_is_one_sentence_and_code_4(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    draw_pictures(tmp_path / "few", 6)
    exit_code, error = refusal_of(run(*PRETRAINED, "--json"))
    assert (exit_code, error["code"]) == (4, "not_found")
    assert "clip-vit-l14 is not on this machine: put config.json, model.saf" in error["message"]
    assert f"(about 1.7 GB) into {home / 'models' / 'clip-vit-l14'}" in error["message"]
    assert "\n" not in error["message"]


def test_pretrained_parts_are_found_in_the_homes_folder_or_the_one_that_is_set(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_pictures(tmp_path / "few", 6)
    write_models(home / "models")
    home.chmod(0o700)
    first = answer_of(run(*PRETRAINED, "--json"))
    (home / "models").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("PARIS_NODE_MODELS", str(tmp_path / "elsewhere"))
    assert answer_of(run(*PRETRAINED, "--json"))["run"] == first["run"]
