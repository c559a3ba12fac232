"""`python -m adiuva.local_embeddings [--port N]`: serves the local embedding model until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import sys

from adiuva.core.openai_server import run
from adiuva.local_embeddings import DEFAULT_PORT, WeightsMissing, find_file


def main() -> None:
    # More threads gain little for one short text and take the cores of other processes. numpy reads this at import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from adiuva.local_embeddings.encoder import Encoder
    from adiuva.local_embeddings.server import create_application
    from adiuva.local_embeddings.weights import open_weights

    try:
        encoder = Encoder(open_weights(find_file()))
    except WeightsMissing as error:
        sys.exit(f"the local embedding model cannot be served: {error}")
    run(
        create_application(encoder),
        module="adiuva.local_embeddings",
        description=__doc__ or "",
        default_port=DEFAULT_PORT,
    )


if __name__ == "__main__":
    main()
