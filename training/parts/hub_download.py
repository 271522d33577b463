"""The program that fetches files of one repository of the Hugging Face hub into its local cache.

    python -m training.parts.hub_download REPOSITORY FILE...

Says {"folder": ...} on standard output, or one line that says why not. A program of its own: the
libraries of its caller were loaded offline. Its progress bars go to standard error.
"""

import json
import os
import sys
from pathlib import Path
from types import TracebackType


def fetch(repository: str, files: list[str]) -> Path:
    """Bring these files, and no others, into the cache; those already there stay.

    Returns:
        The folder of the snapshot that holds them.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  only this program goes online

    return Path(snapshot_download(repository, allow_patterns=files))


def _tell(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """What is not foreseen ends this program with one line, for its caller to pass on."""
    lines = str(error).strip().splitlines() or [""]
    sys.stdout.write(f"{kind.__name__}: {lines[0]:.300}\n")


def main() -> None:
    """Fetch what the arguments name."""
    sys.excepthook = _tell
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    folder = fetch(sys.argv[1], sys.argv[2:])
    sys.stdout.write(json.dumps({"folder": str(folder)}) + "\n")


if __name__ == "__main__":
    main()
