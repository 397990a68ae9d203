"""Two languages: an English page has no Japanese but its data, a Japanese one no English; the switch keeps the page."""

import gettext
import re
import uuid
from html.parser import HTMLParser
from typing import Any

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.template.loader import render_to_string
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

from refunds import bulk, services, smartpay
from refunds.models import Order, Reconciliation, Refund
from tests.conftest import make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh

JAPANESE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]+")
ENGLISH = re.compile(
    r"\b(?:Refund|Refunded|Refunds|Order|Orders|Payment|Amount|Status|Reason|Search|Filter|Customer|Email|Back|Cancel"
    r"|none|partial|full|processing|(?:viewer|operator|approver|auditor)(?!-)|sweep|seal|reconcile|notices|orders|True|False"
    r"|Issuer|Subject|refund status|Copy|Copied|None|Sent|Sending|Language|Sign|Not|The|the|is|was|of|to|ago|succeeded|failed)\b"
)
SAID_BY = {"title", "aria-label", "placeholder", "data-label", "data-done", "data-lock", "data-over"}
OWN_NAMES = ("日本語", "English")  # each language is offered under its own name, on every page


class Reader(HTMLParser):
    """Everything that a page says: its texts, and the attributes that are shown or read out."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.said += [value for name, value in attrs if name in SAID_BY and value]

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def said(html: str, order: Order | None = None) -> str:
    """What a page says, without what the shop and Smartpay say through it."""
    reader = Reader()
    reader.feed(html)
    text = "\n".join(reader.said)
    data = [item["name"] for item in order.line_items] + [order.reference] if order else []
    for own in [*OWN_NAMES, *data]:
        text = text.replace(own, " ") if own else text
    return text


def foreign(language: str, html: str, order: Order | None = None) -> list[str]:
    """The words of the other language."""
    return sorted(set((JAPANESE if language == "en" else ENGLISH).findall(said(html, order))))


@pytest.fixture(params=["ja", "en"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def speaking(language: str, role: str) -> Client:
    """A browser of somebody with this role, whose name gives no language away, set to this language."""
    browser = fresh(make_user(role, name="H. H."))
    browser.cookies[settings.LANGUAGE_COOKIE_NAME] = language
    return browser


@pytest.fixture
def paid(db: None, sandbox: Sandbox) -> Order:
    """An order that the sandbox has; its customer's name and mail give no language away."""
    found = sandbox.find("refundable", min_amount=5000)
    services.read_order(found["order"], client=smartpay.client())
    Order.objects.filter(order_id=found["order"]).update(
        family_name="TANAKA", given_name="T", family_kana="", given_kana="", email="t@example.jp"
    )
    return Order.objects.get(order_id=found["order"])


def form_url(order: Order) -> str:
    return reverse("refunds:refund_form", args=[order.order_id])


def typed(order: Order, **other: Any) -> dict[str, Any]:
    payment = order.payments.all()[0].pk
    fields = {"request_id": str(uuid.uuid4()), "payment": payment, "amount": "1000"}
    return fields | {"reason": "requested_by_customer", "description": "M, L", "memo": "M"} | other


def confirm(browser: Client, order: Order, **other: Any) -> Any:
    """Fill in the form and press the last button."""
    fields = typed(order, **other)
    page = browser.post(form_url(order), fields)
    signature = re.search(r'name="signature" value="([^"]+)"', page.content.decode())
    assert signature, said(page.content.decode())
    return browser.post(form_url(order), fields | {"confirm": "1", "signature": signature[1]})


@pytest.mark.parametrize("address", ["/", "/orders/", "/orders/?status=failed&period=today", "/refunds/"])
@pytest.mark.parametrize("role", ["operator", "viewer"])
def test_pages_of_lists(language: str, role: str, address: str, db: None) -> None:
    page = speaking(language, role).get(address)

    assert page.status_code == 200
    assert foreign(language, page.content.decode()) == []


