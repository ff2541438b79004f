"""The imports in the notebooks work. `make test-slow` runs whole notebooks."""

from __future__ import annotations

import ast
import json

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_imports_of_a_notebook_work(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    code = ["".join(line for line in cell["source"] if not line.startswith("%")) for cell in cells]
    nodes = [node for text in code for node in ast.walk(ast.parse(text))]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert any("rl" in ast.unparse(node) for node in imports)
    for node in imports:
        exec(ast.unparse(node), {})
