"""A run that a swarm of real processes can finish in seconds, made once per session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from scripts.local_swarm import cli, local_swarm

LEASE_S = 6
BUDGET = 2560
SAVE_EVERY = 160
"""A training of seconds, sixteen saves long: a test that has seen one has time to step in."""


def draw_pictures(folder: Path, count: int = 24) -> None:
    """Two kinds of pictures that any clustering can tell apart, named by their captions."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        image = Image.new("RGB", (32, 32), "white")
        pen = ImageDraw.Draw(image)
        shift = number % 5
        if number % 2:
            pen.rectangle((2 + shift, 18, 26 + shift, 28), fill="navy")
            caption = "a low box"
        else:
            pen.rectangle((12 + shift, 2, 16 + shift, 30), fill="darkred")
            caption = "a tall bar"
        image.save(folder / f"{number}.png")
        lines.append(f'{{"file_name": "{number}.png", "text": "{caption}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run of two clusters, and a home that has it."""
    folder = tmp_path_factory.mktemp("tiny")
    draw_pictures(folder / "pictures")
    home = folder / "founder"
    created = cli(
        *("run", "create", str(folder / "pictures"), "--clusters", "2", "--lease", str(LEASE_S)),
        *("--samples", str(BUDGET), "--save-every", str(SAVE_EVERY), "--preset", "tiny-cpu"),
        home=home,
    )
    return created["run"], home


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[object]:
    """Nodes by name; all of them are gone when the test ends."""
    with local_swarm(tmp_path) as node:
        yield node
