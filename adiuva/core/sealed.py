"""Sealed model fields and sealed values in Redis: encrypted for one user, and bound to the place where they are kept.

The associated data of a sealed column is (owner, table, row, column). The field knows the table and the column; the row
is its primary key, or the columns that `bound_to` names. A value that was moved to another place raises SealBroken.

    class Message(models.Model):
        conversation = models.ForeignKey(Conversation, models.CASCADE)
        seq = models.PositiveIntegerField()
        sealed = SealedJSONField(bound_to=("conversation_id", "seq"))

    cipher = cipher_for(user_id)                                # once for all values of a user
    Message.sealed.seal_into(cipher, message, {"text": "hi"})   # sets the attribute; save as usual
    Message.sealed.unseal_from(cipher, message)                 # {"text": "hi"}

Rows without an instance (`values_list`, raw SQL, `update`) name the row's parts in the order of `bound_to`:

    sealed = Message.sealed.seal(cipher, {"text": "hi"}, conversation_id, seq)
    Message.sealed.unseal(cipher, sealed, conversation_id, seq)

On an instance the attribute is the column's content: sealed bytes, or None. On the class it is the field. Renaming a
table or a column makes values that were sealed in it unreadable.

A value in Redis is bound to its key, and to its `part` where one key holds several:

    await redis.set(key, seal_for_redis(cipher, key, value))
    value = unseal_from_redis(cipher, key, await redis.get(key))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

import orjson
from django.core import checks
from django.db import models
from django.db.models.query_utils import DeferredAttribute

from adiuva.core.crypto import UserCipher

V = TypeVar("V")

if TYPE_CHECKING:
    _BinaryField = models.BinaryField[bytes | memoryview | None, Any]
else:
    _BinaryField = models.BinaryField


class _SealedAttribute(DeferredAttribute):
    def __get__(self, instance: Any, cls: Any = None) -> Any:
        return self.field if instance is None else super().__get__(instance, cls)


class _SealedField(_BinaryField, Generic[V]):
    """Column of sealed bytes. Subclasses say how a value becomes bytes."""

    descriptor_class = _SealedAttribute

    def __init__(self, *args: Any, bound_to: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("editable", False)
        super().__init__(*args, **kwargs)
        self.bound_to = tuple(bound_to)

    def seal(self, cipher: UserCipher, value: V, *row: object) -> bytes:
        """Return the bytes to keep in this column of the row. ValueError if the row is not fully named."""
        if len(row) != len(self.bound_to) or None in row:
            raise ValueError(f"{self} is bound to {', '.join(self.bound_to)}")
        return cipher.cipher.seal(self._dump(value), cipher.place(self._table, *row, self.column))

    def unseal(self, cipher: UserCipher, sealed: bytes | memoryview, *row: object) -> V:
        """Return the value. Raises SealBroken if the bytes were altered, or sealed for another place or owner."""
        return self._load(cipher.cipher.unseal(bytes(sealed), cipher.place(self._table, *row, self.column)))

    def seal_into(self, cipher: UserCipher, instance: models.Model, value: V) -> None:
        """Set the instance's attribute; the caller saves it. ValueError if a column it is bound to is not set yet."""
        setattr(instance, self.attname, self.seal(cipher, value, *self._row_of(instance)))

    def unseal_from(self, cipher: UserCipher, instance: models.Model) -> V:
        """Return the value of an instance with a column that is not NULL. Raises SealBroken like `unseal`."""
        return self.unseal(cipher, getattr(instance, self.attname), *self._row_of(instance))

    def _row_of(self, instance: models.Model) -> list[object]:
        return [getattr(instance, name) for name in self.bound_to]

    def _dump(self, value: V) -> bytes:
        raise NotImplementedError

    def _load(self, plain: bytes) -> V:
        raise NotImplementedError

    # ── Django ──────────────────────────────────────────────────────────────────────────────────────────

    def contribute_to_class(self, cls: type[models.Model], name: str, private_only: bool = False) -> None:
        super().contribute_to_class(cls, name, private_only)
        # Django keeps the attribute of an abstract base, which would give that class's field instead of this one.
        setattr(cls, self.attname, self.descriptor_class(self))
        models.signals.class_prepared.connect(self._prepare, sender=cls)

    def _prepare(self, sender: type[models.Model], **_: Any) -> None:
        meta = sender._meta
        self._table = meta.db_table
        if not self.bound_to and meta.pk is not None:
            self.bound_to = (meta.pk.attname,)

    def deconstruct(self) -> Any:
        """Describe the field to migrations as a plain BinaryField: sealing is not the database's business."""
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.BinaryField", args, kwargs

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        known = {field.attname for field in self.model._meta.concrete_fields} - {self.attname}
        unknown = [name for name in self.bound_to if name not in known]
        wrong = [checks.Error(f"it is bound to {name!r}, which is no column", obj=self) for name in unknown]
        return [*super().check(**kwargs), *wrong]

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: Any) -> Self: ...
        @overload
        def __get__(self, instance: models.Model, owner: Any) -> Any: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...


class SealedTextField(_SealedField[str]):
    """Sealed text. Lone surrogates are kept."""

    def _dump(self, value: str) -> bytes:
        return value.encode("utf-8", "surrogatepass")

    def _load(self, plain: bytes) -> str:
        return plain.decode("utf-8", "surrogatepass")


class SealedJSONField(_SealedField[Any]):
    """Sealed value of any type that orjson writes."""

    def _dump(self, value: Any) -> bytes:
        return orjson.dumps(value)

    def _load(self, plain: bytes) -> Any:
        return orjson.loads(plain)


class SealedBytesField(_SealedField[bytes]):
    """Sealed bytes."""

    def _dump(self, value: bytes) -> bytes:
        return value

    def _load(self, plain: bytes) -> bytes:
        return plain


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────


def seal_for_redis(cipher: UserCipher, key: str, value: Any, *, part: object = "") -> bytes:
    """Seal a value that orjson can write, for one key of Redis and one part of it (a list's index, a field)."""
    return cipher.cipher.seal(orjson.dumps(value), cipher.place("redis", key, part))


def unseal_from_redis(cipher: UserCipher, key: str, sealed: bytes, *, part: object = "") -> Any:
    """Return the value. Raises SealBroken if it was altered, or sealed for another key, part or owner."""
    return orjson.loads(cipher.cipher.unseal(sealed, cipher.place("redis", key, part)))
