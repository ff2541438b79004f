"""Public functions that take or return arrays state a shape. (Ruff's D rules find those without a docstring.)"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

ARRAYS = {"Array", "Float32", "Float64", "Int64", "UInt64", "Bool", "NDArray", "ndarray", "Tensor"}
STATES = {"Mapping", "dict"}  # by name: every array has a shape of its own
# A shape such as [B, A] or [], but neither list[int] nor a link; or a pointer to the protocol's docstring.
SHAPE = re.compile(r"(?<!\w)\[[^\[\]]*\](?!\()|^See `")


def mentions_array(annotation: ast.AST | None) -> bool:
    match annotation:
        case None:
            return False
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in ARRAYS:
            return True
        case ast.Subscript(value=ast.Name(id=name)) if name in STATES:
            return False
        case ast.Constant(value=str(quoted)):
            return any(re.search(rf"\b{name}\b", quoted) for name in ARRAYS)
    return any(mentions_array(child) for child in ast.iter_child_nodes(annotation))


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node


def lacking(source: str) -> list[str]:
    """Names of public functions in ``source`` with an array in their signature and no ``[shape]`` in their docstring."""
    found = []
    for name, function in public_functions(ast.parse(source).body):
        a = function.args
        annotations = [x.annotation for x in [*a.posonlyargs, *a.args, *a.kwonlyargs]]
        has_arrays = any(map(mentions_array, [*annotations, function.returns]))
        if has_arrays and not SHAPE.search(ast.get_docstring(function) or ""):
            found.append(name)
    return found


def test_functions_with_arrays_state_a_shape():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    modules = [f for f in files.split() if not f.startswith(("tests/", "docs/")) and "_pb2" not in f]
    assert len(modules) > 100
    missing = [f"{path}: {name}" for path in modules for name in lacking((ROOT / path).read_text())]
    assert not missing


@pytest.mark.parametrize(
    ("signature", "doc", "is_lacking"),
    [
        ("(x: Array) -> None", "The mean.", True),
        ("(x: Array) -> None", "The mean of x [B].", False),
        ("() -> tuple[torch.Tensor, int]", "Values.", True),
        ("(x: 'np.ndarray | None')", "Values.", True),
        ("(self, *, x: list[Tensor])", "Values.", True),
        ("(x: Array) -> None", "See `Selector.sample`.", False),
        ("(x: Array) -> list[int]", "A list[int]; see [the docs](docs/x.md).", True),
        ("() -> Mapping[str, Array]", "The state.", False),
        ("(n: int) -> float", "The mean.", False),
    ],
)
def test_the_check_itself(signature, doc, is_lacking):
    source = f'class C:\n    def f{signature}:\n        """{doc}"""\n    def _g(x: Array): pass\n'
    assert lacking(source) == (["C.f"] if is_lacking else [])
