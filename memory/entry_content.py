"""The content of a memory entry: checked, sealed with the columns that are derived from it, and unsealed."""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

import structlog

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.errors import Invalid, Text
from memory.models import Entry, EntrySource, Tier
from memory.terms import hash_terms, is_printable, normalize

MAX_CONTENT_CHARS: Final = 4_000
MAX_KEY_CHARS: Final = 100

log = structlog.get_logger(__name__)


class EntryContent(NamedTuple):
    """The unsealed content of an entry. Only core entries have a key, and only proposals say what they replace."""

    content: str
    key: str | None = None
    replaces: uuid.UUID | None = None

    @property
    def searchable_text(self) -> str:
        """The text by whose words and vector the entry is found."""
        return f"{self.key}: {self.content}" if self.key else self.content


def validated(tier: Tier, content: str, key: str | None) -> EntryContent:
    """Return the content in its stored form. Raises Invalid, with the problem of each field."""
    problems: dict[str, list[str]] = {}
    content = content.strip()
    if not content or len(content) > MAX_CONTENT_CHARS or "\0" in content:
        problems["content"] = [Text("1 to {most} characters, none of them NUL.", most=MAX_CONTENT_CHARS)]
    if tier == Tier.CORE:
        key = " ".join((key or "").split())
        if not key or len(key) > MAX_KEY_CHARS or not is_printable(key):
            problems["key"] = [Text("1 to {most} printable characters.", most=MAX_KEY_CHARS)]
    elif key is not None:
        problems["key"] = [Text("Only core entries have a key.")]
    if problems:
        name, (problem, *_) = next(iter(problems.items()))
        raise Invalid(Text("{name}: {problem}", name=name, problem=Text.of(problem)), fields=problems)
    return EntryContent(content, key)


def set_content(entry: Entry, content: EntryContent, cipher: UserCipher) -> None:
    """Set the sealed value and the columns that are derived from it. The caller saves the entry."""
    value = {
        "content": content.content,
        "key": content.key,
        "replaces": content.replaces and str(content.replaces),
    }
    value = {name: given for name, given in value.items() if given is not None}
    Entry.sealed.seal_into(cipher, entry, value)
    entry.fingerprint = fingerprint_of(cipher, content)
    entry.terms = [] if entry.proposed else hash_terms(content.searchable_text, cipher)
    entry.key_hash = hash_key(cipher, content.key) if content.key is not None else None


def unseal_entry(entry: Entry, cipher: UserCipher) -> EntryContent:
    """Return an entry's content. Raises SealBroken if the row was altered or moved."""
    return unseal_content(entry.sealed, entry.pk, entry.tier, cipher)


def unseal_content(
    sealed: bytes | memoryview, entry_id: uuid.UUID, tier: str, cipher: UserCipher
) -> EntryContent:
    """Return the content of a row that was read without an instance. Raises SealBroken if it was altered or moved."""
    value = Entry.sealed.unseal(cipher, sealed, entry_id, tier)
    replaces = value.get("replaces")
    return EntryContent(value["content"], value.get("key"), uuid.UUID(replaces) if replaces else None)


def opened_at(source: EntrySource, cipher: UserCipher) -> list[dict[str, str]]:
    """Return `{table, id}` of the texts that had been read at a source and that the user did not write."""
    if source.foreign is None:
        return []
    try:
        opened: list[dict[str, str]] = EntrySource.foreign.unseal_from(cipher, source)
    except SealBroken:
        log.error("memory.seal_broken", entry_id=str(source.entry_id))
        return []
    return opened


def hash_key(cipher: UserCipher, key: str) -> bytes:
    """Return the hash that finds a core entry by its key, whatever the key's case and spacing."""
    return cipher.fingerprint(normalize(key), "memory key")


def fingerprint_of(cipher: UserCipher, content: EntryContent) -> bytes:
    return cipher.fingerprint(
        f"{normalize(content.key or '')}\0{normalize(content.content)}", "memory content"
    )
