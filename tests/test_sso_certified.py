"""Signing in with a certified provider that nobody here wrote, in a real browser: the whole way of a working day.

What no certified provider would ever answer is test_sso.py's.
"""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from scripts.postgres import free_port
from tests import test_journeys
from tests.certified_provider import CLIENT_ID, CLIENT_SECRET, CertifiedProvider
from tests.site import Site

pytestmark = pytest.mark.browser
chrome = test_journeys.chrome

RECHECK = STEP_UP = 8  # seconds; a quarter of an hour and five minutes outside of tests
PEOPLE: dict[str, dict[str, Any]] = {
    "hanako": {"name": "返金 花子", "groups": ["all-staff", "Refund Operators"]},
    "ichiro": {"name": "承認 一郎", "groups": ["Refund Approvers"]},
    "jiro": {"name": "総務 次郎", "groups": ["all-staff"]},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, CertifiedProvider]]:
    port = free_port()
    settings = {
        "OIDC_ISSUER": f"http://127.0.0.1:{port}",
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_ROLE_OPERATOR": "Refund Operators",
        "OIDC_ROLE_APPROVER": "Refund Approvers",
        "SSO_RECHECK_SECONDS": str(RECHECK),
        "SSO_STEP_UP_SECONDS": str(STEP_UP),
        "REFUND_APPROVAL_ABOVE": "5000",
    }
    with (
        Site(tmp_path_factory.mktemp("site"), **settings) as site,
        CertifiedProvider(port, site.url) as there,
    ):
        yield site, there


@pytest.fixture
def site(both: tuple[Site, CertifiedProvider]) -> Site:
    return both[0]


@pytest.fixture
def provider(both: tuple[Site, CertifiedProvider]) -> CertifiedProvider:
    both[1].set_people(PEOPLE)
    return both[1]


