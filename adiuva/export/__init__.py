"""The archive of a whole account: asked for by its owner, made in the worker, sealed until it is fetched."""
