"""The demo's pictures: drawn by one node through its command line, judged by a small classifier.

The judge was trained on the real pictures' labels (scripts/train_classifier.py); experts and router
never saw it, nor any label.
"""

import io
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo_story import Story
from local_swarm import LocalNode, cli
from training.drawing.classifier import CLASSES, load_classifier
from training.drawing.evaluate import score_captions
from training.drawing.pictures import caption_grid

JUDGE: Final = Path(__file__).parent / "data" / "classifier" / "classifier.safetensors"
PER_CAPTION: Final = 100
"""Picture i of all has seed i: not picked. Other seeds move the accuracy by about .01."""
IN_GRID: Final = 8


def draw_and_score(node: LocalNode, out: Path, story: Story) -> dict[str, Any]:
    """Draw every caption, have a peer draw one more, judge them; write grid.png and peer.png."""
    rows: list[tuple[str, Tensor]] = []
    begun = time.monotonic()
    for number, caption in enumerate(CLASSES):
        folder = node.home / "pictures"
        folder.mkdir(exist_ok=True)
        answer = cli(
            *("generate", caption, "-n", str(PER_CAPTION), "--seed", str(PER_CAPTION * number)),
            *("--where", "local", "-o", str(folder / f"{number}.png")),
            home=node.home,
        )
        rows.append((caption, torch.stack([_pixels(Path(file)) for file in answer["files"]])))
        story.progress(f"drew {PER_CAPTION} pictures of {caption!r}")
    generate_s = round(time.monotonic() - begun, 1)
    story.end_progress()
    begun = time.monotonic()
    asked = cli(
        *("generate", CLASSES[7], "--seed", "7", "--where", "peer", "-o", str(out / "peer.png")),
        home=node.home,
    )
    peer_s = round(time.monotonic() - begun, 1)
    story.tell(
        f"a peer ({asked['experts'][0]['peer'][-6:]}) drew {CLASSES[7]!r} for node-5",
        "peer drew",
        peer=asked["experts"][0]["peer"],
        seconds=peer_s,
    )
    (out / "grid.png").write_bytes(caption_grid([(c, p[:IN_GRID]) for c, p in rows]))
    captions = [caption for caption, pictures in rows for _ in range(len(pictures))]
    score = score_captions(
        load_classifier(JUDGE), torch.cat([pictures for _, pictures in rows]), captions
    )
    return {
        "generate_s": generate_s,
        "peer_generate_s": peer_s,
        "judged": score.count,
        "caption_accuracy": round(score.caption_accuracy, 4),
        "group_accuracy": round(score.group_accuracy, 4),
        "per_caption": {caption: round(hit, 3) for caption, hit in score.per_caption.items()},
    }


def _pixels(path: Path) -> Tensor:
    """A grey PNG as uint8 [1, H, W]."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return torch.from_numpy(np.array(image.convert("L")))[None]
