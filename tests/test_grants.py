"""The application's own database role: the whole product works with its rights, and nothing else does."""

import uuid
from collections.abc import Iterator
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from psycopg import sql

from dashboard import sso
from dashboard.models import SessionIndex, User
from dashboard.oidc_provider import SignInFailed
from refunds import grants, scanning, sealing, services, smartpay
from refunds.models import (
    AuditEntry,
    Control,
    Order,
    Payment,
    Refund,
    ReviewDecision,
    Search,
    SmartpayRefund,
    WebhookEvent,
)
from tests.conftest import Clock, decisions, guards, sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh
from tests.test_services import at_smartpay, mirrored, refund, work

State = Refund.State
PASSWORD = "made-up"
QUEUE = {
    f"procrastinate_{name}" for name in ("jobs", "events", "periodic_defers", "workers")
}  # PostgreSQL has it
STRANGE = 'app "of; % '  # a name that has to be quoted; the database's name is added, for tests that run beside these


def run(statement: str, role: str) -> None:
    """As the owner."""
    names = {"role": role, "owner": connection.settings_dict["USER"]}
    quoted = {name: sql.Identifier(value) for name, value in names.items()}
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(**quoted).as_string())


def grant(role: str) -> str:
    told = StringIO()
    call_command("grant_app_role", role, stdout=told)
    return told.getvalue()


@pytest.fixture(scope="module")
def role(django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """The application's role, with its rights; for these tests only."""
    name = STRANGE + str(connection.settings_dict["NAME"])
    with django_db_blocker.unblock():
        with connection.cursor() as cursor:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            if cursor.fetchone() == (False,):  # only with a server of the developer's own
                pytest.skip("making the roles that have to be refused takes a superuser")
        run(f"CREATE ROLE {{role}} LOGIN PASSWORD '{PASSWORD}'", name)
        grant(name)
        connection.close()
    yield name
    with django_db_blocker.unblock():
        run("DROP OWNED BY {role}", name)
        run("DROP ROLE {role}", name)


def held(role: str) -> tuple[list[Any], ...]:
    """Every right that the catalogue has for the role, on tables, columns, schemas and databases."""
    found = []
    with connection.cursor() as cursor:
        for catalogue, name, rights in (
            ("pg_class", "relname", "relacl"),
            ("pg_attribute", "attrelid::regclass || '.' || attname", "attacl"),
            ("pg_namespace", "nspname", "nspacl"),
            ("pg_database", "datname", "datacl"),
        ):
            cursor.execute(
                f"SELECT {name}, privilege_type, is_grantable FROM {catalogue}, aclexplode({rights}) "  # noqa: S608
                "WHERE grantee = (SELECT oid FROM pg_roles WHERE rolname = %s) ORDER BY 1, 2",
                [role],
            )
            found.append(cursor.fetchall())
    return tuple(found)


# --- The table of rights ------------------------------------------------------------------------------------


def test_every_table_has_its_rights(db: None) -> None:
    """Whoever adds a table says in refunds/grants.py what the application may do with it."""
    here = {table for table in grants.RIGHTS if connection.vendor == "postgresql" or table not in QUEUE}
    assert set(connection.introspection.table_names()) == here
    for table in here:
        assert set(grants.RIGHTS[table].change) <= set(grants.tables()[table])


@pytest.mark.sqlite
def test_sqlite_has_no_roles(db: None) -> None:
    with pytest.raises(CommandError, match="Only PostgreSQL has roles; this database is sqlite"):
        grant("app")


@pytest.mark.postgresql
def test_done_again_it_changes_nothing(db: None, role: str) -> None:
    before = held(role)

    assert grant(role) == f"{role}: the rights of refunds/grants.py, on {len(grants.RIGHTS)} tables\n"

    assert held(role) == before


@pytest.mark.postgresql
def test_what_is_too_much_is_taken_back(db: None, role: str) -> None:
    before = held(role)
    for right in ("TRUNCATE, TRIGGER", "UPDATE", "UPDATE (refunded)", "DELETE"):
        run(f"GRANT {right} ON refunds_payment TO {{role}}", role)
    run("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}", role)

    grant(role)

    assert held(role) == before


@pytest.mark.postgresql
def test_role_has_to_be_there(db: None) -> None:
    with pytest.raises(CommandError, match="There is no role nobody"):
        grant("nobody")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ALTER ROLE {role} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {role} CREATEROLE", "may make roles"),
        ("ALTER ROLE {role} REPLICATION", "may copy the whole server"),
        ("GRANT {owner} TO {role}", "owns the tables, or may become who does"),
        ("ALTER TABLE refunds_evidence OWNER TO {role}", "owns the tables, or may become who does"),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "may create in the schema of the tables"),
        ("GRANT SET ON PARAMETER session_replication_role TO {role}", "may put triggers to sleep"),
        ("GRANT pg_execute_server_program TO {role}", "may run programs on the server"),
        ("GRANT pg_write_server_files TO {role}", "may write files on the server"),
        ("GRANT pg_write_all_data TO {role}", "other rights than .*DELETE refunds_auditentry, .*refunded"),
        (
            "GRANT INSERT (id) ON refunds_auditentry TO PUBLIC",
            "other rights than .*: INSERT refunds_auditentry id.$",
        ),
        ("GRANT DELETE ON refunds_refund TO PUBLIC", "other rights than .*: DELETE refunds_refund.$"),
    ],
)
@pytest.mark.postgresql
def test_role_that_could_do_more_all_the_same_is_refused(
    db: None, role: str, statement: str, words: str
) -> None:
    run(statement, role)

    with pytest.raises(CommandError, match=words):
        grant(role)


