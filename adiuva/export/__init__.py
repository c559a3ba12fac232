"""Archive of a whole account: its owner asks for it, the worker makes it, and it stays sealed until it is fetched."""
