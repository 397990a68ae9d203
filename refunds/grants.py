"""What the application's database role may do on PostgreSQL. What is not listed here, it may not.

The owner of the tables migrates, and grants the rights (`manage.py grant_app_role ROLE`). The site and the workers
connect as a role that owns nothing. The guards (triggers) refuse what they refuse to every role. The rights here keep
the application's role from going around them: it can't write the counters or sealed entries, empty a table, or disable
a trigger.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.apps import apps
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Model
from psycopg import sql

type Site = dict[str, tuple[str, ...]]  # table -> its columns that can be written


class AllExcept(frozenset[str]):
    """All columns of a table except these."""


@dataclass(frozen=True)
class Rights:
    """What the role may do with the rows of a table besides reading them.

    `change` has the columns that it may update. `add` is True or, where it may not set all columns, AllExcept.
    """

    add: bool | AllExcept = False
    change: AllExcept | tuple[str, ...] = ()
    remove: bool = False
    count: bool = False  # may use the sequence of its ids, where they are no identity column


READ = Rights()
ADD = Rights(add=True)
ANY = Rights(add=True, change=AllExcept(), remove=True)
QUEUE = Rights(add=True, change=AllExcept(), remove=True, count=True)

# A table without a line here is refused by grant(), and fails tests/test_grants.py.
RIGHTS = {
    # The mirror: the role may update what Smartpay shows, but not the ids that tie rows together, and not the counters.
    # Triggers move the counters; their functions run as the owner.
    "refunds_order": Rights(
        add=True,
        change=AllExcept({"key", "order_id", "order_id_reversed", "captured", "refunded", "reserved"}),
    ),
    "refunds_fragment": Rights(add=True, remove=True),
    "refunds_payment": Rights(
        add=True, change=AllExcept({"id", "order_id", "currency", "refunded", "reserved"})
    ),
    "refunds_smartpayrefund": Rights(add=True, change=AllExcept({"id", "payment_id"})),
    "refunds_synccursor": Rights(add=True, change=AllExcept({"collection"})),
    "refunds_webhookevent": Rights(add=True, change=("caught_up_at",)),
    # The ledger. save() writes all columns of a row, also unchanged ones. The guards decide which of them may change.
    "refunds_refund": Rights(add=True, change=AllExcept({"id"})),
    "refunds_attempt": Rights(add=True, change=AllExcept({"id"})),
    "refunds_evidence": ADD,
    "refunds_reviewdecision": ADD,
    "refunds_control": Rights(add=True, change=AllExcept({"one"})),
    "refunds_bulk": Rights(
        add=True,
        change=(
            "state",
            "total",
            "similar_reason",
            "started_at",
            "decided_by_id",
            "decided_at",
            "decision_note",
            "paused_by_id",
            "ended_at",
            "lease_until",
            "lease_owner",
        ),
    ),
    "refunds_bulkline": Rights(
        add=True, change=("payment_id", "amount", "reason", "refundable", "is_similar", "state", "problem")
    ),
    # Reconciliation: when a day is compared again, its differences are replaced.
    "refunds_reconciliation": Rights(add=True, change=AllExcept({"day"})),
    "refunds_difference": Rights(add=True, remove=True),
    "refunds_jobrun": Rights(add=True, change=("ended_at", "outcome", "error"), remove=True),
    # The trail: an entry may be sealed and never otherwise updated. The role may not choose ids, because entries are
    # sealed in their order: after an entry with an id far ahead, all others would stay unsealed. A guard refuses to
    # insert an entry with a seal.
    "refunds_auditentry": Rights(add=AllExcept({"id"}), change=("seal", "previous_seal")),
    "refunds_search": Rights(add=True, remove=True),
    "refunds_savedsearch": Rights(add=True, change=("search_id", "filters"), remove=True),
    "refunds_notice": ADD,
    # People, updated from the identity provider at each sign-in. Only `migrate` writes what a role may do.
    "dashboard_user": Rights(add=True, change=("name", "email", "is_staff", "is_superuser", "last_login")),
    "dashboard_user_groups": Rights(add=True, remove=True),
    "dashboard_user_user_permissions": READ,
    "auth_group": READ,
    "auth_group_permissions": READ,
    "auth_permission": READ,
    "dashboard_sessionindex": ANY,
    "dashboard_seenlogouttoken": Rights(add=True, remove=True),
    "dashboard_breakglass": Rights(add=True, change=("expires_at", "used_at")),
    "dashboard_count": Rights(add=True, change=("began", "times"), remove=True),
    "django_session": ANY,
    # Procrastinate's tables. Its functions run with the rights of their caller.
    "procrastinate_jobs": QUEUE,
    "procrastinate_events": QUEUE,
    "procrastinate_periodic_defers": QUEUE,
    "procrastinate_workers": Rights(add=True, change=("last_heartbeat",), remove=True),
    # Django's own.
    "django_admin_log": READ,
    "django_content_type": READ,
    "django_migrations": READ,  # /readyz
}
# Only Procrastinate's sequences need a right: other ids are identity columns, for which the right to insert is enough.
# No function needs one: a trigger calls its function without such a right, and Procrastinate's are open to PUBLIC.


class NotGranted(Exception):
    """The rights could not be granted, or the role would have others besides. Nothing was changed."""


def tables() -> Site:
    """Return the site's tables with those of their columns that can be written."""
    models: list[type[Model]] = [*apps.get_models(include_auto_created=True), MigrationRecorder.Migration]
    return {
        model._meta.db_table: tuple(
            str(field.column) for field in model._meta.concrete_fields if not field.generated
        )
        for model in models
    }


