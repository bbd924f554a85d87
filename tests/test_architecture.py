"""The house rules, read off the source: who may import whom, sizes, docstrings, what is not done here.

CONTRIBUTING.md states the seven rules in words; the numbers below are theirs.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TREES = {
    path.relative_to(ROOT / "prunus"): ast.parse(path.read_text())
    for path in sorted((ROOT / "prunus").rglob("*.py"))
}
MAX_LINES, MAX_README_LINES = 420, 170
MAX_SHELF_FILES, MAX_ROOMS = 11, 20

# A room may import the ground, the rooms to its left in its wing, and those of the wings that its wing stands on.
ORDER = (
    "graph < scores < selection < surgery < refit < gates < sparse < export < latency | zoo < data < train < recover | "
    "tasks < search < methods | report | run < testing < cli"
)
WINGS = dict(
    zip(
        ("structure", "learning", "meeting", "report", "front"),
        [wing.split(" < ") for wing in ORDER.split(" | ")],
        strict=True,
    )
)
STANDS_ON = {
    "structure": (),
    "learning": (),
    "meeting": ("structure", "learning"),
    "report": (),
    "front": ("structure", "learning", "meeting", "report"),
}
GROUND = "errors files progress options specs machine charts metrics inputs".split()
FRONT_DOOR = ("__init__", "__main__")
# The operators of torch, and lines that hold such names but mean something else: (file, what).
ATEN = {
    name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aten::" in name
}
KNOWING_ANYWAY = {  # how the numbers of a unit's weights become one
    ("scores/members.py", "{'sum': torch.sum, 'mean': torch.mean, 'max': torch.amax}"),
}
PRINTING = {"cli", "progress", "report"}


def allowed() -> dict[str, set[str]]:
    """The rooms that each room may import, itself and the ground included."""
    found = {}
    for wing, rooms in WINGS.items():
        below = {room for under in STANDS_ON[wing] for room in WINGS[under]} | set(GROUND)
        found |= {room: below | set(rooms[: index + 1]) for index, room in enumerate(rooms)}
    everything = {room for rooms in WINGS.values() for room in rooms} | set(GROUND)
    found |= dict.fromkeys(GROUND, frozenset({*GROUND, "__init__"}))
    return found | dict.fromkeys(FRONT_DOOR, everything)


def test_the_first_shelf_is_short():
    shelf = {path.stem for path in TREES if len(path.parts) == 1}
    rooms = {path.parts[0] for path in TREES if len(path.parts) > 1}
    assert shelf == {*GROUND, *FRONT_DOOR}
    assert len(shelf) <= MAX_SHELF_FILES and len(rooms) <= MAX_ROOMS
    assert rooms == {room for wing in WINGS.values() for room in wing}


def test_imports_between_rooms_point_one_way():
    order = allowed()
    assert not [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        for name in imported(tree)
        if first(name) not in order[part_of(path)]
    ]


def test_files_import_in_no_circle():
    graph = {module(path): set() for path in TREES}
    for path, tree in TREES.items():
        for name in imported(tree):
            origin = origin_of(name)
            if origin != module(path) and path.name != "__init__.py" and origin in graph:
                graph[module(path)].add(origin)
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_from_outside_the_face_is_used_and_inside_the_file():
    """Rule 2. A file of a room may be imported as a whole: `from prunus.graph import axes`."""
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("prunus."):
                continue
            target = node.module.removeprefix("prunus.")
            face = is_face(target)
            room = target if face else target.rpartition(".")[0]
            inside = home(path) == room or (room == "graph" and home(path) == "graph.rules")
            for alias in node.names:
                whole_file = face and is_module(f"{target}.{alias.name}")
                a_method = path.parts[0] == "methods" and not path.name.startswith(
                    "_"
                )  # as one of a user's would
                if path.name != "__init__.py" and inside and face and not whole_file and not a_method:
                    wrong.append(
                        f"{path}:{node.lineno} imports {alias.name} from its own face, not from the file"
                    )
                if not inside and not face and target not in GROUND:
                    wrong.append(f"{path}:{node.lineno} reaches past a face: {node.module}.{alias.name}")
    assert not wrong


def test_no_file_bears_the_name_of_a_thing_its_face_exports():
    """Rule 3: `from prunus.room import name` would mean either."""
    assert not [
        f"{face}: {name}"
        for face in faces()
        for name in exported(face)
        if is_module(f"{face}.{name}") and not exported_as_file(face, name)
    ]


def test_a_face_is_a_sentence_its_files_and_its_names():
    """Nothing is defined in an `__init__`, and every file of the room is in its docstring."""
    wrong = []
    for face in faces():
        tree = TREES[Path(*face.split(".")) / "__init__.py"]
        doc = ast.get_docstring(tree)
        wrong += [
            f"{face} holds {ast.unparse(node)[:40]}"
            for node in tree.body[1:]
            if not isinstance(node, ast.ImportFrom | ast.Import) and "__all__" not in ast.unparse(node)
        ]
        files = [
            path.stem
            for path in TREES
            if home(path) == face and path.name != "__init__.py" and path.parent == Path(*face.split("."))
        ]
        wrong += [
            f"{face} does not name {file}" for file in files if file not in doc.replace("/", " ").split()
        ]
    assert not wrong


def test_what_an_operator_is_stands_in_graph_alone():
    """Rule 6. Other rooms ask for families (`op.is_a(operators.CONVOLUTION)`) and arguments by name."""
    assert not [
        f"{path}:{line} {words}; name a family in graph/operators.py, or ask op.argument"
        for path, tree in TREES.items()
        if path.parts[0] != "graph"
        for line, words in knowing_operators(tree)
        if (str(path), words) not in KNOWING_ANYWAY
    ]


@pytest.mark.parametrize(
    "line",
    [
        'if op.name == "convolution": pass',
        'if "convolution" in op.name: pass',
        'if op.name.startswith("div"): pass',
        'if name in ("mm", "addmm"): pass',
        'MOVES = {"t", "transpose"}',
        'MOVES = set("t transpose permute".split())',
        'HANDLERS = {"mul": mul, "div": mul}',
        '@handler("mul")\ndef mul(): pass',
        "groups = op.inputs[0][8]",
        "tensors = op.inputs[0][1:]",
        "def of(op, args): return args[8]",
        "same = op.func is torch.ops.aten.mm.default",
    ],
)
def test_rule_six_sees(line):
    assert list(knowing_operators(ast.parse(line)))


def knowing_operators(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The lines that know an operator by its name, or an argument by its number, each with what it knows."""
    types = {id(each.slice) for each in ast.walk(tree) if is_literal_type(each)}
    for node in ast.walk(tree):
        if names_operators(node) and id(node) not in types:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.FunctionDef) and {"op", "func"} & {each.arg for each in node.args.args}:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Subscript) and ast.unparse(inner.value) == "args":
                    if is_number(inner.slice):
                        yield inner.lineno, ast.unparse(inner)


