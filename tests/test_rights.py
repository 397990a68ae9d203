"""Who may open what: every address, every method and every role, against the table in tests/rights.py.

An address that is in the site map and not in the table fails, and so does a line of the table without an address.
Every answer is undone before the next is asked for, so each stands for itself, and what is posted is in earnest.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.http import HttpResponseBase
from django.test import Client
from django.urls import URLResolver, get_resolver
from django.utils import timezone

from dashboard.models import User
from dashboard.oidc_provider import SignInFailed
from dashboard.sso import sync_user
from refunds import bulk, reconciling
from refunds.models import (
    Bulk,
    Control,
    JobRun,
    Payment,
    Reconciliation,
    Refund,
    ReviewDecision,
    Search,
    SyncCursor,
)
from refunds.roles import REQUEST_REFUND
from tests import rights
from tests.conftest import Clock, make_user, sign_in
from tests.dishonest_provider import DishonestProvider
from tests.sandbox import Sandbox
from tests.test_review import case_without_reference
from tests.test_services import mirrored, refund

pytestmark = pytest.mark.django_db

WHO_MAY_NOT_MOVE_MONEY = ["anonymous", "no role", "viewer", "auditor"]


def site_map(resolver: URLResolver | None = None, before: str = "/") -> Iterator[str]:
    """Every address of the site, as the table writes it."""
    for each in (resolver or get_resolver()).url_patterns:
        address = before + rights.plain(str(each.pattern))
        if isinstance(each, URLResolver):
            yield from site_map(each, address)
        else:
            yield address


# --- The world ----------------------------------------------------------------------------------------------
@dataclass
class World:
    """One of everything, a colleague's; and what is posted where, such that it would do something."""

    payment: Payment
    waiting: Refund
    case: Refund
    found: str  # Smartpay's id of a refund that the case may be
    search: Search
    bulk: Bulk  # waits for approval
    day: Reconciliation

    @cached_property
    def before(self) -> list[Any]:
        """What every answer starts from, since each is undone; taken when the first is asked for."""
        return ledger()

    def concrete(self, address: str) -> str:
        """An address of the table with things that there are in the place of its brackets."""
        for model in admin.site._registry:
            if address.startswith(f"/admin/{model._meta.app_label}/{model._meta.model_name}/<object_id>/"):
                row = model._default_manager.first()
                assert row is not None, f"no {model.__name__} to look at"
                address = address.replace("<object_id>", quote(str(row.pk)))
        parts = {
            "order_id": self.payment.order.order_id,
            "bulk_id": self.bulk.pk,
            "day": self.day,
            "refund_id": self.case.pk if "/review/" in address else self.waiting.pk,
            "search_id": self.search.pk,
            "app_label": "refunds",
            "content_type_id": 1,
            "object_id": 1,
            "url": "nowhere",
        }
        for name, value in parts.items():
            address = address.replace(f"<{name}>", str(value))
        assert "<" not in address, f"{address}: what stands for this?"
        return address

    def fields(self, address: str) -> dict[str, Any]:
        """What is posted there."""
        posted: dict[str, dict[str, Any]] = {
            "/orders/search/": {"q": "田中"},
            "/orders/saved/": {"name": "今日の一部返金", "refund_status": "partial", "period": "today"},
            "/orders/<order_id>/refund/": {
                "request_id": str(uuid.uuid4()),
                "payment": self.payment.pk,
                "amount": "300",
                "reason": "requested_by_customer",
                "description": "",
                "memo": "",
            },
            "/refunds/<refund_id>/decide/": {"reject": "1", "note": "二重の申請のため"},
            "/refunds/<refund_id>/review/": {"choice": self.found, "note": "管理画面で確認済み"},
            "/bulk/": {"file": SimpleUploadedFile("x.csv", b"order_id,amount\nx,1")},
            "/bulk/<bulk_id>/": {"do": "approve"},
            "/refunds/sends/": {"stop": "1", "reason": "不審な返金があるため"},
            "/i18n/setlang/": {"language": "en"},
        }
        return posted.get(address, {})