@pytest.mark.postgresql
def test_table_without_rights_is_refused(db: None, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(grants.RIGHTS, "refunds_evidence")

    with pytest.raises(CommandError, match="the tables of the site differ: refunds_evidence"):
        grant(role)


@pytest.mark.postgresql
def test_tables_have_to_be_there(db: None, role: str) -> None:
    run("ALTER TABLE refunds_evidence RENAME TO elsewhere", role)

    with pytest.raises(CommandError, match="Migrate first: there is no refunds_evidence"):
        grant(role)


@pytest.mark.postgresql
def test_only_the_owner_gives_rights(db: None, role: str) -> None:
    run("SET LOCAL ROLE {role}", role)

    with pytest.raises(CommandError, match="Only the owner of the tables can give rights"):
        grant(role)


# --- What it may not ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(role: str) -> Iterator[psycopg.Connection]:
    """A connection of the application's."""
    there = connection.settings_dict
    with psycopg.connect(
        host=there["HOST"] or None,
        port=there["PORT"] or None,
        dbname=there["NAME"],
        user=role,
        password=PASSWORD,
        autocommit=True,
    ) as app:
        yield app


def refused(app: psycopg.Connection, statement: str) -> bool:
    """Whether the role has no right to it: "permission denied", "must be owner". What works is undone."""
    try:
        with app.transaction(force_rollback=True):
            app.execute(statement)
    except (
        psycopg.errors.InsufficientPrivilege,  # a guard would say something else
        psycopg.errors.GeneratedAlways,  # nobody writes that column
    ):
        return True
    return False


@pytest.mark.postgresql
@pytest.mark.parametrize("table", grants.RIGHTS)
def test_role_may_with_each_table_what_is_written_and_nothing_else(
    app: psycopg.Connection, table: str
) -> None:
    rights, columns = grants.RIGHTS[table], grants.tables()[table]
    changes = (
        set(columns) - rights.change if isinstance(rights.change, grants.AllExcept) else set(rights.change)
    )
    may = {
        f"UPDATE {table} SET {column} = {column} WHERE FALSE": column in changes  # noqa: S608
        for column in columns
    }
    left_out = set(rights.add) if isinstance(rights.add, grants.AllExcept) else set()
    insert = "INSERT INTO {0} ({1}) OVERRIDING SYSTEM VALUE SELECT {1} FROM {0} WHERE FALSE"
    added = ", ".join(column for column in columns if column not in left_out)
    may |= {insert.format(table, column): False for column in left_out}
    may |= {
        insert.format(table, added): bool(rights.add),
        f"SELECT FROM {table}": True,
        f"DELETE FROM {table} WHERE FALSE": rights.remove,  # noqa: S608
        f"SELECT FROM {table} FOR UPDATE": bool(changes),
        f"TRUNCATE {table}": False,
        f"TRUNCATE {table} CASCADE": False,
        f"DROP TABLE {table} CASCADE": False,
        f"ALTER TABLE {table} DISABLE TRIGGER ALL": False,
        f"ALTER TABLE {table} DISABLE TRIGGER USER": False,
        f"ALTER TABLE {table} ADD COLUMN more int": False,
        f"ALTER TABLE {table} RENAME TO other": False,
        f"CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()": False,
        f"CREATE RULE mine AS ON INSERT TO {table} DO INSTEAD NOTHING": False,
        f"CREATE INDEX ON {table} ({columns[0]})": False,
    }

    assert {statement: not refused(app, statement) for statement in may} == may


@pytest.mark.postgresql
def test_role_may_not_touch_the_guards(app: psycopg.Connection) -> None:
    rules = [*guards.GUARDS, *guards.FOLLOWERS, *[(guards.REFUND,) for _name in decisions.GUARDS]]
    names = guards.names(guards.GUARDS, "guard") + guards.names(guards.FOLLOWERS, "follow")
    tried = [
        statement
        for name, (table, *_rest) in zip([*names, *decisions.GUARDS], rules, strict=True)
        for statement in (
            f"ALTER TABLE {table} DISABLE TRIGGER {name}",
            f"DROP TRIGGER {name} ON {table}",
            f"ALTER TRIGGER {name} ON {table} RENAME TO other",
        )
    ] + [
        statement
        for name in (*guards.FUNCTIONS, *decisions.GUARDS)
        for statement in (
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            f"ALTER FUNCTION {name}() SET search_path = pg_temp",
            f"DROP FUNCTION {name}() CASCADE",
            f"SELECT {name}()",
            (
                "CREATE TEMP TABLE mine (id int);"
                f"CREATE TRIGGER mine AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {name}()"
            ),
        )
    ]

    assert [statement for statement in tried if not refused(app, statement)] == []


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "statement",
    [
        "SET session_replication_role = replica",
        "ALTER ROLE CURRENT_USER SET session_replication_role = replica",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "CREATE ROLE other",
        "CREATE TABLE other ()",
        "CREATE SCHEMA other",
        "CREATE FUNCTION other() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EXTENSION file_fdw",
        "ALTER SCHEMA public RENAME TO other",
        "SELECT setval('refunds_auditentry_id_seq', 1)",
        "SELECT nextval('refunds_auditentry_id_seq')",
        # Sealed, it would leave all entries unsealed that come with the ids before it.
        (
            "INSERT INTO refunds_auditentry (id, at, roles, action, outcome, object_type, object_id, order_id, data, session, "
            "request_id, text) VALUES (4000000000000, now(), '', 'order.viewed', 'done', '', '', '', '{}', '', '', 'x')"
        ),
        "INSERT INTO refunds_payment SELECT * FROM refunds_payment ON CONFLICT (id) DO UPDATE SET refunded = 0",
        (
            "MERGE INTO refunds_payment AS ours USING refunds_payment AS other ON ours.id = other.id "
            "WHEN MATCHED THEN UPDATE SET reserved = 0"
        ),
        (
            "MERGE INTO refunds_refund AS ours USING refunds_refund AS other ON ours.id = other.id "
            "WHEN MATCHED THEN DELETE"
        ),
        "WITH gone AS (DELETE FROM refunds_auditentry RETURNING *) SELECT FROM gone",
        "COPY refunds_order TO PROGRAM 'cat'",
        "COPY refunds_order TO '/tmp/orders'",
        "SELECT pg_read_file('postgresql.conf')",
    ],
)
def test_role_may_not(app: psycopg.Connection, statement: str) -> None:
    assert refused(app, statement)


