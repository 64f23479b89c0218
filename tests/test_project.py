"""Checks that apply to every source file."""

import ast
import sys

import pytest

from tests.conftest import ROOT

PACKAGES = {"torch", "numpy", "matplotlib", "tqdm"}
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_allowed_packages_are_imported(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    own = {"common", *(script.stem for script in ROOT.glob("*.py"))}
    assert imported <= PACKAGES | own | set(sys.stdlib_module_names)