def names_operators(node: ast.AST) -> bool:
    """Whether a comparison, call, collection or subscript knows operators."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(map(is_name, sides)) and bool(ATEN & {text for side in sides for text in texts_of(side)})
    if isinstance(node, ast.Call):
        of_name = isinstance(node.func, ast.Attribute) and is_name(node.func.value)
        texts = {text for each in node.args for text in texts_of(each)}
        return (of_name or called(node) in ("handler", "rule")) and bool(ATEN & texts)
    if isinstance(node, ast.Set | ast.Dict | ast.List | ast.Tuple | ast.Constant):
        return len(texts_of(node)) > 1 and ATEN.issuperset(texts_of(node))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Subscript):
        return is_number(node.slice) and ast.unparse(node.value.value).endswith(".inputs")
    return isinstance(node, ast.Attribute) and ast.unparse(node).endswith("ops.aten")


def texts_of(node: ast.AST) -> list[str]:
    """The strings that a node is, or that are its members or keys; words, where one string holds several."""
    if isinstance(node, ast.Constant):
        return node.value.split() if isinstance(node.value, str) else []
    members = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    return [each.value for each in members if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def is_name(node: ast.AST) -> bool:
    """Whether it may be an operator's name: `op.name`, `name`."""
    return getattr(node, "attr", getattr(node, "id", None)) == "name"


def is_number(node: ast.AST) -> bool:
    """Whether it is an index, or a slice between indices."""
    if isinstance(node, ast.Slice):
        return any(is_number(each) for each in (node.lower, node.upper) if each)
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def is_literal_type(node: ast.AST) -> bool:
    """Whether it is `Literal[...]`: the options that a user chooses from."""
    return isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"