@pytest.mark.postgresql
def test_role_does_not_become_the_owner(app: psycopg.Connection) -> None:
    owner = sql.Identifier(connection.settings_dict["USER"]).as_string()

    for statement in (
        f"SET ROLE {owner}",
        f"SET SESSION AUTHORIZATION {owner}",
        f"GRANT {owner} TO CURRENT_USER",
    ):
        assert refused(app, statement)


@pytest.mark.postgresql
def test_role_works_on_the_queue(app: psycopg.Connection) -> None:
    """A worker comes, a job's turn comes, it is taken, done and forgotten; the worker leaves."""
    with app.transaction(force_rollback=True):
        [worker] = app.execute("SELECT * FROM procrastinate_register_worker_v1()").fetchone() or [0]
        app.execute("SELECT procrastinate_update_heartbeat_v1(%s)", [worker])
        defer = "SELECT procrastinate_defer_periodic_job_v2('default', 'probe', 'probe', 'probe', 0, '', %s, '{}')"
        deferred = [(app.execute(defer.encode(), [at]).fetchone() or [0])[0] for at in (1, 1)]
        fetch = "SELECT id, status FROM procrastinate_fetch_job_v2(NULL, %s)"
        assert deferred[1] is None
        assert app.execute(fetch.encode(), [worker]).fetchone() == (deferred[0], "doing")
        app.execute("SELECT procrastinate_finish_job_v1(%s, 'succeeded', true)", [deferred[0]])
        app.execute("SELECT procrastinate_unregister_worker_v1(%s)", [worker])
        assert app.execute("SELECT * FROM procrastinate_jobs").fetchall() == []


