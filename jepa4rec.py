"""Makes a checkout importable as the package ``jepa4rec``.

A module that has a ``__path__`` is a package to Python: ``jepa4rec.modeling_jepa4rec`` is the file of that name beside
this one, and its relative imports resolve. The model files stay flat at the root because that is the only layout in
which they travel with the weights (``trust_remote_code=True``).
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
__version__ = "0.1.0"
