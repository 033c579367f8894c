"""What every test shares: no network, few threads, one tiny tokenizer and model, and the way to real data."""

import gc
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

# Libraries read these at import, so they are set before any of them is loaded.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="0"
)
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
_HF_HOME = tempfile.TemporaryDirectory(prefix="jepa4rec-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_MODULES_CACHE"] = str(Path(_HF_HOME.name) / "modules")

ROOT = Path(__file__).resolve().parent.parent

TINY_ITEMS = [
    {"title": "Ceramic teapot", "brand": "Hearth & Vale", "category": "Kitchen"},
    {"title": "Cast iron teapot", "brand": "Hearth & Vale", "category": "Kitchen"},
    {"title": "Green tea, loose leaf", "brand": "Leafwell", "category": "Grocery"},
    {"title": "Black tea, 50 bags", "brand": "Leafwell", "category": "Grocery"},
    {"title": "Honey dipper", "brand": "Oak & Ash", "category": "Kitchen"},
    {"title": "Trail running shoes", "brand": "Northpath", "category": "Sport"},
    {"title": "Running socks, pair", "brand": "Northpath", "category": "Sport"},
    {"title": "Head torch, rechargeable", "brand": "Lumo", "category": "Outdoor"},
    {"title": "Two-person tent", "brand": "Northpath", "category": "Outdoor"},
    {"title": "Camping stove", "brand": "Lumo", "category": "Outdoor"},
    {"title": "Watercolour paint set", "brand": "Quill", "category": "Art"},
    {"title": "Sketch book A5", "brand": "Quill", "category": "Art"},
]


# How the program of a stranger begins: the tests' own environment may have the package installed, a stranger has not.
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jepa4rec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def pytest_ignore_collect(collection_path, config):
    """Of the fast set, leave out files that are slow as a whole before they are imported: that alone takes seconds."""
    if config.option.markexpr == "not slow" and collection_path.name.startswith("test_"):
        return "\npytestmark = pytest.mark.slow(" in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items):
    """What reads real files whole is slow. Processes are dealt whole files: those that are slow as a whole go first,
    so that none is left for the end, where the others have nothing to do; then the larger of the others."""
    for item in items:
        if "real_data" in item.fixturenames:
            item.add_marker(pytest.mark.slow("reads real files whole"))
    sizes = Counter(item.path for item in items)

    def place(item) -> tuple:
        slow, size = hasattr(item.module, "pytestmark"), sizes[item.path]
        return (0, size) if slow else (1, -size)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """Tests share the machine with others; results must not depend on how many cores it has. What was imported stays:
    the collector need not walk through all of it after each phase of a training."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gc.freeze()
    yield
    gc.unfreeze()  # or extensions find leaks where the process ends


TRAINERS = ("train_accelerate", "jepa4rec.train_accelerate")  # one file, which tests import by both names


@pytest.fixture(scope="session", autouse=True)
def _no_estimates():
    """A run begins by measuring how long it will take, which is a quarter of a tiny run: tests ask for `estimates`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in sys.modules.keys() & TRAINERS:
            patch.setattr(sys.modules[name], "estimate", lambda *_: {})
        yield


@pytest.fixture(scope="module", autouse=True)
def _own_precision():
    """Accelerate keeps the precision of a process's first training: that of another file's tests is forgotten, since
    "auto" is another one on a processor with bfloat16."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def estimates(monkeypatch):
    """Runs say how long they will take, as they do for everybody else."""
    from jepa4rec.training.estimate import estimate

    for name in sys.modules.keys() & TRAINERS:
        monkeypatch.setattr(sys.modules[name], "estimate", estimate)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real files: $SEQREC_DATA, else ``shared/data`` beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("SEQREC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (name the folder in SEQREC_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_file(real_data):
    """``real_file("online_retail/online_retail.csv")`` -> its path; skips naming the file that is missing."""

    def find(name: str) -> Path:
        path = real_data / name
        if not path.exists():
            pytest.skip(f"no real data: {path} is missing")
        return path

    return find


@pytest.fixture
def tiny_items() -> list[dict[str, str]]:
    """Twelve items of a little shop, three attributes each."""
    return [dict(item) for item in TINY_ITEMS]


@pytest.fixture(scope="session")
def tiny_backend():
    """A WordPiece tokenizer learned from the twelve items' texts, the same in every run: a plain fast tokenizer."""
    from jepa4rec.training.start import train_wordpiece

    return train_wordpiece([text for item in TINY_ITEMS for pair in item.items() for text in pair], vocab_size=300)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_backend):
    """The twelve items' WordPiece as an ItemSentTokenizer with the default limits."""
    from jepa4rec.tokenization_itemsent import ItemSentTokenizer

    return ItemSentTokenizer.wrap(tiny_backend)


@pytest.fixture
def tiny_config(tiny_backend):
    """A new BERT-like configuration, two layers of width 32, that fits ``tiny_tokenizer``."""
    from jepa4rec.configuration_jepa4rec import Jepa4RecConfig

    return Jepa4RecConfig(
        vocab_size=len(tiny_backend),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        pad_token_id=tiny_backend.pad_token_id,
    )
