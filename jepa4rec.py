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

_AUTO = ("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")


class _Registering(MetaPathFinder, Loader):
    """Imports a module of transformers as it is, then what registers our classes with it."""

    def find_spec(self, name, path=None, target=None):
        if name not in _AUTO:
            return None
        sys.meta_path.remove(self)  # once, and so that the module is found as ever
        spec = find_spec(name)
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def _register() -> None:
    own = [module.__spec__ for name, module in list(sys.modules.items()) if name.startswith("jepa4rec.")]
    if not any(getattr(spec, "_initializing", False) for spec in own):  # a module of ours that asks for transformers
        importlib.import_module("jepa4rec.hub.opening")


if any(name in sys.modules for name in _AUTO):
    _register()
else:
    sys.meta_path.insert(0, _Registering())