class Person:
    """A person with a browser of their own. `asked`: the parameters of each request to the provider."""

    def __init__(self, chrome: Browser, site: Site) -> None:
        self.site = site
        self.context = chrome.new_context(base_url=site.url, locale="ja-JP", timezone_id="Asia/Tokyo")
        self.context.set_default_timeout(15_000)  # milliseconds
        # The provider's pages load a font from another site; tests make no requests to other sites.
        self.context.route(lambda url: urlsplit(url).hostname != "127.0.0.1", lambda route: route.abort())
        self.asked: list[dict[str, str]] = []
        self.context.on("request", self._notice)
        self.page: Page = self.context.new_page()

    def _notice(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.path == "/auth":
            self.asked.append(dict(parse_qsl(url.query)))

    def sign_in(self, login: str) -> None:
        self.page.goto("/")
        self.page.get_by_role("link", name="会社のアカウントでサインイン").click()
        self.type_password(login)

    def type_password(self, login: str) -> None:
        """Sign in on the provider's own page."""
        self.page.get_by_placeholder("Enter any login").fill(login)
        self.page.get_by_placeholder("and password").fill("of no interest to the dashboard")
        self.page.get_by_role("button", name="Sign-in").click()

    def wait_for_recheck(self) -> None:
        """Wait until the dashboard has to ask the provider again."""
        time.sleep(RECHECK + 1)

    def heading(self) -> Any:
        return self.page.get_by_role("heading", level=1)


@pytest.fixture
def person(chrome: Browser, site: Site, provider: CertifiedProvider) -> Iterator[Person]:
    somebody = Person(chrome, site)
    yield somebody
    somebody.context.close()


def test_code_pkce_and_nonce_bring_a_person_to_the_page_they_asked_for(person: Person, site: Site) -> None:
    person.page.goto("/refunds/?state=succeeded")
    person.page.get_by_role("link", name="会社のアカウントでサインイン").click()
    person.type_password("hanako")

    person.page.wait_for_url(f"{site.url}/refunds/?state=succeeded")
    expect(person.page.get_by_text("返金 花子").first).to_be_attached()
    expect(person.page.get_by_text("返金担当者").first).to_be_attached()
    [asked] = person.asked
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    assert asked["scope"] == "openid profile email groups"
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 32
    [cookie] = [each for each in person.context.cookies() if each["name"] == "session"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")


def test_who_has_no_role_is_told_whom_to_ask_and_may_come_as_somebody_else(
    person: Person, site: Site
) -> None:
    person.sign_in("jiro")
    expect(person.heading()).to_have_text("利用する権限がありません")
    expect(person.page.get_by_text("社内の認証サービスの管理者に依頼してください")).to_be_visible()
    person.page.goto("/orders/")
    assert "/sign-in/" in person.page.url

    person.page.goto("/oidc/authenticate/?account=other")
    person.type_password("hanako")
    person.page.wait_for_url(f"{site.url}/")


def test_cancelling_at_the_provider_is_explained(person: Person) -> None:
    person.page.goto("/")
    person.page.get_by_role("link", name="会社のアカウントでサインイン").click()
    person.page.get_by_role("link", name="Cancel").click()

    expect(person.heading()).to_have_text("サインインが取り消されました")
    expect(person.page.get_by_role("link", name="サインイン画面に戻る")).to_be_visible()


def test_role_changed_at_the_provider_holds_from_the_next_check_on(
    person: Person, provider: CertifiedProvider
) -> None:
    person.sign_in("hanako")
    assert person.page.goto("/approvals/").status == 403  # type: ignore[union-attr]
    provider.set_people(PEOPLE | {"hanako": {"name": "返金 花子", "groups": ["Refund Approvers"]}})
    person.wait_for_recheck()

    assert person.page.goto("/approvals/").status == 200  # type: ignore[union-attr]
    assert urlsplit(person.page.url).path == "/approvals/"  # nobody was asked to type anything
    assert person.asked[-1]["prompt"] == "none"


def test_role_taken_away_ends_access_at_the_next_check(person: Person, provider: CertifiedProvider) -> None:
    person.sign_in("hanako")
    provider.set_people(PEOPLE | {"hanako": {"name": "返金 花子", "groups": ["all-staff"]}})
    person.wait_for_recheck()

    person.page.goto("/orders/")
    expect(person.heading()).to_have_text("利用する権限がありません")
    person.page.goto("/orders/")
    assert "/sign-in/" in person.page.url


def test_disabled_account_loses_access_in_time(person: Person, provider: CertifiedProvider) -> None:
    person.sign_in("hanako")
    person.page.goto("/orders/")
    provider.set_people({})
    disabled = time.monotonic()
    while "/sign-in/" not in person.page.url:  # at work all the time: that keeps no session alive
        person.page.goto("/orders/")
        time.sleep(0.5)
        assert time.monotonic() - disabled < RECHECK + 5

    expect(person.page.get_by_text("会社のアカウントからサインアウトしています")).to_be_visible()
    person.page.goto("/orders/")
    assert "/sign-in/" in person.page.url


def test_signing_out_ends_the_session_at_both(person: Person, site: Site) -> None:
    person.sign_in("hanako")
    person.page.wait_for_url(f"{site.url}/")
    [stolen] = [each for each in person.context.cookies() if each["name"] == "session"]
    person.page.get_by_text("返金 花子").first.click()
    person.page.get_by_role("button", name="サインアウト").click()
    person.page.get_by_role("button", name="Yes, sign me out").click()  # it answers 400 without an ID token
    assert (person.asked[-1]["prompt"], person.asked[-1]["scope"]) == ("none", "openid")
    person.page.wait_for_url(f"{site.url}/signed-out/")
    expect(person.heading()).to_have_text("サインアウトしました")

    person.context.add_cookies([stolen])  # type: ignore[list-item]  # Playwright gives what it takes
    person.page.goto("/orders/")
    assert "/sign-in/" in person.page.url
    person.page.get_by_role("link", name="会社のアカウントでサインイン").click()
    expect(person.page.get_by_placeholder("and password")).to_be_visible()  # asked anew


def test_signing_out_at_the_provider_ends_the_session_here_at_once(
    person: Person, provider: CertifiedProvider
) -> None:
    person.sign_in("hanako")
    person.page.goto("/orders/")
    elsewhere = person.context.new_page()
    elsewhere.goto(f"{provider.issuer}/session/end")
    elsewhere.get_by_role("button", name="Yes, sign me out").click()
    expect(elsewhere.get_by_role("heading", name="Sign-out Success")).to_be_visible()

    assert provider.told()[-1] == ["hanako", "done"]
    asked = len(person.asked)
    person.page.goto("/orders/")
    assert "/sign-in/" in person.page.url
    assert len(person.asked) == asked  # known without asking


def test_asking_for_much_and_deciding_want_a_fresh_sign_in(
    person: Person, provider: CertifiedProvider, chrome: Browser, site: Site
) -> None:
    found = site.sandbox.find("refundable", min_amount=8000)
    operator = Person(chrome, site)
    operator.sign_in("hanako")
    time.sleep(STEP_UP + 1)
    operator.page.goto(f"/orders/{found['order']}/refund/")
    operator.page.get_by_label("返金額").fill("6000")
    operator.page.get_by_label("社内メモ").fill("店長と相談済み")
    operator.page.get_by_label("返金額").press("Enter")
    operator.page.get_by_role("button", name="¥6,000 の返金を申請する").click()
    stepped_up = operator.asked[-1]
    operator.type_password("hanako")

    assert (stepped_up["prompt"], stepped_up["max_age"]) == ("login", "0")
    expect(operator.page.get_by_text("操作はまだ実行していません")).to_be_visible()
    expect(operator.page.get_by_text("店長と相談済み")).to_be_visible()
    operator.page.get_by_role("button", name="¥6,000 の返金を申請する").click()
    expect(operator.heading()).to_contain_text("承認待ち")
    refund = operator.page.url
    operator.context.close()

    person.sign_in("ichiro")
    time.sleep(STEP_UP + 1)
    person.page.goto(refund)
    person.page.get_by_label("却下の理由・コメント").fill("電話で確認済み")
    person.page.get_by_role("button", name="¥6,000 の返金を承認する").click()
    asked = person.asked[-1]
    person.type_password("ichiro")

    expect(person.page.get_by_text("操作はまだ実行していません")).to_be_visible()
    assert (asked["prompt"], asked["max_age"]) == ("login", "0")
    expect(person.page.get_by_label("却下の理由・コメント")).to_have_value("電話で確認済み")
    expect(person.heading()).to_contain_text("承認待ち")
    person.page.get_by_role("button", name="¥6,000 の返金を承認する").click()
    expect(person.heading()).to_contain_text("返金済み")


def test_somebody_elses_password_at_the_step_up_decides_nothing(person: Person, site: Site) -> None:
    person.sign_in("ichiro")
    person.page.wait_for_url(f"{site.url}/")
    person.page.goto("/oidc/step-up/?next=/approvals/")
    person.type_password("hanako")

    # The provider ends the session of the first, here too; and with it the sign-in that the first had begun.
    expect(person.heading()).to_have_text("このサインインは続けられません")
    person.page.get_by_role("link", name="サインイン画面に戻る").click()
    person.page.get_by_role("link", name="会社のアカウントでサインイン").click()
    person.page.wait_for_url(f"{site.url}/")
    expect(person.page.get_by_text("返金 花子").first).to_be_attached()
    assert person.page.goto("/approvals/").status == 403  # type: ignore[union-attr]
