"""What holds for every file."""

import ast
import sys

import pytest

from tests.conftest import ROOT

PACKAGES = {"torch", "numpy", "matplotlib", "tqdm"}
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_but_what_is_installed(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    own = {"common", *(script.stem for script in ROOT.glob("*.py"))}
    assert imported <= PACKAGES | own | set(sys.stdlib_module_names)
