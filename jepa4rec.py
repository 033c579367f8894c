"""Makes a checkout importable as the package ``jepa4rec``, and gives an installed one its version.

A module that has a ``__path__`` is a package to Python: ``jepa4rec.modeling_jepa4rec`` is the file of that name beside
this one, and its relative imports resolve. The model files stay flat at the root because that is the only layout in
which they travel with the weights (``trust_remote_code=True``). A wheel has them in a folder beside this file.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "jepa4rec"
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _HERE)]
__version__ = "0.1.0"
