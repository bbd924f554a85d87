"""The house rules, read off the source: who may import whom, sizes, docstrings, what is not done here.

CONTRIBUTING.md states the seven rules in words; the numbers below are theirs.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TREES = {
    path.relative_to(ROOT / "prunus"): ast.parse(path.read_text())
    for path in sorted((ROOT / "prunus").rglob("*.py"))
}
MAX_LINES, MAX_README_LINES = 420, 150
MAX_SHELF_FILES, MAX_ROOMS = 10, 20

# A room may import the ground, the rooms to its left in its wing, and those of the wings that its wing stands on.
ORDER = (
    "graph < scores < selection < surgery < gates < sparse < export < latency | zoo < data < train < recover | "
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
GROUND = "errors files progress options specs machine charts metrics".split()
FRONT_DOOR = ("__init__", "__main__")
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


def test_methods_do_not_know_each_other():
    assert not [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path.parts[0] == "methods" and not path.name.startswith("_")
        for name in imported(tree)
        if name.startswith("methods.") and is_module(name) and not is_own(path, name)
    ]


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