def rights(table: str, columns: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield PostgreSQL's privileges of the role on a table, each with its columns; () for the whole table."""
    yield "SELECT", ()
    add, change = RIGHTS[table].add, RIGHTS[table].change
    if add:
        yield "INSERT", _columns_except(add, columns) if isinstance(add, AllExcept) else ()
    changed = _columns_except(change, columns) if isinstance(change, AllExcept) else change
    if changed:
        yield "UPDATE", changed
    if RIGHTS[table].remove:
        yield "DELETE", ()


def _columns_except(left_out: AllExcept, columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(column for column in columns if column not in left_out)


def grant(role: str) -> int:
    """Grant the role RIGHTS and revoke all others on the site's tables; return the number of tables.

    The owner of the tables has to call this after each migration. Called again, it changes nothing.

    Raises: NotGranted.
    """
    if connection.vendor != "postgresql":
        raise NotGranted(f"Only PostgreSQL has roles; this database is {connection.vendor}.")
    site = tables()
    if unknown := site.keys() ^ RIGHTS.keys():
        raise NotGranted(
            f"refunds/grants.py and the tables of the site differ: {', '.join(sorted(unknown))}."
        )
    with transaction.atomic(), connection.cursor() as cursor:
        _check_tables(cursor, site)
        _check_role(cursor, role, site)
        for statement in _statements(cursor, role, site):
            cursor.execute(statement.as_string())
        if differing := _held(cursor, role, site) ^ _meant(cursor, site):
            raise NotGranted(
                f"Through PUBLIC or another role, {role} has other rights than those of refunds/grants.py: "
                f"{', '.join(sorted(' '.join(each).strip() for each in differing))}."
            )
    return len(site)


def _statements(cursor: CursorWrapper, role: str, site: Site) -> Iterator[sql.Composed]:
    to = sql.Identifier(role)
    cursor.execute("SELECT current_database(), current_schema()")
    database, schema = cursor.fetchone()
    yield sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), to)
    yield sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), to)
    for sequence, table in _sequences(cursor, site).items():
        yield sql.SQL("REVOKE ALL ON SEQUENCE {} FROM {}").format(sql.Identifier(schema, sequence), to)
        if RIGHTS[table].count:
            yield sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(sql.Identifier(schema, sequence), to)
    for table, columns in site.items():
        there = sql.Identifier(schema, table)
        yield sql.SQL("REVOKE ALL ON TABLE {} FROM {}").format(there, to)  # and on its columns
        for privilege, of in rights(table, columns):
            limit = (
                sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, of))) if of else sql.SQL("")
            )
            yield sql.SQL("GRANT {}{} ON TABLE {} TO {}").format(sql.SQL(privilege), limit, there, to)


# --- What has to hold before, and what holds afterwards ---------------------------------------------------------

OURS = (
    "relname = ANY(%(tables)s) "
    "AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
)

