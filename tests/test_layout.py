"""The layout everything leans on: packages from this checkout, and a README that is true."""

import ast
import importlib
from pathlib import Path

import pytest

from scripts.readme_tree import updated

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("node", "p2p", "training", "verification")
TOP_LEVEL = {
    *("pyproject.toml", "node", "p2p", "training", "verification", "scripts", "tests"),
    *("README.md", "LICENSE"),
}
NOT_OURS = {"demo-out", "bench-out", "dist"}


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_is_imported_from_this_checkout(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__file__ is not None
    assert Path(package.__file__).resolve().parent == ROOT / name
    assert (ROOT / name / "py.typed").is_file()


def test_the_top_level_is_the_fixed_one() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - NOT_OURS == TOP_LEVEL


def summaries() -> dict[str, str]:
    """First sentence of each module's docstring, by path."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text()))
            assert docstring, f"{path} has no docstring"
            found[str(path.relative_to(ROOT))] = docstring.splitlines()[0]
    return found


def test_the_readmes_tree_is_what_the_modules_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert updated(readme) == readme, "run scripts/readme_tree.py"


def test_no_file_of_the_packages_is_longer_than_the_house_allows() -> None:
    for path in summaries():
        lines = len((ROOT / path).read_text().splitlines())
        assert lines <= 400, f"{path}: {lines} lines"
