from adiuva.accounts.hashers import Argon2id


class Quick(Argon2id):
    """As good as ours to whoever signs in. Each test makes users of its own, at 30 ms of CPU a password otherwise."""

    time_cost = 1
    memory_cost = 8


class Counting(Argon2id):
    """Counts how often a password was hashed."""

    hashed = 0

    def encode(self, password: str, salt: str) -> str:
        Counting.hashed += 1
        return super().encode(password, salt)

    def verify(self, password: str, encoded: str) -> bool:
        Counting.hashed += 1
        return super().verify(password, encoded)
