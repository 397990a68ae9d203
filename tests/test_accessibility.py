"""axe-core finds nothing on any screen, in light and dark, on a desk and on a telephone (WCAG 2.2, A and AA)."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.template.loader import render_to_string
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from tests.npm import installed
from tests.site import ROOT, Running, Site
from tests.test_journeys import DESKTOP, PHONE, Person, chrome, contradicted_refund, site

__all__ = ["chrome", "site"]  # fixtures
pytestmark = pytest.mark.browser

HERE = Path(__file__).resolve().parent / "accessibility"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
OURS = {"runOnly": [*WCAG, "best-practice"], "resultTypes": ["violations"]}
DJANGOS = {
    "runOnly": WCAG,
    "resultTypes": ["violations"],
}  # its admin has a search box without a visible label
STILL = "Promise.allSettled(document.getAnimations().map((each) => each.finished))"
RUN = """async (rules) => (await axe.run(document, rules)).violations.map(
    (each) => `${each.id}: ${each.help}\\n` + each.nodes.map((node) => `    ${node.html}`).join("\\n"))"""


@pytest.fixture(scope="module")
def axe() -> str:
    return (installed(HERE) / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def operator(chrome: Browser, site: Site) -> Iterator[Person]:
    person = Person(chrome, site, "operator")
    yield person
    person.context.close()


def order(site: Running, skip: int = 40) -> dict[str, Any]:
    found: dict[str, Any] = site.sandbox.find_all("refundable", limit=60, min_amount=3000)[skip]
    return found


def form(person: Person) -> None:
    person.open_refund_form(order(person.site)["order"])


def bad_form(person: Person) -> None:
    form(person)
    person.fill_in("多すぎ", "あ" * 90)


def confirmation(person: Person) -> None:
    form(person)
    person.fill_in("100", "サイズ交換のため")


def refund(person: Person) -> None:
    confirmation(person)
    person.page.get_by_role("button", name="¥100 を返金する").click()
    person.page.wait_for_url("**/refunds/*/")


def similar(person: Person) -> None:
    person.open_refund_form(order(person.site)["order"])
    person.fill_in("200")


def unknown(person: Person) -> None:
    person.open_refund_form(order(person.site, 41)["order"])
    person.site.sandbox.fault("reset", executed=False)
    person.fill_in("300")
    person.page.get_by_role("button", name="¥300 を返金する").click()
    person.page.wait_for_url("**/refunds/*/")


def bulk(person: Person) -> None:
    person.page.goto("/bulk/")
    lines = f"注文ID,返金額\n{order(person.site, 42)['order']},50\norder_test_none,1\n"
    person.page.get_by_label("CSV ファイル").set_input_files(
        {"name": "返金.csv", "mimeType": "text/csv", "buffer": lines.encode()}
    )
    person.page.get_by_role("button", name="取り込んで確認する").click()
    person.page.get_by_role("button", name="返金する").last.wait_for()


def keys(person: Person) -> None:
    person.page.goto("/orders/")
    person.page.keyboard.press("?")
    person.page.get_by_role("dialog", name="キー操作").wait_for()


def saved(person: Person) -> None:
    person.search("田中")
    person.page.get_by_text("この検索を保存").click()
    person.page.get_by_label("いまの検索と条件に名前をつける").fill("田中さん")
    person.page.get_by_role("button", name="保存する").click()
    person.page.get_by_text("保存・整理").click()
    person.page.get_by_role("button", name="「田中さん」を削除").wait_for()


def menu(person: Person) -> None:
    person.page.goto("/")
    person.page.locator(".menu summary").click()
    person.page.get_by_role("button", name="サインアウト").wait_for()


def offline(person: Person) -> None:
    person.page.goto("/orders/")
    person.context.set_offline(True)
    person.page.get_by_text("ネットワークに接続していません").wait_for()


def drawn(template: str, **context: Any) -> Callable[[Person], Any]:
    """A page that no address answers with, drawn where the style sheets are."""

    def go(person: Person) -> None:
        person.page.goto("/nowhere/")
        person.page.set_content(render_to_string(template, context), wait_until="load")

    return go


def at(address: str) -> Callable[[Person], Any]:
    return lambda person: person.page.goto(address)


SCREENS: dict[str, Callable[[Person], Any]] = {
    "start": at("/"),
    "orders": at("/orders/"),
    "found": lambda person: person.search("田中"),
    "saved searches": saved,
    "keys": keys,
    "menu": menu,
    "offline": offline,
    "nothing found": lambda person: person.search("存在しない名前"),
    "order": lambda person: person.page.goto(f"/orders/{order(person.site)['order']}/"),
    "no such order": at("/orders/order_test_none/"),
    "form": form,
    "bad form": bad_form,
    "confirmation": confirmation,
    "refund": refund,
    "similar": similar,
    "unknown": unknown,
    "refunds": at("/refunds/"),
    "no refunds": at("/refunds/?state=review"),
    "files": at("/bulk/"),
    "file": bulk,
    "not allowed": at("/approvals/"),
    "not there": at("/nowhere/"),
    "broken": drawn("500.html"),
    "not understood": drawn("400.html"),
    "sign-in ended": drawn("site/session_interrupted.html", posted=True),
    "not from here": drawn("site/csrf_failure.html"),
    "no role": drawn("site/no_role.html", explanation={"title": "利用する権限がありません"}),
    "break-glass": drawn("site/break_glass.html", wrong=True),
    "wait": drawn("429.html", explanation="06:00:00 から続けられます。"),
}


def violations(page: Page, axe: str, rules: dict[str, Any] = OURS) -> dict[tuple[str, int], list[str]]:
    """What axe has against the page as it stands, by scheme and width; empty where it has nothing."""
    found = {}
    for scheme in ("light", "dark"):
        for size in (DESKTOP, PHONE):
            # Without motion: half-way between two colours there is no contrast.
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.set_viewport_size(size)  # type: ignore[arg-type]
            page.evaluate(STILL)  # Django's admin moves all the same
            page.evaluate(axe)
            if said := page.evaluate(RUN, rules):
                found[scheme, size["width"]] = said
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("name", SCREENS)
def test_nothing_keeps_anybody_out_of_a_screen(operator: Person, axe: str, name: str) -> None:
    SCREENS[name](operator)

    found = violations(operator.page, axe)
    operator.context.set_offline(False)

    assert found == {}


@pytest.mark.parametrize("role", ["approver", "auditor"])
def test_nothing_keeps_the_others_out(chrome: Browser, site: Site, axe: str, role: str) -> None:
    day = timezone.localdate()
    site.sandbox.refund_elsewhere(order(site)["payments"][0]["id"], 100)
    differences = subprocess.run(
        [sys.executable, "manage.py", "reconcile"],
        cwd=ROOT,
        env=site.environment,
        check=False,
        capture_output=True,
    )
    assert differences.returncode == 1
    person = Person(chrome, site, role)
    addresses = {
        "approver": ["/", "/approvals/", "/reconciliation/", f"/reconciliation/{day}/"],
        "auditor": [
            "/admin/",
            "/admin/refunds/auditentry/",
            "/admin/refunds/refund/",
            "/admin/refunds/order/",
            "/admin/refunds/jobrun/",
            "/admin/refunds/synccursor/",
            "/admin/dashboard/user/",
        ],
    }[role]
    found = {}
    for address in addresses:
        person.page.goto(address)
        found[address] = violations(person.page, axe, DJANGOS if role == "auditor" else OURS)
    if role == "auditor":
        person.page.goto("/admin/refunds/auditentry/")
        person.page.locator("#result_list tbody th a").first.click()
        person.page.wait_for_url("**/change/**")
        found["an entry"] = violations(person.page, axe, DJANGOS)
    person.context.close()

    assert {address: said for address, said in found.items() if said} == {}


def test_nothing_keeps_an_approver_out_of_a_case(
    chrome: Browser, site: Site, axe: str, operator: Person
) -> None:
    contradicted = order(site, 43)
    operator.open_refund_form(contradicted["order"])
    with contradicted_refund(site, contradicted["payments"][0]["id"], shown=300):
        operator.fill_in("137")
        button = operator.page.get_by_role("button", name="¥137 を返金する")
        button.wait_for()
        reason = operator.page.get_by_label("それでも返金する理由")
        if reason.count():  # the tests before may have refunded this customer
            reason.fill("別の商品の返品")
        button.click()
        expect(operator.page.get_by_role("heading", level=1)).to_contain_text("要調査", timeout=120_000)
    approver = Person(chrome, site, "approver")
    approver.page.goto(f"{operator.page.url}review/")
    approver.page.get_by_role("button", name="判定する").wait_for()

    found = violations(approver.page, axe)
    approver.context.close()

    assert found == {}


def test_nothing_keeps_anybody_out_of_the_sign_in(chrome: Browser, site: Site, axe: str) -> None:
    page = chrome.new_context(base_url=site.url, locale="ja-JP").new_page()
    found = {}
    for address in ("/sign-in/", "/signed-out/", "/sign-in/?next=/orders/"):
        page.goto(address)
        found[address] = violations(page, axe)
    page.context.close()

    assert {address: said for address, said in found.items() if said} == {}
