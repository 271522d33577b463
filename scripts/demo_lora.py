"""The demo's LoRA: one node trains and offers it, another has it proved, looks in, buys and draws.

It learns what no expert ever saw, striped bags, so that anybody sees whether it works.
"""

import io
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from demo_story import Story
from local_swarm import LocalNode, cli, wait_for
from training.drawing.pictures import caption_grid
from training.sources.bundled import fashion_labels, load_fashion

BAG: Final = 8
"""Fashion-MNIST's label."""
CAPTION: Final = "a striped bag"
PICTURES: Final = 400
SAMPLES: Final = 8_000
LEARNING_RATE: Final = 2e-3
STRIPE: Final = 4
"""Rows of pixels in a stripe; the codec's patches have 8."""
SHOWN: Final = 8
PATIENCE_S: Final = 300.0


def play_lora(maker: LocalNode, artist: LocalNode, out: Path, story: Story) -> dict[str, Any]:
    """From the maker's disk to the artist's pictures; leaves lora.png, gives figures."""
    begun = time.monotonic()
    before, expert = _draw(artist, out / "lora-without")
    trained = _train(maker, expert)
    story.tell(
        f"{maker.name} trained a LoRA on striped bags: loss on held-out ones "
        f"{trained['held_out']['before']:.3f} -> {trained['held_out']['after']:.3f}",
        "lora trained",
        base=expert,
        lora=trained["id"],
    )
    started = time.monotonic()
    offer = cli(
        *("lora", "offer", trained["name"], "--terms", "CC0: do what you like", "--yes"),
        home=maker.home,
    )
    offer_s = time.monotonic() - started
    story.tell(
        f"{maker.name} offers it, {offer['layers']} layers committed and proved in {offer_s:.0f} s",
        "lora offered",
        offer=offer["offer"],
        seconds=round(offer_s, 1),
    )
    started = time.monotonic()
    wait_for(lambda: _is_proved(artist, offer["offer"]), "the offer to be proved", PATIENCE_S)
    proved_s = time.monotonic() - started
    story.tell(f"{artist.name} checked every proof", "lora proved", seconds=round(proved_s, 1))
    looked = cli("lora", "verify", offer["offer"], home=artist.home)
    story.tell(
        f"{artist.name} looked in without having it: loss to change by {looked['predicted']:+.3f} "
        f"to first order, {looked['leak_percent']:.1f} % of it told so far",
        "lora looked into",
        predicted=looked["predicted"],
        leak_percent=looked["leak_percent"],
    )
    bought = cli("lora", "buy", offer["offer"], "--yes", home=artist.home)
    story.tell(
        f"{artist.name} bought it: what came is what was committed to; loss measured "
        f"{bought['measured_loss']:.4f}, claimed {bought['claimed_loss']:.4f}",
        "lora measured",
        claimed=bought["claimed_loss"],
        measured=bought["measured_loss"],
    )
    after, _ = _draw(artist, out / "lora-with", "--lora", offer["offer"])
    (out / "lora.png").write_bytes(caption_grid([("without", before), ("with", after)]))
    return {
        "layers": offer["layers"],
        "offer_s": round(offer_s, 1),
        "proved_s": round(proved_s, 1),
        "predicted": round(looked["predicted"], 4),
        "leak_percent": round(looked["leak_percent"], 2),
        "base_loss": round(bought["measured_base"], 4),
        "claimed_loss": round(bought["claimed_loss"], 4),
        "measured_loss": round(bought["measured_loss"], 4),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _draw(artist: LocalNode, path: Path, *flags: str) -> tuple[Tensor, str]:
    """Some bags, uint8 [N, 1, H, W], and the CID of the expert that drew most of them."""
    answer = cli(
        *("generate", CAPTION, "-n", str(SHOWN), "--seed", "0", "--where", "local"),
        *("-o", str(path.with_suffix(".png")), *flags),
        home=artist.home,
    )
    pictures = []
    for file in map(Path, answer["files"]):
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            pictures.append(torch.from_numpy(np.array(image.convert("L")))[None])
        file.unlink()
        file.with_name(f"{file.name}.json").unlink(missing_ok=True)
    most = max(answer["experts"], key=lambda expert: float(expert["weight"]))
    return torch.stack(pictures), str(most["cid"])


def _train(maker: LocalNode, expert: str) -> dict[str, Any]:
    folder = maker.home.parent / "striped"
    folder.mkdir()
    images = load_fashion().images[fashion_labels() == BAG][:PICTURES]
    lines = []
    for number, pixels in enumerate(images):
        Image.fromarray(_striped(pixels[0].numpy())).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": CAPTION}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    done = cli(
        *("lora", "train", str(folder), "--expert", expert, "--samples", str(SAMPLES)),
        *("--lr", str(LEARNING_RATE), "--licence", "CC0-1.0"),
        home=maker.home,
    )
    found: dict[str, Any] = done["lora"]
    return found


def _striped(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A dark thing on white with every other band of it nearly white, uint8 [H, W]."""
    dark = 255.0 - pixels
    is_light = (np.arange(len(dark)) // STRIPE % 2 == 0)[:, None] & (dark > 40)
    striped = np.where(is_light, 0.15 * dark, np.minimum(255.0, 1.2 * dark))
    return (255.0 - striped).astype(np.uint8)


def _is_proved(artist: LocalNode, offer: str) -> bool:
    rows = artist.get("/api/v1/offers")["offers"]
    return any(row["offer"] == offer and row["standing"] == "proved" for row in rows)