@pytest.fixture
def world(sandbox: Sandbox, settings: Any, at: Clock) -> World:
    colleague = make_user("operator", "同僚 三郎")
    doubtful = mirrored(sandbox, "refundable", min_amount=2000, skip=1)
    case, there = case_without_reference(doubtful, colleague, sandbox, at)
    settings.REFUND_APPROVAL_ABOVE = 500
    payment = mirrored(sandbox, "refundable", min_amount=2000)
    refund(payment, colleague, 100)
    waiting = refund(payment, colleague, 600, similar_reason="二点目の返品")
    assert waiting.state == Refund.State.AWAITING_APPROVAL
    search = Search.objects.create(person=colleague, text="田中", created_at=timezone.now())
    Control.objects.get_or_create()
    SyncCursor.objects.get_or_create(collection="orders")
    file, _is_new = bulk.upload(
        "x.csv", f"order_id,amount\n{payment.order.order_id},700".encode(), by=colleague
    )
    bulk.work()
    file = bulk.start(file.pk, by=colleague, similar_reason="三点目の返品")
    JobRun.objects.create(job="seal", started_at=at.now)
    day = reconciling.compare(timezone.localdate(at.now), read_at=at.now)
    return World(payment, waiting, case, there["id"], search, file, day)


@pytest.fixture(autouse=True)
def _provider(settings: Any) -> Iterator[None]:
    """Where signing in and out leads to."""
    cache.clear()
    with DishonestProvider() as provider:
        settings.OIDC_ISSUER = provider.issuer
        yield
        provider.shutdown()
    cache.clear()


def browser_of(role: str, *, asked_for: float = 0, **options: Any) -> Client:
    """Somebody of this role, for whom the provider asked so many seconds ago."""
    browser = Client(**options)
    if role == "anonymous":
        return browser
    person = make_user("viewer" if role == "no role" else role)
    if role == "no role":  # lost it a moment ago; the session still lives
        person.groups.clear()
    browser.cookies = sign_in(person).cookies
    session = browser.session
    session["auth_time"] = time.time() - asked_for
    session.save()
    return browser


@contextmanager
def undone() -> Iterator[None]:
    """Take back what happens in the database, whatever its transactions were told."""
    around = transaction.atomic()
    around._from_testcase = True  # type: ignore[attr-defined]  # as TestCase's own: the ledger's are durable
    with around:
        yield
        transaction.set_rollback(True)


def ask(browser: Client, world: World, address: str, method: str) -> tuple[str, bool]:
    """The site's answer in the table's words, and whether anything was changed that has to be answered for."""
    cookies = dict(browser.cookies)
    with undone():
        url, before = world.concrete(address), world.before
        posts = method == "POST"
        response = browser.post(url, world.fields(address)) if posts else browser.generic(method, url)
        changed = ledger() != before
    browser.cookies.clear()
    browser.cookies.update(cookies)
    return in_words(response), changed


def in_words(response: HttpResponseBase) -> str:
    if response.status_code not in {302, 303}:
        return str(response.status_code)
    for start, word in {"/sign-in/": "sign-in", "/admin/login/": "door", "/oidc/step-up/": "again"}.items():
        if response["Location"].startswith(start):
            return word
    return "302"


def ledger() -> list[Any]:
    """Refunds, files of them, decisions, the switch, and who may what."""
    return [
        *Bulk.objects.order_by("pk").values(),
        *Refund.objects.order_by("pk").values(),
        *ReviewDecision.objects.order_by("pk").values(),
        *Control.objects.values(),
        *User.objects.order_by("pk").values("pk", "is_active", "is_staff", "is_superuser", "groups"),
    ]