def test_methods_do_not_know_each_other():
    assert not [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path.parts[0] == "methods" and not path.name.startswith("_")
        for name in imported(tree)
        if name.startswith("methods.") and is_module(name) and not is_own(path, name)
    ]


def test_the_search_of_a_method_works_in_a_users_own_loop():
    """Rule 4: it imports the structure wing, the ground, and its own folder alone."""
    structure = {*GROUND, *WINGS["structure"]}
    assert not [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path.parts[0] == "methods" and path.name == "search.py"
        for name in imported(tree)
        if first(name) not in structure and not name.startswith(home(path))
    ]


# Rule 7. These ask things of others: torch.ops, named tuples, slots that may be empty, users' data, arrays.
FOREIGN = {
    "graph/operators.py": 1,
    "graph/attributes.py": 1,
    "data/readers.py": 2,
    "charts.py": 1,
}


def test_no_contract_is_probed():
    """Rule 7: a contract is a class; `hasattr` asks only things that are not ours."""
    asked = [place.split(":")[0] for place, call in every(ast.Call) if called(call) == "hasattr"]
    assert {place: asked.count(place) for place in asked} == FOREIGN


def is_own(path: Path, name: str) -> bool:
    """Whether a module under `methods` belongs to the method in `path`, or is what all methods share."""
    return name.split(".")[1].startswith("_") or (
        len(path.parts) == 3 and name.split(".")[1] == path.parts[1]
    )


def module(path: Path) -> str:
    """The dotted name of a file, without the leading "prunus."."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    path = Path(*name.split("."))
    return path.with_suffix(".py") in TREES or path / "__init__.py" in TREES


def is_face(name: str) -> bool:
    return Path(*name.split(".")) / "__init__.py" in TREES


def faces() -> list[str]:
    return [module(path) for path in TREES if path.name == "__init__.py" and len(path.parts) > 1]


def home(path: Path) -> str:
    """The room, or the method's folder, that a file stands in."""
    return ".".join(path.parent.parts)


def exported(face: str) -> list[str]:
    """The names that a face imports from its files."""
    tree = TREES[Path(*face.split(".")) / "__init__.py"]
    return [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("prunus.")
        for alias in node.names
    ]


def exported_as_file(face: str, name: str) -> bool:
    """Whether a face exports the file itself, not a thing of its name."""
    tree = TREES[Path(*face.split(".")) / "__init__.py"]
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == f"prunus.{face}"
        and name in [alias.name for alias in node.names]
        for node in tree.body
    )


def origin_of(name: str) -> str:
    """The file in which an imported name stands, followed through faces; a module is itself."""
    if is_module(name) and not is_face(name):
        return name
    parent, _, last = name.rpartition(".")
    if parent and is_face(parent) and not is_face(name):
        tree = TREES[Path(*parent.split(".")) / "__init__.py"]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and last in [
                alias.asname or alias.name for alias in node.names
            ]:
                return origin_of(f"{node.module.removeprefix('prunus.')}.{last}")
    return parent if parent and is_module(parent) and not is_module(name) else name


def first(name: str) -> str:
    """The room, or the file on the ground, that a dotted name begins with; the public names are `__init__`'s."""
    head = name.split(".")[0]
    return head if is_module(head) else "__init__"


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


def imported(tree: ast.Module) -> set[str]:
    """What a file imports of prunus, as "room.file.name" or "room.name", without the leading "prunus."."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the order"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
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


def test_no_test_imports_another_test():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                assert not any(name.split(".")[-1].startswith("test_") for name in names), path


HEAVY = "PIL accelerate datasets jinja2 pandas plotly rich scipy sklearn tyro".split()


def test_who_only_shrinks_waits_for_torch_alone():
    """Other libraries are imported where they are used."""
    program = (
        "import sys, prunus; prunus.trace, prunus.scores, prunus.select, prunus.shrink; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded.intersection(HEAVY)


def test_asking_for_help_reads_no_data_library():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "prunus", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "prunus.cli.program" in loaded
    assert not loaded.intersection("datasets pandas scipy sklearn timm torchvision".split())
