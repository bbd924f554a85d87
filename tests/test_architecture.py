"""The house rules, read off the source: who may import whom, sizes, docstrings, what is not done here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = {
    path.relative_to(ROOT / "prunus"): ast.parse(path.read_text())
    for path in sorted((ROOT / "prunus").rglob("*.py"))
}
MAX_LINES, MAX_README_LINES = 420, 150
LISTS = {"rules.py"}  # a long list of short things may be longer

# A part may import the parts to its left in its own column, and what both columns stand on.
GROUND = "errors files progress"
STRUCTURE = (
    "axes rules skeleton tracer follow graph runtimes cost budget limits scores selection weights "
    "parametrised surgery optables optimes timings predictor latency "
    "gating gates compact hypernetworks thresholds options dhp_config latents prompts recurrent pass_config "
    "channel_masks sparse store search pruningnet"
)
WITHIN = {  # the order of the files of a part
    "sparse": "ranking squares products neighbours observed scores gradients patterns selection reach masks "
    "permutation formats",
    "search": "space journal proposals strategies evaluation engine",
}
LEARNING = "zoo models readers pictures data guards checkpoint train recover"
# Here the columns meet: each may import both columns and the parts to its left.
MEETING = (
    "charts searched tasks candidates supernets providers methods registry runfolder report stages run export bench "
    "describe cli __main__"
)
PRINTING = {"cli", "progress", "report"}


def test_imports_point_one_way():
    allowed = {"__init__": set().union(*map(str.split, (GROUND, STRUCTURE, LEARNING, MEETING)))}
    both = set(GROUND.split()) | set(STRUCTURE.split()) | set(LEARNING.split())
    columns = (
        (GROUND, set()),
        (STRUCTURE, {*GROUND.split()}),
        (LEARNING, {*GROUND.split()}),
        (MEETING, both),
    )
    for column, below in columns:
        parts = column.split()
        allowed |= {part: below | set(parts[: index + 1]) for index, part in enumerate(parts)}
    allowed["report"] = {"report", *GROUND.split()}
    missing = {part_of(path) for path in TREES} - allowed.keys()
    assert not missing, f"give these parts a place in the order above: {sorted(missing)}"
    assert not [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        for name in imported(tree)
        if name.split(".")[0] not in allowed[part_of(path)]
    ]


@pytest.mark.parametrize("part", WITHIN)
def test_within_a_part_imports_point_one_way(part):
    order = WITHIN[part].split()
    trees = {
        path: tree for path, tree in TREES.items() if path.parts[0] == part and path.name != "__init__.py"
    }
    assert {path.stem for path in trees} == set(order)
    assert not [
        f"{path} imports {name}"
        for path, tree in trees.items()
        for name in imported(tree)
        if name.startswith(f"{part}.") and order.index(name.split(".")[1]) >= order.index(path.stem)
    ]


def test_methods_do_not_know_each_other():
    assert not [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if part_of(path) == "methods" and path.name != "__init__.py"
        for name in imported(tree)
        if name.startswith("methods.")
    ]


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
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES and path not in LISTS}
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


def imported(tree: ast.Module) -> set[str]:
    """The modules of prunus that a file imports, without the leading "prunus."."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the order"
            parent = node.module
            packages = ("prunus", *(f"prunus.{part}" for part in WITHIN))
            names |= {f"{parent}.{alias.name}" for alias in node.names} if parent in packages else {parent}
    return {name.removeprefix("prunus.") for name in names if name.startswith("prunus.")}


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