# Privileges that let a role bypass RIGHTS, each with a sentence for people. If the role has any of them, grant()
# refuses.
TOO_MUCH = {
    "rolsuper": "is a superuser",
    "rolcreaterole": "may make roles, and itself a member of them",
    "rolreplication": "may copy the whole server",
    f"EXISTS (SELECT 1 FROM pg_class WHERE {OURS} AND pg_has_role(role.oid, relowner, 'MEMBER'))": (  # noqa: S608
        "owns the tables, or may become who does"
    ),
    "has_schema_privilege(role.oid, current_schema(), 'CREATE')": "may create in the schema of the tables",
    "has_database_privilege(role.oid, current_database(), 'CREATE')": "may create schemas",
    "has_parameter_privilege(role.oid, 'session_replication_role', 'SET')": "may put triggers to sleep",
    "pg_has_role(role.oid, 'pg_execute_server_program', 'MEMBER')": "may run programs on the server",
    "pg_has_role(role.oid, 'pg_write_server_files', 'MEMBER')": "may write files on the server",
}


def _check_tables(cursor: CursorWrapper, site: Site) -> None:
    cursor.execute(
        f"SELECT relname, pg_has_role(relowner, 'USAGE') FROM pg_class WHERE {OURS}",  # noqa: S608
        {"tables": list(site)},
    )
    found = dict(cursor.fetchall())
    if missing := site.keys() - found:
        raise NotGranted(f"Migrate first: there is no {', '.join(sorted(missing))}.")
    if not all(found.values()):
        raise NotGranted(
            "Only the owner of the tables can give rights to them; this connection is not theirs."
        )


def _check_role(cursor: CursorWrapper, role: str, site: Site) -> None:
    cursor.execute(
        f"SELECT {', '.join(TOO_MUCH)} FROM pg_roles AS role WHERE rolname = %(role)s",  # noqa: S608
        {"role": role, "tables": list(site)},
    )
    found = cursor.fetchone()
    if found is None:
        raise NotGranted(f"There is no role {role}. Somebody who may make roles has to: CREATE ROLE … LOGIN.")
    if why := [words for words, holds in zip(TOO_MUCH.values(), found, strict=True) if holds]:
        raise NotGranted(f"{role} can't be the application's role: it {'; it '.join(why)}.")


def _sequences(cursor: CursorWrapper, site: Site) -> dict[str, str]:
    """Return the sequences that number the rows of the tables, each with its table."""
    cursor.execute(
        "SELECT sequence.relname, counted.relname FROM pg_class AS sequence JOIN pg_depend ON objid = sequence.oid "  # noqa: S608
        "AND classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i') "
        "JOIN pg_class AS counted ON counted.oid = refobjid "
        f"WHERE sequence.relkind = 'S' AND refobjid IN (SELECT oid FROM pg_class WHERE {OURS})",
        {"tables": list(site)},
    )
    return dict(cursor.fetchall())


def _meant(cursor: CursorWrapper, site: Site) -> set[tuple[str, str, str]]:
    """Return what the role should have: (privilege, table or sequence, column or "")."""
    meant = {
        (privilege, table, column)
        for table, columns in site.items()
        for privilege, of in rights(table, columns)
        for column in of or ("",)
    }
    counted = {name for name, table in _sequences(cursor, site).items() if RIGHTS[table].count}
    return meant | {("USAGE", sequence, "") for sequence in counted}


def _held(cursor: CursorWrapper, role: str, site: Site) -> set[tuple[str, str, str]]:
    """Return what the role has, directly or through another role: (privilege, table or sequence, column or "")."""
    cursor.execute(
        "SELECT privilege, relname, '' FROM pg_class, "  # noqa: S608
        "unnest(ARRAY['SELECT', 'INSERT', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege "
        f"WHERE {OURS} AND has_table_privilege(%(role)s, pg_class.oid, privilege) "
        "UNION ALL SELECT privilege, relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid, "
        f"unnest(ARRAY['INSERT', 'UPDATE']) AS privilege WHERE {OURS} AND attnum > 0 AND NOT attisdropped "
        "AND has_column_privilege(%(role)s, pg_class.oid, attnum, privilege) "
        "AND NOT (privilege = 'INSERT' AND has_table_privilege(%(role)s, pg_class.oid, privilege))",
        {"role": role, "tables": list(site)},
    )
    held = {(str(privilege), str(table), str(column)) for privilege, table, column in cursor.fetchall()}
    cursor.execute(
        "SELECT privilege, relname FROM pg_class, unnest(ARRAY['USAGE', 'UPDATE']) AS privilege "  # noqa: S608
        f"WHERE {OURS} AND has_sequence_privilege(%(role)s, pg_class.oid, privilege)",
        {"role": role, "tables": list(_sequences(cursor, site))},
    )
    return held | {(str(privilege), str(sequence), "") for privilege, sequence in cursor.fetchall()}