@pytest.mark.postgresql
def test_role_tells_one_cluster_from_another(app: psycopg.Connection) -> None:
    """What the restore fence asks for."""
    found = app.execute(
        "SELECT system_identifier, pg_walfile_name(pg_current_wal_insert_lsn()) FROM pg_control_system()"
    ).fetchone()

    assert found
    assert all(found)


# --- What it may: everything that the product does ----------------------------------------------------------


@pytest.fixture
def as_the_app(transactional_db: None, role: str) -> Iterator[None]:
    """All that follows signs in to the database as the application does."""
    there = connection.settings_dict
    owner = {name: there[name] for name in ("USER", "PASSWORD")}
    connection.close()
    there |= {"USER": role, "PASSWORD": PASSWORD}
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT session_user")
            assert cursor.fetchone() == (role,)
        yield
    finally:
        connection.close()
        there |= owner


def person(name: str, *roles: str) -> User:
    """Somebody at their first sign-in."""
    return sso.sync_user({"iss": "https://idp.example", "sub": name, "name": name, "groups": [*roles]})


@pytest.fixture
def operator(as_the_app: None) -> User:
    return person("返金 花子", "operator")


@pytest.fixture
def approver(as_the_app: None) -> User:
    return person("承認 一郎", "approver")


@pytest.fixture
def payment(as_the_app: None, sandbox: Sandbox, settings: Any) -> Payment:
    settings.REFUND_APPROVAL_ABOVE = 1500
    return mirrored(sandbox, "refundable", min_amount=9000)


def figures(payment: Payment) -> tuple[int, int, int]:
    payment.refresh_from_db()
    order = Order.objects.get(pk=payment.order_id)
    assert (order.reserved, order.refunded) == (payment.reserved, payment.refunded + payment.external)
    return payment.reserved, payment.refunded, payment.external


