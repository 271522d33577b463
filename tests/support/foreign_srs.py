"""Reference strings of no ceremony: whoever runs this knows the secret, and can prove anything.

The one place that makes one. Nothing outside of tests may take it, and the tests say so.
"""

from pathlib import Path

import ezkl
import pytest


def foreign_srs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A string for k = 10, as large and as well-formed as the ceremony's; made once a session."""
    path = tmp_path_factory.getbasetemp() / "foreign.srs"
    if not path.exists():
        ezkl.gen_srs(str(path), 10)
    return path
