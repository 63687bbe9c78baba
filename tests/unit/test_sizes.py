"""Functions stay short enough to be read at once."""

import ast

import pytest

from tests.python import ROOT

LONGEST = 40  # lines


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines from `def` to the last one, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def long_functions(source: str) -> dict[str, int]:
    """Return the functions above the limit, by name and line, with their lengths."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f"{function.name}, line {function.lineno}": num_lines(function) for function in functions}
    return {name: length for name, length in lengths.items() if length > LONGEST}


@pytest.mark.parametrize("folder", ["pipeline", "kernels", "benchmarks", "tests"])
def test_no_function_is_long(folder: str):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    too_long = {str(path.relative_to(ROOT)): long_functions(path.read_text()) for path in paths}
    assert not any(too_long.values()), {path: names for path, names in too_long.items() if names}


def test_a_long_function_is_found():
    """Its docstring does not count, and neither do the lines of decorators."""
    body = "    pass\n" * 39
    docstring = '    """Summary.\n\n    More.\n    """\n'
    assert not long_functions(f"@decorated\ndef short():\n{docstring}{body}")
    assert long_functions(f"class A:\n  async def long():\n{docstring}{body}    pass\n") == {
        "long, line 2": 41
    }