@pytest.mark.postgresql
def test_refund_is_asked_for_sent_read_approved_and_sealed(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    services.watch()
    assert "/" in Control.objects.get().cluster

    assert refund(payment, operator).state == State.SUCCEEDED
    sandbox.fault("reset")  # done, and the answer lost
    lost = refund(payment, operator, 1100, similar_reason="別件")
    assert (lost.state, figures(payment)) == (State.UNKNOWN, (1100, 1000, 0))
    at.advance(minutes=2)
    work()
    assert figures(payment) == (0, 2100, 0)

    waiting = [refund(payment, operator, 1600 + more, similar_reason="別件") for more in range(3)]
    assert figures(payment) == (4803, 2100, 0)
    services.reject(waiting[2].pk, by=approver, note="重複")
    services.withdraw(waiting[1].pk, by=operator)
    # What was asked for is that amount of what was left then.
    made = refund(payment, operator, 1700, similar_reason="別件")
    assert services.approve(made.pk, by=approver, note="確認済み").state == State.SUCCEEDED
    at.advance(days=8)
    assert services.expire_requests() == 1
    assert figures(payment) == (0, 3800, 0)
    assert len(at_smartpay(sandbox, payment)) == 3

    at.advance(minutes=2)
    while sealing.seal():
        pass
    assert not AuditEntry.objects.filter(seal=None).exists()
    assert sealing.verify().ok


@pytest.mark.postgresql
def test_case_is_decided_and_what_was_lost_is_recovered(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox
) -> None:
    sandbox.fault("reset", executed=False)
    case = refund(payment, operator)
    there = sandbox.refund_elsewhere(payment.pk, 1000)
    Refund.objects.filter(pk=case.pk).update(state=State.REVIEW, reviews=1)
    for by in (approver, person("承認 二郎", "approver")):
        services.decide_case(
            case.pk,
            verdict="succeeded",
            smartpay_id=there["id"],
            note="確認済み",
            by=by,
            client=smartpay.client(),
        )
    assert (ReviewDecision.objects.count(), figures(payment)) == (2, (0, 1000, 0))

    ghost = uuid.uuid4()
    sandbox.refund_elsewhere(payment.pk, 700, metadata={"refund_dashboard_id": str(ghost)})
    sandbox.refund_elsewhere(payment.pk, 50)
    services.read_payment(payment.pk, client=smartpay.client())
    assert Refund.objects.get(pk=ghost).recovered
    assert figures(payment) == (0, 1700, 50)


@pytest.mark.postgresql
def test_mirror_follows_what_changes(payment: Payment, sandbox: Sandbox, at: Clock) -> None:
    client = smartpay.client()
    scanning.sync(client, full=True, observe=services.observe_refund)
    order = Order.objects.get(pk=payment.order_id)
    sandbox.set(order.order_id, status="canceled", reference="別の番号", amount=order.amount + 1)
    sandbox.set(payment.pk, description="別の説明", amount=payment.captured - 1)
    at.advance(seconds=1)

    services.read_order(order.order_id, client=client)

    order.refresh_from_db()
    payment.refresh_from_db()
    assert (order.status, order.reference, order.captured) == ("canceled", "別の番号", payment.captured)
    assert payment.description == "別の説明"
    assert SmartpayRefund.objects.exists()


@pytest.mark.postgresql
def test_people_sign_in_look_and_leave(payment: Payment, operator: User, approver: User) -> None:
    auditor = person("監査 桜", "auditor")
    made = refund(payment, operator)
    browser = fresh(auditor)
    order = payment.order.order_id
    browser.post("/orders/search/", {"q": payment.order.family_name or "田中"})
    for page in (f"/orders/{order}/", f"/refunds/{made.pk}/", "/refunds/", "/admin/", "/readyz",
                 "/admin/refunds/auditentry/", "/admin/dashboard/user/"):  # fmt: skip
        assert browser.get(page, secure=True).status_code == 200, page
    assert Search.objects.exists()
    Search.objects.all().delete()
    services.set_sends(enabled=False, reason="試験", by=approver)
    services.set_sends(enabled=True, reason="試験", by=approver)
    WebhookEvent.objects.create(event_id="evt_1", kind="refund.created", received_at=made.requested_at)

    SessionIndex.objects.update_or_create(
        session_key=browser.session.session_key, defaults={"user": auditor, "provider_session": "1"}
    )
    sign_in(operator).logout()
    with pytest.raises(SignInFailed):
        person("監査 桜")  # has no role any more

    auditor.refresh_from_db()
    assert (auditor.is_staff, auditor.groups.count(), SessionIndex.objects.count()) == (False, 0, 0)
    assert browser.get("/refunds/", secure=True).status_code == 302