def test_pages_of_a_refund(language: str, paid: Order, sandbox: Sandbox) -> None:
    """From the search to the ledger, with a similar refund, one whose outcome is not known, and one withdrawn."""
    browser = speaking(language, "operator")
    pages = {
        "found": browser.post("/orders/search/", {"q": "tanaka"}, follow=True),
        "not found": browser.post("/orders/search/", {"q": "q q q"}, follow=True),
        "order": browser.get(reverse("refunds:order", args=[paid.order_id])),
        "form": browser.get(form_url(paid)),
        "confirmation": browser.post(form_url(paid), typed(paid)),
        "succeeded": browser.get(confirm(browser, paid)["Location"]),
        "similar": browser.post(form_url(paid), typed(paid, amount="500")),
        "similar without a reason": confirm(browser, paid, amount="500"),
    }
    reused = typed(paid, request_id=str(Refund.objects.get().pk), amount="700")
    pages["conflict"] = browser.post(form_url(paid), reused)
    sandbox.fault("html", executed=False)
    pages["unknown"] = browser.get(confirm(browser, paid, amount="500", similar_reason="M")["Location"])
    pages["blocked"] = browser.post(form_url(paid), typed(paid))
    withdraw = reverse("refunds:refund_withdraw", args=[Refund.objects.latest("requested_at").pk])
    pages["too late to withdraw"] = browser.post(withdraw, follow=True)
    pages["start"] = browser.get("/")
    pages["ledger"] = browser.get("/refunds/")
    pages["order with refunds"] = browser.get(reverse("refunds:order", args=[paid.order_id]))
    sandbox.fault("error", method="GET", path="", times=None)
    pages["order, Smartpay away"] = browser.get(reverse("refunds:order", args=[paid.order_id]))
    sandbox.clear_faults()

    assert {page.status_code for page in pages.values()} == {200, 409, 422}
    assert {
        name: found
        for name, page in pages.items()
        if (found := foreign(language, page.content.decode(), paid))
    } == {}


@pytest.mark.parametrize("address", ["/approvals/", "/bulk/", "/reconciliation/", "/orders/?page=x"])
def test_pages_of_an_approver(language: str, address: str, db: None) -> None:
    page = speaking(language, "approver").get(address)

    assert page.status_code == 200
    assert foreign(language, page.content.decode()) == []


def test_what_differs_on_a_day(language: str, paid: Order) -> None:
    day = Reconciliation.objects.create(
        day=timezone.localdate(),
        compared_at=timezone.now(),
        read_at=timezone.now(),
        equal=1,
        only_ours=0,
        only_theirs=3,
        differing=0,
        ours_total=100,
        theirs_total=1600,
    )
    for status in ("succeeded", "failed", ""):
        day.found.create(
            kind="only_theirs",
            order_id=paid.order_id,
            smartpay_id=f"refund_test_{status}",
            payment_id=paid.payments.all()[0].pk,
            theirs_amount=500,
            theirs_status=status,
            currency="JPY",
            at=timezone.now(),
        )
    page = speaking(language, "approver").get(f"/reconciliation/{day}/")

    assert page.status_code == 200
    assert foreign(language, page.content.decode(), paid) == []


def test_file_of_refunds(language: str, paid: Order) -> None:
    lines = f"order,amount\n{paid.order_id},100\norder_test_none,1\n{paid.order_id},x\n"
    file = SimpleUploadedFile("m.csv", lines.encode(), "text/csv")
    browser = speaking(language, "operator")
    checking = browser.post("/bulk/", {"file": file}, follow=True)
    bulk.work()
    checked = browser.get(checking.request["PATH_INFO"])
    running = browser.post(checking.request["PATH_INFO"], {"do": "start"}, follow=True)

    for page in (checking, checked, running):
        assert page.status_code == 200
        assert foreign(language, page.content.decode(), paid) == []


@pytest.mark.parametrize("address", ["/orders/export/", "/refunds/export/", "/bulk/{}/result/"])
def test_files_for_excel(language: str, paid: Order, address: str) -> None:
    browser = speaking(language, "operator")
    confirm(browser, paid)
    asker = make_user("operator", name="H. H.")
    lines = f"order,amount\n{paid.order_id},100\norder_test_none,1\n"
    file, _is_new = bulk.upload("m.csv", lines.encode(), by=asker)
    bulk.work()

    answer = browser.get(address.format(file.pk))

    told = b"".join(answer.streaming_content).decode("utf-8-sig")  # type: ignore[attr-defined]
    assert paid.order_id in told
    assert foreign(language, told, paid) == []


def test_approval_and_its_withdrawal(language: str, paid: Order, settings: Any) -> None:
    settings.REFUND_APPROVAL_ABOVE = 100
    browser = speaking(language, "operator")
    confirmation = browser.post(form_url(paid), typed(paid))
    waiting = browser.get(confirm(browser, paid)["Location"])
    withdrawn = browser.post(f"{waiting.request['PATH_INFO']}withdraw/", follow=True)

    for page in (confirmation, waiting, withdrawn):
        assert foreign(language, page.content.decode(), paid) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": ""},
        {"amount": "abc"},
        {"amount": "1.5"},
        {"amount": "0"},
        {"amount": "9" * 20},
        {"amount": "99999999"},
        {"amount": "4001"},
        {"payment": ""},
        {"payment": "x"},
        {"reason": ""},
        {"reason": "x"},
        {"description": "x" * 81},
        {"memo": "x\u202e"},
        {"request_id": "x"},
        {"confirm": "1", "signature": "x"},
    ],
)
def test_errors_of_the_form(language: str, paid: Order, wrong: dict[str, str], settings: Any) -> None:
    settings.REFUND_MAX_AMOUNT = 4000
    page = speaking(language, "operator").post(form_url(paid), typed(paid, **wrong))

    assert page.status_code == 422
    assert foreign(language, page.content.decode(), paid) == []


