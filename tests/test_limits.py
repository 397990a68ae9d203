"""Rate limits: shared by all processes and machines, counted per person or address, and explained on the page."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine
from django.db import connection, connections
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import get_resolver, resolve

from dashboard import limits
from dashboard.models import Count, User
from refunds import bulk
from refunds.models import AuditEntry, Order, Refund, Search
from tests.conftest import make_order, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_services import mirrored
from tests.test_sso_break_glass import issue
from tests.test_views import confirm, form_url, hidden, text, typed

NOON = 1_772_000_000 // 3600 * 3600  # the first second of an hour, and so of a minute


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOON, tick=False) as moved:
        yield moved


@pytest.fixture
def few(settings: Any) -> None:
    """Allow five in an hour, and so one in a minute."""
    for setting in ("SEARCHES_PER_HOUR", "ORDERS_PER_HOUR", "REFUND_FORMS_PER_HOUR", "SIGN_INS_PER_HOUR"):
        setattr(settings, setting, 5)


@pytest.fixture
def paid(db: None, sandbox: Sandbox) -> Order:
    """An order of ¥2,000 or more, never refunded."""
    return mirrored(sandbox, "refundable", min_amount=2000).order


def search(browser: Client, words: str = "田中") -> Any:
    return browser.post("/orders/search/", {"q": words})


def refused() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(outcome="refused").order_by("id"))


# --- The numbers --------------------------------------------------------------------------------------------
def test_a_fifth_in_a_minute_and_all_in_an_hour(
    operator: User, settings: Any, clock: time_machine.Traveller
) -> None:
    settings.SEARCHES_PER_HOUR = 10
    browser, answers = sign_in(operator), []
    for minute in range(61):
        clock.move_to(NOON + minute * 60)
        answers.append([search(browser).status_code for _ in range(3)])
        browser = sign_in(operator)  # no session lasts for the whole hour

    assert answers[:5] == [[302, 302, 429]] * 3 + [[302, 429, 429], [429] * 3]
    assert answers[5:60] == [[429] * 3] * 55
    assert answers[60] == [302, 302, 429]


@pytest.mark.postgresql  # SQLite lets one write at a time; tests/test_attacks.py asks two processes
@pytest.mark.django_db(transaction=True)
def test_limit_holds_over_connections(settings: Any) -> None:
    """Eight connections count at once, as eight processes would, and no count is lost."""
    settings.SEARCHES_PER_HOUR = 100
    person, together = make_user("operator"), threading.Barrier(8)
    waits: list[int] = []

    def searches() -> None:
        request = HttpRequest()
        request.user = person
        try:
            together.wait()
            waits.extend(limits.hit(request, limits.SEARCHES) for _ in range(10))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=searches) for _ in range(8)]
    started = time.time() // 60
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(waits) == 80
    if time.time() // 60 == started:  # else the second minute let some more pass
        assert waits.count(0) == 20
        [entry] = refused()
        assert entry.data == {"why": "limit", "limit": "searches", "seconds": 60, "allowed": 20}
    assert Count.objects.get(key=f"searches:3600:person:{person.pk}").times == 80


def test_a_clock_that_is_behind_does_not_begin_the_window_anew(
    operator: User, few: None, clock: time_machine.Traveller
) -> None:
    browser = sign_in(operator)
    assert search(browser).status_code == 302
    clock.move_to(NOON - 5)  # another machine, in the minute before
    assert search(browser).status_code == 429
    clock.move_to(NOON + 5)

    answer = search(browser)

    assert (answer.status_code, answer["Retry-After"]) == (429, "55")


def test_one_persons_limit_is_nobody_elses(operator: User, few: None, clock: time_machine.Traveller) -> None:
    browser, other = sign_in(operator), sign_in(make_user("operator"))

    answers = [
        search(browser),
        search(browser),
        search(other),
        browser.get("/orders/"),
        browser.get("/refunds/"),
    ]

    assert [answer.status_code for answer in answers] == [302, 429, 302, 200, 429]  # both lists are one limit
    assert Search.objects.count() == 2


def test_human_pace_is_no_haste(operator: User, settings: Any, clock: time_machine.Traveller) -> None:
    """A customer every 25 seconds for an hour: searched for, opened, and back to the list; as they are set."""
    from dashboard.settings import ORDERS_PER_HOUR, SEARCHES_PER_HOUR

    assert (SEARCHES_PER_HOUR, ORDERS_PER_HOUR) == (None, None)  # of the tests
    settings.SEARCHES_PER_HOUR, settings.ORDERS_PER_HOUR = 300, 600
    request = HttpRequest()
    request.user = operator
    waits = []
    for second in range(0, 3600, 25):
        clock.move_to(NOON + second)
        waits += [
            limits.hit(request, each) for each in (limits.SEARCHES, limits.LISTS, limits.ORDERS, limits.LISTS)
        ]

    assert set(waits) == {0}


def test_empty_setting_is_no_limit_and_counts_nothing(operator: User) -> None:
    browser = sign_in(operator)

    assert {search(browser).status_code for _ in range(100)} == {302}
    assert not Count.objects.exists()


def test_counting_is_one_query(operator: User, few: None) -> None:
    request = HttpRequest()
    request.user = operator

    with CaptureQueriesContext(
        connection,
    ) as queries:
        limits.hit(request, limits.SEARCHES)

    assert len(queries) == 1


# --- What is said -------------------------------------------------------------------------------------------
def test_page_says_when_to_go_on_and_has_what_was_typed(
    operator: User, few: None, clock: time_machine.Traveller, caplog: pytest.LogCaptureFixture
) -> None:
    browser = sign_in(operator)
    search(browser)
    clock.move_to(NOON + 20)

    answers = [search(browser, '田中 "太郎"') for _ in range(3)]

    assert [(answer.status_code, answer["Retry-After"]) for answer in answers] == [(429, "40")] * 3
    assert "から続けられます" in text(answers[0])
    assert 'value="田中 &quot;太郎&quot;"' in text(answers[0])
    assert "操作は行われていません" in text(answers[0])
    [entry] = refused()  # one in a window, after any number of tries
    assert (entry.actor, entry.action) == (operator, "orders.searched")
    assert "田中" not in entry.text
    alarms = [record for record in caplog.messages if "limit.reached" in record]
    assert len(alarms) == 1
    assert "'alarm': True" in alarms[0]


@pytest.mark.parametrize(
    "address", ["/orders/", "/refunds/", "/admin/refunds/order/", "/admin/refunds/search/"]
)
def test_every_list_of_names_has_its_limit(auditor: User, few: None, clock: Any, address: str) -> None:
    browser = sign_in(auditor)

    assert [browser.get(address).status_code for _ in range(2)] == [200, 429]


def test_orders_have_their_limit(auditor: User, few: None, clock: Any, order: Order) -> None:
    browser = sign_in(auditor)
    address = f"/admin/refunds/order/{order.pk}/change/"

    assert [browser.get(address).status_code for _ in range(2)] == [200, 429]
    assert browser.get(f"/orders/{order.order_id}/").status_code == 429


def test_refunds_count_as_orders_and_pages_that_renew_themselves_do_not(
    operator: User, paid: Order, settings: Any, clock: Any
) -> None:
    browser = sign_in(operator)
    page = confirm(browser, paid)["Location"]
    settings.ORDERS_PER_HOUR = 5  # one in a minute
    stranger = sign_in(make_user("viewer"))

    assert [
        browser.get(page).status_code,
        *(browser.get(f"{page}?renew=1").status_code for _ in range(9)),
    ] == [200] * 10
    assert browser.get(f"{page}review/").status_code == 429
    assert [stranger.get(f"{page}?renew=1").status_code for _ in range(2)] == [200, 200]
    assert stranger.get(page).status_code == 429


def test_other_part_of_a_page_is_no_renewal_of_it(
    operator: User, paid: Order, settings: Any, clock: time_machine.Traveller
) -> None:
    browser = sign_in(operator)
    page = confirm(browser, paid)["Location"]
    kept, _is_new = bulk.upload("refunds.csv", f"注文ID,返金額\n{paid.order_id},1\n".encode(), by=operator)
    settings.ORDERS_PER_HOUR = 5  # one in a minute

    for address, again in ((f"/bulk/{kept.pk}/", "after=0&renew=1"), (f"{page}review/", "renew=1")):
        clock.shift(60)
        assert browser.get(address).status_code == 200
        assert browser.get(f"{address}?{again}").status_code == 429
        assert browser.post(f"{address}?after=0", {"do": "explode"}).status_code == 429


def test_name_on_the_form_is_none_that_the_limit_gives_away(
    operator: User, paid: Order, settings: Any, clock: Any
) -> None:
    browser, other = sign_in(operator), make_order(5000, name="秘密 花子")
    settings.ORDERS_PER_HOUR = settings.REFUND_FORMS_PER_HOUR = 5

    opened = [
        browser.get(form_url(paid)),
        browser.get(form_url(other)),
        browser.post(form_url(other), {"all": "1"}),
    ]
    posted = [browser.post(form_url(paid), {}), browser.post(form_url(other), {})]

    assert [answer.status_code for answer in (*opened, *posted)] == [200, 429, 429, 422, 429]
    assert not any("秘密" in text(answer) for answer in (*opened, *posted))


LIMITED = {
    "/orders/": limits.LISTS,
    "/orders/search/": limits.SEARCHES,
    "/orders/export/": limits.LISTS,
    "/orders/order_test_1/": limits.ORDERS,
    "/refunds/": limits.LISTS,
    "/refunds/export/": limits.LISTS,
    "/refunds/00000000-0000-4000-8000-000000000000/": limits.ORDERS,
    "/refunds/00000000-0000-4000-8000-000000000000/decide/": limits.ORDERS,
    "/refunds/00000000-0000-4000-8000-000000000000/review/": limits.ORDERS,
    "/approvals/": limits.LISTS,
    "/bulk/00000000-0000-4000-8000-000000000000/": limits.ORDERS,
    "/admin/refunds/order/": limits.LISTS,
    "/admin/refunds/order/1/change/": limits.ORDERS,
    "/admin/refunds/search/": limits.LISTS,
}


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("address", LIMITED)
def test_every_limited_address_answers_429(
    auditor: User, settings: Any, clock: Any, address: str, method: str
) -> None:
    limit = LIMITED[address]
    browser = sign_in(auditor)
    ask = getattr(browser, method)
    assert ask(address).status_code != 429
    setattr(settings, limit.setting, 0)

    answer = ask(address)

    assert (answer.status_code, answer["Retry-After"]) == (429, "3600")
    [entry] = AuditEntry.objects.filter(data__why="limit", data__seconds=3600)
    assert (entry.actor, entry.action, entry.data["limit"]) == (auditor, limit.action, limit.name)


def test_no_other_address_has_a_limit_that_the_middleware_counts() -> None:
    def limited(resolver: Any, before: str = "") -> Iterator[tuple[str, limits.Limit]]:
        for each in resolver.url_patterns:
            if hasattr(each, "url_patterns"):
                yield from limited(each, before + (f"{each.namespace}:" if each.namespace else ""))
            elif limit := getattr(each.callback, "rate_limit", None):
                yield before + each.name, limit

    expected = {resolve(address).view_name: limit for address, limit in LIMITED.items()}
    assert dict(limited(get_resolver())) == expected


# --- The refund form ----------------------------------------------------------------------------------------
def test_form_stays_as_typed(
    operator: User,
    paid: Order,
    sandbox: Sandbox,
    settings: Any,
    clock: Any,
) -> None:
    settings.REFUND_FORMS_PER_HOUR = 5
    browser = sign_in(operator)
    first = browser.post(form_url(paid), typed(paid))
    sandbox.forget_requests()

    again = browser.post(form_url(paid), typed(paid, amount="12x", memo="電話 <で>"))
    last = browser.post(form_url(paid), hidden(first) | {"confirm": "1"})

    assert (first.status_code, again.status_code, last.status_code) == (200, 429, 429)
    assert 'value="12x"' in text(again)
    assert "電話 &lt;で&gt;" in text(again)
    assert "から続けられます" in text(again)
    assert "まだ返金していません。入力した内容は残っています。" in text(again)
    assert again["Retry-After"] == "60"
    assert hidden(last)["request_id"] == hidden(first)["request_id"]
    assert "¥1,000 を返金する" in text(last)
    assert not Refund.objects.exists()
    assert sandbox.requests() == []
    [entry] = refused()
    assert (entry.action, entry.data["why"]) == ("refund.requested", "limit")


def test_button_pressed_again_leads_to_the_refund_that_was_made(
    operator: User,
    paid: Order,
    sandbox: Sandbox,
    settings: Any,
    clock: Any,
) -> None:
    """A person who is told to wait must not be told that nothing was sent when the refund was made."""
    settings.REFUND_FORMS_PER_HOUR = 10
    browser = sign_in(operator)
    page = browser.post(form_url(paid), typed(paid))
    last = hidden(page) | {"confirm": "1"}

    answers = [browser.post(form_url(paid), last) for _click in range(3)]

    assert {answer["Location"] for answer in answers} == {f"/refunds/{last['request_id']}/"}


# --- Sign-ins, by address -----------------------------------------------------------------------------------
@pytest.mark.django_db
def test_sign_ins_of_an_address(few: None, clock: time_machine.Traveller) -> None:
    def tries(**where: str) -> int:
        return int(Client(**where).get("/oidc/authenticate/").status_code)  # type: ignore[arg-type]

    # 503: there is no provider.
    assert [tries(REMOTE_ADDR="192.0.2.7"), tries(REMOTE_ADDR="192.0.2.7")] == [503, 429]
    assert tries(REMOTE_ADDR="192.0.2.8") == 503
    assert [tries(REMOTE_ADDR=f"2001:db8::{n}") for n in (1, 2)] == [503, 429]  # one customer's network
    assert tries(REMOTE_ADDR="2001:db8:0:1::1") == 503
    assert tries(REMOTE_ADDR="") == 503  # a socket's file
    entry = AuditEntry.objects.filter(data__why="limit").earliest("id")
    assert (entry.actor, entry.action, entry.ip) == (None, "person.signed_in", "192.0.2.7")

    clock.move_to(NOON + 2 * 86400)
    assert tries(REMOTE_ADDR="192.0.2.9") == 503
    assert set(Count.objects.values_list("key", flat=True)) == {
        "sign_ins:60:address:192.0.2.9", "sign_ins:3600:address:192.0.2.9",
    }  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize("address", ["/oidc/authenticate/", "/oidc/callback/?state=x", "/break-glass/"])
def test_no_other_site_uses_up_the_sign_ins_of_an_address(few: None, clock: Any, address: str) -> None:
    issue()
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    followed = image | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}

    answers = [Client().get(address, headers=headers) for headers in (image, image, followed, followed)]

    assert {answer.status_code for answer in answers[:2]} <= {200, 302, 400}
    assert (
        Client().get("/oidc/authenticate/").status_code == 503
    )  # from the missing provider, not from the limit
    assert Client().post("/break-glass/", {"code": "wrong"}).status_code == 403


@pytest.mark.django_db
def test_codes_are_tried_a_few_times_only_and_each_is_on_the_trail(few: None, clock: Any) -> None:
    code = issue()

    tries = [Client().post("/break-glass/", {"code": each}).status_code for each in ("x", "y", code)]

    assert tries == [403, 429, 429]
    first, second = refused()
    assert (first.action, first.data) == ("person.signed_in", {"reason": "break_glass_code"})
    assert second.data["limit"] == "codes"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("remote", "forwarded", "caller"),
    [
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),  # what was there before, the caller made up
        ("10.0.0.1", "198.51.100.1, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "192.0.2.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "<script>\x1b[31m", "10.0.0.1"),
        ("192.0.2.9", "198.51.100.1", "192.0.2.9"),  # no proxy of ours
        ("", "198.51.100.1", ""),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),  # a socket that speaks IPv4 and IPv6
        ("10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.9", "198.51.100.1", "192.0.2.9"),
    ],
)
def test_only_our_proxies_say_who_called(settings: Any, remote: str, forwarded: str, caller: str) -> None:
    from ipaddress import ip_network

    settings.TRUSTED_PROXIES = [ip_network("10.0.0.0/8")]
    response = Client(REMOTE_ADDR=remote).get("/sign-in/", headers={"X-Forwarded-For": forwarded})

    assert response.wsgi_request.META["REMOTE_ADDR"] == caller
