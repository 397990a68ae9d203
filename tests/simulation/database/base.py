"""SQLite as it is, but others come in between wherever they could in life, and transactions may fail.

A transaction of SQLite (BEGIN IMMEDIATE) has the database to itself, so that all interleavings of several processes
are those at its borders and between the statements outside of any. One connection serves everybody: whoever is in a
transaction is never interrupted.
"""

from typing import Any, Protocol

from django.db.backends.sqlite3 import base


class Surroundings(Protocol):
    """What happens around a transaction; each may raise what a process would meet there."""

    def before_statement(self) -> None: ...
    def before_commit(self) -> None: ...
    def after_commit(self) -> None: ...
    def after_transaction(self) -> None: ...


class DatabaseWrapper(base.DatabaseWrapper):
    surroundings: Surroundings | None = None

    def _cursor(self, name: str | None = None) -> Any:
        if self.surroundings and not self.in_atomic_block:
            self.surroundings.before_statement()
        return super()._cursor(name)  # type: ignore[misc]  # Django's, and in no stub

    def _commit(self) -> None:
        if self.surroundings:
            try:
                self.surroundings.before_commit()
            except BaseException:
                self._rollback()  # type: ignore[attr-defined]  # Django rolls back for errors of the database, not for a death
                raise
        super()._commit()  # type: ignore[misc]
        if self.surroundings:
            self.surroundings.after_commit()

    def set_autocommit(self, autocommit: bool, *args: Any, **options: Any) -> None:
        super().set_autocommit(autocommit, *args, **options)
        if self.surroundings and autocommit:
            self.surroundings.after_transaction()