@pytest.mark.parametrize("address", ["/sign-in/", "/signed-out/", "/signed-out/?here=only", "/nowhere/"])
def test_pages_for_anybody(language: str, address: str, client: Client, db: None) -> None:
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = language

    assert foreign(language, client.get(address).content.decode()) == []


@pytest.mark.parametrize("address", ["/nowhere/", "/orders/x/", "/admin/", "/orders/?q=x%00"])
def test_pages_that_say_no(language: str, address: str, db: None) -> None:
    page = speaking(language, "viewer").get(address, follow=True)

    assert foreign(language, page.content.decode()) == []


@pytest.mark.parametrize(
    "template", ["400.html", "413.html", "500.html", "site/csrf_failure.html", "site/no_role.html"]
)
def test_pages_drawn_without_a_view(language: str, template: str) -> None:
    with translation.override(language):
        assert foreign(language, render_to_string(template)) == []


def test_admin(language: str, paid: Order) -> None:
    confirm(speaking(language, "operator"), paid)
    browser = speaking(language, "auditor")
    models = [
        "auditentry",
        "refund",
        "order",
        "payment",
        "smartpayrefund",
        "attempt",
        "search",
        "control",
        "synccursor",
        "jobrun",
    ]
    addresses = ["/admin/", *(f"/admin/refunds/{model}/" for model in models), "/admin/dashboard/user/"]
    addresses.append(f"/admin/dashboard/user/{browser.session['_auth_user_id']}/change/")
    addresses.append(reverse("admin:refunds_refund_change", args=[Refund.objects.get().pk]))

    for address in addresses:
        page = browser.get(address)
        assert (page.status_code, foreign(language, page.content.decode(), paid)) == (200, []), address


# --- The switch ---------------------------------------------------------------------------------------------


def switch(browser: Client, page: Any, language: str) -> Any:
    """Press a language in the menu of this page."""
    here = re.search(r'<input type="hidden" name="next" value="([^"]+)"', page.content.decode())
    assert here
    return browser.post(
        "/i18n/setlang/", {"next": here[1].replace("&amp;", "&"), "language": language}, follow=True
    )


@pytest.mark.parametrize(
    "address", ["/", "/orders/?status=succeeded&period=week", "/refunds/?state=queued", "/nowhere/"]
)
def test_switch_keeps_the_page(address: str, db: None) -> None:
    browser = sign_in(make_user("operator"))
    page = browser.get(address)
    assert '<html lang="ja">' in page.content.decode()

    for language in ("en", "ja"):
        page = switch(browser, page, language)
        assert f'<html lang="{language}">' in page.content.decode()
        assert page.wsgi_request.get_full_path() == address


def test_switch_keeps_what_was_typed(paid: Order) -> None:
    browser = sign_in(make_user("operator"))
    fields = typed(paid)
    page = switch(browser, browser.post(form_url(paid), fields), "en")

    assert 'value="M, L"' in page.content.decode()
    assert fields["request_id"] in page.content.decode()


# --- The catalogue ------------------------------------------------------------------------------------------


def test_every_message_has_its_english() -> None:
    """Also those that no test here draws. Nothing is left Japanese but the examples of what may be typed."""
    compiled = settings.BASE_DIR / "locale/en/LC_MESSAGES/django.mo"
    with compiled.open("rb") as file:
        catalogue: dict[Any, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    texts = {key: text for key, text in catalogue.items() if key}

    assert len(texts) > 300
    assert [key for key, text in texts.items() if not text.strip() or JAPANESE.search(text)] == []


def test_one_and_many() -> None:
    with translation.override("en"):
        assert [
            translation.ngettext("%(count)d 分前", "%(count)d 分前", n) % {"count": n} for n in (1, 2)
        ] == [
            "1 minute ago",
            "2 minutes ago",
        ]


def test_scripts_say_nothing_of_their_own() -> None:
    """Their words come from the page, in its language: data-done, data-lock, data-over."""
    source = (settings.BASE_DIR / "static/dashboard.js").read_text()
    amounts_as_typed = "[,、\\s¥円]"
    code = re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE).replace(amounts_as_typed, "")

    assert JAPANESE.findall(code) == []
    assert re.findall(r'textContent = ["`][^$"`]', code) == []
