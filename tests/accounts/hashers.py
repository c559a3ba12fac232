"""Password hashers of the tests: a fast one, and one that counts."""

from adiuva.accounts.hashers import Argon2id


class FastArgon2id(Argon2id):
    """Argon2id with the least work: every test makes its own users, and a password at full cost takes 30 ms of CPU."""

    time_cost = 1
    memory_cost = 8


class CountingArgon2id(Argon2id):
    """Counts how often a password was hashed."""

    hashed = 0

    def encode(self, password: str, salt: str) -> str:
        CountingArgon2id.hashed += 1
        return super().encode(password, salt)

    def verify(self, password: str, encoded: str) -> bool:
        CountingArgon2id.hashed += 1
        return super().verify(password, encoded)