# --- The tests ----------------------------------------------------------------------------------------------
def test_every_address_has_its_lines_and_every_line_its_address() -> None:
    in_table = {address.partition("?")[0] for address, _method in rights.expected()}

    assert set(site_map()) - in_table == set(), "say in tests/rights.py who may open these"
    assert in_table - set(site_map()) == set(), "tests/rights.py has lines for what is not there"
    for address in in_table:
        assert {method for at, method in rights.expected() if at == address} == set(rights.METHODS)


def test_the_table_uses_its_own_words() -> None:
    used = {answer for line in rights.lines() for answer in line.answers.values()}

    assert used == set(rights.LEGEND)
    named = rights.WITHOUT_TOKEN | rights.FRESH
    assert named <= {line.address for line in rights.lines() if line.method == "POST"}


@pytest.mark.parametrize("role", rights.ROLES)
def test_each_role_gets_what_the_table_says(world: World, role: str) -> None:
    browser = browser_of(role)
    wrong, changed = [], []
    for (address, method), answers in rights.expected().items():
        answer, moved = ask(browser, world, address, method)
        if answer != answers[role]:
            wrong.append(f"{method} {address}: {answer} instead of {answers[role]}")
        if moved:
            changed.append((address, method))

    assert wrong == []
    assert [
        at for at, method in changed if method != "POST"
    ] == []  # a link changes nothing, whoever follows it
    assert role not in WHO_MAY_NOT_MOVE_MONEY or changed == []


def test_what_is_posted_is_in_earnest(world: World) -> None:
    """These forms do something, or that nothing happens when others post them would prove nothing."""
    approver = browser_of("approver")

    assert {at: ask(approver, world, at, "POST") for at in rights.FRESH} == dict.fromkeys(
        rights.FRESH, ("302", True)
    )


@pytest.mark.parametrize("role", ["anonymous", "approver", "auditor"])
def test_every_form_wants_its_token(world: World, role: str) -> None:
    browser = browser_of(role, enforce_csrf_checks=True)
    taken = {
        address
        for address, method in rights.expected()
        if method == "POST" and ask(browser, world, address, method) != ("403", False)
    }

    assert taken == rights.WITHOUT_TOKEN


@pytest.mark.parametrize("role", ["operator", "approver", "auditor"])
def test_what_wants_a_fresh_sign_in(world: World, settings: Any, role: str) -> None:
    browser = browser_of(role, asked_for=settings.SSO_STEP_UP_SECONDS + 5)
    table = rights.expected()
    answers = {
        address: ask(browser, world, address, method)
        for address, method in table
        if method == "POST" and table[address, method][role] in {"200", "302"}
    }

    assert {at for at, answer in answers.items() if answer == ("again", False)} == rights.FRESH & set(answers)


@pytest.mark.parametrize("claim", ["", [""], ["", "all-staff"]])
def test_role_whose_value_was_left_empty_is_nobodys(settings: Any, claim: Any) -> None:
    settings.OIDC_ROLE_VALUES = {"": "approver", "refund-viewers": "viewer"}

    with pytest.raises(SignInFailed, match="no_role"):
        sync_user({"iss": "https://login.example.jp", "sub": "u-1", "groups": claim})


def test_the_document_shows_this_table() -> None:
    assert rights.shown() == rights.section(), "run `python -m tests.rights` to write it anew"


@pytest.mark.parametrize("role", ["viewer", "operator", "approver", "auditor"])
def test_the_table_of_roles_says_what_the_groups_in_the_database_say(role: str) -> None:
    person = make_user(role)

    assert person.get_all_permissions() == ModelBackend().get_all_permissions(person)


def test_nobody_may_what_no_role_of_theirs_may() -> None:
    person = make_user("viewer")
    person.user_permissions.set(Permission.objects.filter(codename="request_refund"))
    person.groups.add(Group.objects.create(name="hand-made"))
    assert not User.objects.get(pk=person.pk).has_perm(REQUEST_REFUND)

    operator = make_user("operator")
    operator.is_active = False

    assert operator.get_all_permissions() == set()
    assert AnonymousUser().get_all_permissions() == set()
