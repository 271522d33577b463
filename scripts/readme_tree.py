#!/usr/bin/env python3
"""Write the tree of modules into README.md: each one's path and the first line of its docstring."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGES = ("node", "p2p", "training", "verification")
BEGIN, END = "<!-- tree: scripts/readme_tree.py writes this -->", "<!-- end of the tree -->"


def tree() -> str:
    """The section between the two marks."""
    lines = ["```"]
    for package in PACKAGES:
        paths = sorted((ROOT / package).rglob("*.py"))
        names = [_name(path) for path in paths]
        width = max(map(len, names))
        for path, name in zip(paths, names, strict=True):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            summary = docstring.partition("\n")[0]
            lines.append(f"{name:{width}}  {summary}")
        lines.append("")
    return "\n".join([BEGIN, *lines[:-1], "```", END])


def _name(path: Path) -> str:
    """A module's path; a package's folder for its `__init__`."""
    shown = path.relative_to(ROOT)
    return f"{shown.parent}/" if path.name == "__init__.py" else str(shown)


def updated(text: str) -> str:
    """README's text with a fresh tree.

    Raises:
        ValueError: if the marks are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN!r} and {END!r}")
    return head + tree() + tail


def main() -> int:
    text = README.read_text()
    README.write_text(updated(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
