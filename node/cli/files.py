"""Files that a command leaves behind: whole or absent, and checked for before the work begins."""

import os
import re
import secrets
from pathlib import Path
from typing import Final

from node.errors import ErrorCode, NodeError

_SLUG_LENGTH: Final = 40


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename: nobody ever sees half a file.

    Raises:
        NodeError: `RESOURCE` if the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def plan_pictures(output: Path | None, prompt: str, count: int) -> list[Path]:
    """Names for `count` pictures, after making sure that they can be written.

    Args:
        output: the file of -o; None names the files after the prompt, over no other file.
        prompt: what is drawn.
        count: one picture keeps the name, more are numbered from 1.

    Raises:
        NodeError: `USAGE` for a name that is no picture's; `RESOURCE` for an unwritable folder.
    """
    if output is None:
        stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_SLUG_LENGTH].strip("-")
        return _check(_unused(stem or "picture", count))
    if output.suffix.lower() != ".png":
        raise NodeError(
            ErrorCode.USAGE,
            f"Pictures are written as PNG, and {output.name!r} does not end in .png.",
            f"-o {output.with_suffix('.png') if output.name else 'boat.png'}",
        )
    return _check(_numbered(output, count))


def check_folder(folder: Path) -> None:
    """Make sure that files can be written into `folder`, by writing one.

    Raises:
        NodeError: `RESOURCE` if not.
    """
    probe = folder / f".paris-{secrets.token_hex(4)}.part"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index + 1}{path.suffix}") for index in range(count)]


def _unused(stem: str, count: int) -> list[Path]:
    attempt = 1
    while True:
        name = f"{stem}.png" if attempt == 1 else f"{stem}~{attempt}.png"
        paths = _numbered(Path(name), count)
        if not any(path.exists() for path in paths):
            return paths
        attempt += 1


def _check(paths: list[Path]) -> list[Path]:
    for path in paths:
        if path.is_dir():
            raise NodeError(ErrorCode.USAGE, f"{path} is a folder.", f"-o {path / 'boat.png'}")
    check_folder(paths[0].parent)
    return paths


def _unwritable(folder: Path, error: OSError) -> NodeError:
    return NodeError(
        ErrorCode.RESOURCE,
        f"Files cannot be written into {folder.absolute()}: {error.strerror}.",
        "choose another folder",
    )
