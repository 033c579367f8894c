"""Makes a checkout importable as the package ``jepa4rec``, and gives an installed one its version.

A module that has a ``__path__`` is a package to Python: ``jepa4rec.modeling_jepa4rec`` is the file of that name beside
this one, and its relative imports resolve. The model files stay flat at the root because that is the only layout in
which they travel with the weights (``trust_remote_code=True``). A wheel has them in a folder beside this file.

Whoever imports it may open checkpoints of ours with `AutoModel`, `AutoTokenizer` and `AutoConfig` and trust no code
beside them. The classes take seconds to import, so they are registered when transformers' own are, if ever.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "jepa4rec"
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _HERE)]
__version__ = "0.1.0"

_AUTO = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.pipelines",  # imports the others, and our models import it: it must be whole before them
)


class _Finder(MetaPathFinder):
    """Finds those modules and ours as ever, and looks after each whether our classes can be registered now."""

    def find_spec(self, name, path=None, target=None):
        if name not in _AUTO and not name.startswith("jepa4rec."):
            return None
        sys.meta_path.remove(self)  # else it would be asked again
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:  # a folder without __init__.py has none
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    def __init__(self, loader: Loader):
        self._loader = loader

    def __getattr__(self, name):  # `python -m` asks for the code
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(after=module.__name__)


def _register(after: str = "") -> None:
    """Unless a module is being imported whose own imports these are: it comes back here when it is whole."""
    names = [name for name in list(sys.modules) if name in _AUTO or name.startswith("jepa4rec.")]
    specs = [sys.modules[name].__spec__ for name in names if name != after]
    begun = any(getattr(spec, "_initializing", False) for spec in specs)
    if not begun and any(name in sys.modules for name in _AUTO):
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        importlib.import_module("jepa4rec.hub.opening")


sys.meta_path.insert(0, _Finder())
_register()
