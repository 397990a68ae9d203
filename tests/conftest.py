"""One user a role, a paid order, the sandbox on a free port."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client

from dashboard.models import User
from refunds import audit, mirror, smartpay
from refunds.models import AuditEntry, Order, Payment
from tests.sandbox import Sandbox

guards = import_module("refunds.migrations.0002_guards")
decisions = import_module("refunds.migrations.0006_guards_of_decisions")
name_guard = import_module("refunds.migrations.0009_audit_actor_name")
numbers = itertools.count(1)

NAMES = {"viewer": "閲覧 太郎", "operator": "返金 花子", "approver": "承認 一郎", "auditor": "監査 桜"}


@pytest.fixture(scope="session", autouse=True)
def _flush_lifts_the_guards(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Tests with real transactions empty the tables afterwards, which the guards refuse: they step aside for that."""
    flush = connection.ops.execute_sql_flush

    def without_guards(statements: Iterable[str]) -> None:
        with connection.schema_editor() as editor:
            guards.remove(None, editor)
        flush(statements)
        with connection.schema_editor() as editor:
            guards.install(None, editor)

    connection.ops.execute_sql_flush = without_guards  # type: ignore[assignment,method-assign]
    yield
    connection.ops.execute_sql_flush = flush  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _static_files_as_they_are(settings: Any) -> None:
    """No collectstatic before each run: names are not hashed, files come from static/."""
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = settings.STORAGES | {"staticfiles": plain}
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(autouse=True)
def _state_of_this_test(settings: Any, tmp_path: Path) -> None:
    """Every test has a database as new; what is remembered of the ledger outside of it has to be new as well."""
    settings.STATE_DIR = tmp_path


# --- People -------------------------------------------------------------------------------------------------


def make_user(role: str, name: str = "") -> User:
    user = User.objects.create_user(
        username=f"{role}-{next(numbers)}", issuer="https://idp.example", email=""
    )
    user.subject = user.username
    user.name = name or NAMES[role]
    user.is_staff = role == "auditor"
    user.save()
    user.groups.set([Group.objects.get(name=role)])
    return user


@pytest.fixture
def viewer(db: None) -> User:
    return make_user("viewer")


@pytest.fixture
def operator(db: None) -> User:
    return make_user("operator")


@pytest.fixture
def approver(db: None) -> User:
    return make_user("approver")


@pytest.fixture
def auditor(db: None) -> User:
    return make_user("auditor")


def sign_in(user: User) -> Client:
    """A browser of this person, signed in a moment ago; what the provider says is test_sso.py's."""
    client = Client()
    client.force_login(user, backend="dashboard.sso.StrictOIDCBackend")
    return client


# --- Orders -------------------------------------------------------------------------------------------------


def make_order(
    *amounts: int,
    name: str = "田中 太郎",
    email: str = "tanaka@example.jp",
    status: str = "succeeded",
    age: int = 60,
) -> Order:
    """A mirrored order with a payment for each amount, `age` seconds old; as if read from Smartpay."""
    number = next(numbers)
    order_id = f"order_test_{number:022d}"
    created_at = datetime.now(tz=UTC) - timedelta(seconds=age)
    family, _, given = name.partition(" ")
    customer = smartpay.Customer(family_name=family, given_name=given, email=email)
    order = smartpay.Order(
        id=order_id,
        amount=sum(amounts),
        currency="JPY",
        status=status,
        reference=f"shop_{number}",
        description="",
        token_id="",
        test=True,
        created_at=created_at,
        expires_at=None,
        payments=tuple(
            smartpay.Payment(
                id=f"payment_test_{number:018d}{index:04d}",
                order=order_id,
                amount=amount,
                currency="JPY",
                status="processed",
                description="",
                reference="",
                refund_ids=(),
                test=True,
                created_at=created_at,
            )
            for index, amount in enumerate(amounts)
        ),
        line_items=(
            smartpay.LineItem(
                name="スニーカー 25cm", quantity=1, amount=sum(amounts), currency="JPY", kind="product"
            ),
        ),
    )
    session = smartpay.CheckoutSession(
        id=f"checkout_test_{number}", order=order, customer=customer, reference=""
    )
    return mirror.record_order(order, read_at=datetime.now(tz=UTC), session=session)


@pytest.fixture
def order(db: None) -> Order:
    """¥5,000, paid at once."""
    return make_order(5000)


@pytest.fixture
def payment(order: Order) -> Payment:
    return order.payments.get()


# --- Time and patience ---------------------------------------------------------------------------------------


class Clock:
    """The ledger's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = datetime.now(tz=UTC)

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time stands still until it is moved."""
    moved = Clock()
    monkeypatch.setattr("refunds.clock.now", lambda: moved.now)
    monkeypatch.setattr(
        "refunds.scanning._Scan._now", lambda _scan: moved.now
    )  # which goes on between two looks at it
    return moved


@pytest.fixture
def quick(settings: Any) -> None:
    """Silence is noticed after a second."""
    settings.SMARTPAY_DEADLINE = settings.SMARTPAY_READ_TIMEOUT = 1
    smartpay.client.cache_clear()


# --- Smartpay -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sandbox_process() -> Iterator[Sandbox]:
    with Sandbox(orders=300) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(sandbox_process: Sandbox, settings: Any) -> Iterator[Sandbox]:
    """Smartpay as seeded and well-behaved; the app's own client talks to it."""
    sandbox_process.reset()
    settings.SMARTPAY_API_URL = sandbox_process.url
    settings.SMARTPAY_SECRET_KEY = sandbox_process.secret_key
    smartpay.client.cache_clear()
    yield sandbox_process
    smartpay.client.cache_clear()


class Asking:
    """Who asks for a refund, between its row and its commit: there as soon as `inserted`, until `go_on`."""

    def __init__(self) -> None:
        self.inserted, self.go_on = threading.Event(), threading.Event()
        self._record = audit.record

    def record(self, actor: Any, action: str, *about: Any, **data: Any) -> AuditEntry:
        entry = self._record(actor, action, *about, **data)
        if action == "refund.requested":
            self.inserted.set()
            assert self.go_on.wait(20)
        return entry


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    held = Asking()
    monkeypatch.setattr(audit, "record", held.record)
    return held
