"""The table of faults in docs/reliability.md: every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = PAGE.split("\n## Faults\n")[1].split("\n## ")[0]
TABLE = [
    line
    for line in FAULTS.splitlines()
    if line.startswith("| ") and not line.startswith(("| **", "| fault "))
]
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`(\*?)")


def read_tests(path: Path) -> dict[str, bool]:
    """Return True for each test of a file that is marked as slow, False for the others."""
    functions = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    marks = {node.name: list(map(ast.unparse, node.decorator_list)) for node in functions}
    return {name: "pytest.mark.slow" in decorators for name, decorators in marks.items()}


def test_table_has_as_many_faults_as_readme_says() -> None:
    assert "More than sixty faults" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(TABLE) > 60


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[2:42])
def test_tests_of_a_row_exist_and_slow_ones_are_marked(row: str) -> None:
    named = NAMED.findall(row.rsplit("| ", 1)[1])
    assert named, "a row names at least one test"
    for file, name, star in named:
        tests = read_tests(ROOT / "tests" / file)
        assert name in tests, f"{file} has no {name}"
        assert tests[name] == bool(star), f"{name}: * stands for slow tests"
