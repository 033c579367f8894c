"""The floor plan: which room may import which, as docs/CONTRIBUTING.md lists it, held against the imports."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

GUIDE = ROOT / "docs" / "CONTRIBUTING.md"
NOT_CODE = ("tests", "benchmarks", "results", "recipes", "docs")
MOST_FLOORS, MOST_ROOT_FILES = 6, 11
TRAVELLERS_MAY_IMPORT = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "safetensors", "tqdm"}
# faiss and datasets (for its index) are imported in a try, which transformers does not take for a requirement;
# embedding_seqrec.py is loaded by sentence-transformers alone, and no other file that travels imports it.
OPTIONAL = {"faiss", "datasets", "sentence_transformers"}


def floors() -> dict[str, int]:
    """Room -> floor, as the table says."""
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    return {room.rstrip("/"): int(floor) for floor, rooms in rows for room in re.findall(r"`([^`]+)`", rooms)}


FLOORS = floors()


def sources() -> list[Path]:
    paths = [path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith(".")]
    kept = [
        path for path in paths if path.relative_to(ROOT).parts[0] not in (*NOT_CODE, "build", "runs", "jepa4rec.py")
    ]
    return sorted(path for path in kept if (path.parent / "..").resolve() != ROOT / "serving" or path.parent == ROOT)


def room_of(module: tuple[str, ...]) -> str:
    """The room of a module below `jepa4rec`, `("training", "phases", "pairs")` for example."""
    if module[0] == "train_accelerate":
        return "train_accelerate.py"
    return module[0] if (ROOT / module[0]).is_dir() else "the model"


def imports(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line, module below `jepa4rec`) of every import of ours, in functions and under TYPE_CHECKING too."""
    package, found = path.relative_to(ROOT).parts[:-1], []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[1:] for alias in node.names if alias.name.startswith("jepa4rec.")]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [[*base, *node.module.split(".")]] if node.module else [[*base, a.name] for a in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jepa4rec":
            below = node.module.split(".")[1:]
            names = [below] if below else [[alias.name] for alias in node.names if alias.name != "__version__"]
        found += [(node.lineno, tuple(name)) for name in names]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = room_of(parts)
    for line, module in imports(path):
        target = room_of(module)
        assert room == target or FLOORS[target] < FLOORS[room], f"{path.name}:{line}: {room} imports {target}"
        assert room != "scripts" or target != "scripts", f"{path.name}:{line}: a script imports a script"


def test_the_house_has_few_floors_and_the_root_few_files():
    assert len(set(FLOORS.values())) <= MOST_FLOORS
    assert len(list(ROOT.glob("*.py"))) <= MOST_ROOT_FILES
    rooms = {room_of(path.relative_to(ROOT).with_suffix("").parts) for path in sources()}
    assert rooms == set(FLOORS)


def travelling() -> list[Path]:
    root = [path for path in ROOT.glob("*.py") if path.stem not in ("jepa4rec", "train_accelerate")]
    folders = [path for room in ("baselines", "serving") for path in (ROOT / room).glob("*.py")]
    return sorted(path for path in root + folders if path.stem != "__init__")


@pytest.mark.parametrize("path", travelling(), ids=lambda path: path.name)
def test_files_that_travel_import_only_their_neighbours_and_what_a_stranger_has(path):
    text = path.read_text(encoding="utf-8")
    neighbours = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and (path.parent / f"{node.module}.py").is_file(), f"{path.name}: {node.module}"
            neighbours.append(node.module)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for top in (name.partition(".")[0] for name in names):
                assert top in TRAVELLERS_MAY_IMPORT | OPTIONAL | set(sys.stdlib_module_names), f"{path.name}: {top}"
    # transformers finds relative imports by this expression, in docstrings too, and then misses the file.
    assert sorted(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)) == sorted(neighbours)


def test_files_that_travel_land_flat_under_names_of_their_own():
    names = [path.name for path in travelling()]
    assert len(names) == len(set(names))
