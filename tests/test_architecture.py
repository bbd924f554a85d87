"""The house rules, read off the source: who may import whom, sizes, docstrings, what is not done here."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
TREES = {
    path.relative_to(ROOT / "prunus"): ast.parse(path.read_text())
    for path in sorted((ROOT / "prunus").rglob("*.py"))
}
MAX_LINES, MAX_README_LINES = 800, 150  # 420 again when the rooms stand
PRINTING = {"cli", "progress", "report"}


def test_only_the_command_line_progress_and_report_print():
    calls = every(ast.Call)
    assert not [place for place, call in calls if called(call) == "print" and part_at(place) not in PRINTING]


def test_nothing_unpickles():
    assert not [place for place, node in every(ast.Call) if called(node) in ("pickle.load", "pickle.loads")]
    loads = [(place, call) for place, call in every(ast.Call) if called(call) == "torch.load"]
    safe = [place for place, call in loads if "weights_only=True" in ast.unparse(call)]
    assert [place for place, _ in loads] == safe


def test_no_star_imports():
    assert not [place for place, node in every(ast.ImportFrom) if node.names[0].name == "*"]


def test_no_mutable_defaults():
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    assert not [
        place
        for kind in (ast.FunctionDef, ast.Lambda)
        for place, node in every(kind)
        for default in [*node.args.defaults, *node.args.kw_defaults]
        if isinstance(default, literals)
        or (isinstance(default, ast.Call) and called(default) in ("list", "dict", "set"))
    ]


def test_files_are_short():
    lengths = {str(path): len((ROOT / "prunus" / path).read_text().splitlines()) for path in TREES}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_everything_public_has_a_docstring():
    missing = [str(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    for path, tree in TREES.items():
        definitions = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        missing += [
            f"{path}:{node.lineno} {node.name}"
            for node in definitions
            if not (node.name.startswith("_") or is_rule(node) or ast.get_docstring(node))
        ]
    assert not missing


def is_rule(node: ast.AST) -> bool:
    """Whether it is registered for operators: their names describe it."""
    return any(ast.unparse(each).startswith(("rule(", "handler(")) for each in node.decorator_list)


def part_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def part_at(place: str) -> str:
    return part_of(Path(place.split(":")[0]))


def every(kind: type) -> list[tuple[str, ast.AST]]:
    """All nodes of a kind, each with "file:line"."""
    return [
        (f"{path}:{node.lineno}", node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kind)
    ]


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)
