"""Triggers by which tables queue the objects that their rows stop referring to, however a row ends."""

from __future__ import annotations


def queue_garbage_of(
    table: str, *, column: str = "object", owner: str = "NULL", on_update: bool = True
) -> str:
    """Return SQL for a migration: the trigger that queues the objects which a table's rows stop referring to.

    `owner` is an expression of the old row. Without `on_update` a row that hands its object on queues nothing.
    """
    events = f"DELETE OR UPDATE OF {column}" if on_update else "DELETE"
    unchanged = f"TG_OP = 'UPDATE' AND NEW.{column} IS NOT DISTINCT FROM OLD.{column}"
    guard = f"IF {unchanged} THEN RETURN NULL; END IF;" if on_update else ""
    return f"""
CREATE FUNCTION {table}_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {guard}
    INSERT INTO object_store_garbage (name, owner) VALUES (OLD.{column}, {owner}) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER {table}_garbage AFTER {events} ON {table}
    FOR EACH ROW WHEN (OLD.{column} IS NOT NULL) EXECUTE FUNCTION {table}_garbage();
"""  # noqa: S608  # names of ours
