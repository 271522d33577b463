"""A program: draws with the experts of two folders and prints each PNG as hex, one a line.

usage: draw_pictures.py SHARED EXPERT_0 EXPERT_1 THREADS...

Draws the same once for each number of threads.
"""

import sys
from pathlib import Path

import torch

from training.drawing.ensemble import Ensemble
from training.drawing.mixture import Strategy
from training.drawing.plan import Images, SampleOptions, SampleRequest

COUNT = 4


def draw(shared: Path, experts: list[Path]) -> list[bytes]:
    """PNGs of `COUNT` pictures of a caption that is not of the run."""
    ensemble = Ensemble.load(shared, dict(enumerate(experts)))
    options = SampleOptions(Strategy.TOP2, steps=4)
    events = ensemble.generate(SampleRequest("thin lines", COUNT, seed=11, options=options))
    return [png for event in events if isinstance(event, Images) for png in event.pngs]


def main() -> None:
    """Draw and print."""
    shared, *experts = (Path(name) for name in sys.argv[1:4])
    for threads in sys.argv[4:]:
        torch.set_num_threads(int(threads))
        sys.stdout.write("".join(f"{png.hex()}\n" for png in draw(shared, experts)))


if __name__ == "__main__":
    main()
