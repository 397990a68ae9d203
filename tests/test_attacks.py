"""Attacks over real HTTP on the whole running product: none succeeds, none is answered with a 5xx, no money moves.

Who may open what is tests/test_rights.py's; forged tokens are tests/test_sso.py's, forged webhooks test_webhooks.py's.
"""

import http.client
import itertools
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

import psycopg
import pytest
import requests
from django.apps import apps
from django.db import connection
from playwright.sync_api import Browser, Dialog
from psycopg import sql

from refunds.models import Refund
from scripts.check import PRODUCTION
from scripts.postgres import free_port
from tests import rights, test_journeys
from tests import site as sites
from tests.site import ROOT, Site

ROLES = ["viewer", "operator", "approver", "auditor"]
HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)"')
chrome = test_journeys.chrome
LARGE = 6000  # yen: waits for approval, so that nothing is sent


class LoggedSite(Site):
    """Keeps what its processes log."""

    log: Path

    def _start(self, *arguments: str) -> subprocess.Popen[Any]:
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=self.environment, stderr=log)


class Robot:
    """Somebody signed in, who sends what no browser would."""

    def __init__(self, site: Site, role: str, session: str = "") -> None:
        self.site = site
        self.http = requests.Session()
        self.http.trust_env = False
        if session:
            self.http.cookies.set("session", session, domain="127.0.0.1", path="/")
        if role:
            there = self.http.get(f"{site.url}/oidc/authenticate/", params={"next": "/"}, timeout=30)
            home = self.http.post(there.url, data={"sub": role}, timeout=30)
            assert (home.url, home.status_code) == (f"{site.url}/", 200), home.text

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.http.request(method, self.site.url + path, allow_redirects=False, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.ask("GET", path, **options)

    def token(self) -> str:
        return hidden(self.get("/sign-in/" if not self.session else "/").text)["csrfmiddlewaretoken"]

    def post(self, path: str, fields: Any = None, **options: Any) -> requests.Response:
        """With the token that our own pages have."""
        fields = {"csrfmiddlewaretoken": self.token()} | (fields or {})
        return self.ask("POST", path, data=fields, **options)

    @property
    def session(self) -> str:
        return self.http.cookies.get("session", domain="127.0.0.1", path="/") or ""


def hidden(page: str) -> dict[str, str]:
    return {name: unescape(value) for name, value in HIDDEN.findall(page)}


class World:
    """The site, somebody of every role, and one of everything; `large` waits for approval, the operator's."""

    def __init__(self, site: LoggedSite) -> None:
        self.site = site
        self.people = {role: Robot(site, role) for role in ROLES}
        self.anyone = Robot(site, "")
        orders = site.sandbox.find_all("refundable", min_amount=3 * LARGE, limit=3)
        self.order, self.other = orders[0]["order"], orders[1]["order"]
        self.payment, self.others_payment = orders[0]["payments"][0]["id"], orders[1]["payments"][0]["id"]
        self.third = orders[2]["order"], orders[2]["payments"][0]["id"]
        self.large = self.ask_for("operator")
        found = self.people["operator"].post("/orders/search/", {"q": "田中"})
        self.search = found.headers["Location"].partition("search=")[2]
        self.file = self.upload("x.csv", f"注文ID,返金額\n{self.order},100\n")

    def upload(self, name: str, text: str) -> str:
        """A file of the operator's, which nobody has started."""
        kept = self.people["operator"].post("/bulk/", files={"file": (name, text.encode())})
        assert kept.status_code == 303, kept.text
        return kept.headers["Location"].split("/")[2]

    def form(self, **other: str) -> dict[str, str]:
        return {
            "request_id": str(uuid.uuid4()), "payment": self.payment, "amount": str(LARGE),
            "reason": "requested_by_customer", "description": "", "memo": "",
        } | other  # fmt: skip

    def confirmation(self, role: str, order: str = "", **other: str) -> dict[str, str]:
        """The fields of the last page, signed."""
        page = self.people[role].post(f"/orders/{order or self.order}/refund/", self.form(**other))
        assert page.status_code == 200, page.text
        return hidden(page.text) | {"confirm": "1", "similar_reason": "二点目"}

    def ask_for(self, role: str, order: str = "", **other: str) -> str:
        """A refund that waits for approval."""
        last = self.confirmation(role, order, **other)
        done = self.people[role].ask("POST", f"/orders/{order or self.order}/refund/", data=last)
        assert done.status_code == 303, done.text
        return last["request_id"]

    def state(self, refund: str) -> str:
        [state] = set(
            re.findall(r'data-state="(\w+)"', self.people["viewer"].get(f"/refunds/{refund}/").text)
        )
        return cast(str, state)

    def sent(self) -> int:
        return len(self.site.sandbox.requests("POST", "/v1/refunds"))

    def trail(self) -> list[dict[str, Any]]:
        """Every entry so far, oldest first."""
        lines = self.people["auditor"].get("/admin/refunds/auditentry/export.jsonl").text.splitlines()
        entries = [json.loads(json.loads(line)["text"]) for line in lines]
        return sorted(entries, key=lambda entry: entry["at"])

    def refused(self, since: int) -> list[tuple[str, str]]:
        """Who was refused what, of the entries after the first so many."""
        return [
            (entry["roles"], entry["action"])
            for entry in self.trail()[since:]
            if entry["outcome"] == "refused"
        ]

    def concrete(self, address: str, **ids: str) -> str:
        """An address of tests/rights.py with ids in the place of its brackets."""
        parts = {
            "order_id": self.order, "refund_id": self.large, "search_id": self.search, "bulk_id": self.file,
            "app_label": "refunds", "content_type_id": "1", "object_id": "1", "url": "nowhere", "day": "2026-03-09",
        } | ids  # fmt: skip
        return re.sub(r"<(\w+)>", lambda name: parts[name[1]], address)

    def addresses(self) -> list[str]:
        return sorted({self.concrete(address) for address, _method in rights.expected()})


@pytest.fixture(scope="module")
def database(django_db_setup: None) -> Iterator[dict[str, str]]:
    """Where the site keeps its data: PostgreSQL where the tests run on it, else a file."""
    if connection.vendor != "postgresql":
        yield {}
        return
    url, name = os.environ["DATABASE_URL"], f"attacks_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield {"DATABASE_URL": urlsplit(url)._replace(path=f"/{name}").geturl()}
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, database: dict[str, str]) -> Iterator[World]:
    home = tmp_path_factory.mktemp("site")
    LoggedSite.log = home / "log"
    settings = {
        "REFUND_APPROVAL_ABOVE": "5000",
        "LOG_LEVEL": "INFO",
        "SSO_STEP_UP_SECONDS": "3600",
        "ALLOWED_HOSTS": "127.0.0.1",
    }
    with LoggedSite(home, **settings, **database) as site:
        yield World(site)


@pytest.fixture(autouse=True)
def no_money_moves(world: World) -> Iterator[None]:
    before = world.sent()
    yield
    assert world.sent() == before
    assert world.state(world.large) == "awaiting_approval"


# --- Who: ids, roles, sessions ------------------------------------------------------------------------------
FOREIGN = {
    "order_id": [
        "order_test_0000000000000000000000",
        "order_live_0000000000000000000000",
        "payment",
        "%2e%2e",
    ],
    "refund_id": [str(uuid.UUID(int=0)), str(uuid.uuid4())],
    "bulk_id": [str(uuid.UUID(int=0))],
    "search_id": ["x" * 22, "1", "0' OR '1'='1"],
    "object_id": ["99999999999999999999", "order_test_0000000000000000000000", "a%00b"],
    "content_type_id": ["0", "99999999999999999999"],
    "app_label": ["auth", "nowhere", "%00"],
    "url": ["..%2f..%2fetc%2fpasswd"],
    "day": ["2026-02-30", "1900-01-01", "9999-12-31", "today"],
}


def test_ids_of_nothing_open_nothing(world: World) -> None:
    """Every address with an id, with ids of nothing and of other kinds; what is somebody else's is below."""
    wrong = []
    for address, method in sorted(rights.expected()):
        for name in re.findall(r"<(\w+)>", address) if method in {"GET", "POST"} else []:
            for foreign in FOREIGN[name]:
                path = world.concrete(address, **{name: foreign})
                for robot in (world.people["approver"], world.people["auditor"]):
                    fields = (
                        {"csrfmiddlewaretoken": robot.token()} | world.form() if method == "POST" else None
                    )
                    answer = robot.http.request(method, world.site.url + path, data=fields, timeout=60)
                    # The admin says in a message what it does not find, on its own first page.
                    nowhere = answer.url == f"{world.site.url}/admin/" and answer.history
                    if answer.status_code not in {400, 403, 404, 405} and not nowhere:
                        wrong.append((method, path, answer.status_code, answer.url))

    assert wrong == []


def test_anothers_refund_and_search_are_refused_on_the_record(world: World) -> None:
    before, approver, operator = len(world.trail()), world.people["approver"], world.people["operator"]

    answers = [
        approver.post(f"/refunds/{world.large}/withdraw/"),
        approver.get(f"/orders/?search={world.search}"),
        operator.post(f"/refunds/{world.large}/decide/", {"approve": "1"}),
        world.people["viewer"].post(f"/orders/{world.order}/refund/", world.form()),
        world.people["auditor"].post("/refunds/sends/", {"stop": "1", "reason": "x"}),
        operator.get("/admin/login/"),
    ]

    assert [answer.status_code for answer in answers] == [403, 404, 403, 403, 403, 403]
    assert world.refused(before) == [
        ("approver", "page.refused"),
        ("approver", "orders.searched"),
        ("operator", "page.refused"),
        ("viewer", "page.refused"),
        ("auditor", "page.refused"),
        ("operator", "page.refused"),
    ]


def test_payment_of_another_order_is_not_refunded_from_here(world: World) -> None:
    before = len(world.trail())
    last = world.confirmation("operator") | {"payment": world.others_payment}

    answers = [
        world.people["operator"].post(
            f"/orders/{world.order}/refund/", world.form(payment=world.others_payment)
        ),
        world.people["operator"].ask("POST", f"/orders/{world.order}/refund/", data=last),
    ]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert world.refused(before) == [("operator", "refund.requested")] * 2


def test_nothing_but_the_forms_fields_is_taken(world: World) -> None:
    """Every name of every field of every model is posted along, as many at once as are taken."""
    asked = world.form(payment=world.third[1], amount=f"{LARGE + 1}")
    models = apps.get_models(include_auto_created=True)
    names = {
        name
        for model in models
        for field in model._meta.get_fields()
        for name in (field.name, f"{field.name}_id")
    }
    others = sorted(names - set(asked))
    operator, address = world.people["operator"], f"/orders/{world.third[0]}/refund/"

    for start in range(0, len(others), 80):
        more = dict.fromkeys(others[start : start + 80], "1") | {"state": "succeeded", "requested_by": "1"}
        last = hidden(operator.post(address, asked | more).text)
        assert {name: last[name] for name in asked} == asked
        assert set(last) - set(asked) == {"csrfmiddlewaretoken", "signature", "next"}  # next: of the language
    of_refund = dict.fromkeys((field.attname for field in Refund._meta.concrete_fields), "1")
    made = operator.ask("POST", address, data=of_refund | {"state": "succeeded"} | last | {"confirm": "1"})

    assert made.status_code == 303
    assert world.state(asked["request_id"]) == "awaiting_approval"
    [entry] = [entry for entry in world.trail() if entry["object_id"] == asked["request_id"]][:1]
    assert (entry["action"], entry["roles"], entry["data"]["amount"]) == (
        "refund.requested",
        "operator",
        LARGE + 1,
    )
    assert operator.get("/admin/login/").status_code == 403  # still no auditor
    operator.post(f"/refunds/{asked['request_id']}/withdraw/")


def test_forged_confirmation_makes_no_refund(world: World) -> None:
    operator, approver, address = (
        world.people["operator"],
        world.people["approver"],
        f"/orders/{world.order}/refund/",
    )
    signed = world.confirmation("operator")
    body, stamp, signature = signed["signature"].split(":")
    forged = {
        "none": signed | {"signature": ""},
        "garbage": signed | {"signature": "x" * 10_000},
        "other bytes": signed | {"signature": f"{body}:{stamp}:{signature[::-1]}"},
        "no signature": signed | {"signature": f"{body}:{stamp}"},
        "later": signed | {"signature": f"{body}:zzzzzz:{signature}"},
        "more": signed | {"amount": str(LARGE + 1)},
        "other id": signed | {"request_id": str(uuid.uuid4())},
        "other words": signed | {"description": "もう一つ"},
        "surrogate": signed | {"signature": "\x00\udc80".encode(errors="surrogatepass").decode("latin-1")},
    }
    before = len(world.trail())

    answers = {
        name: operator.ask("POST", address, data=fields).status_code for name, fields in forged.items()
    }
    anothers = approver.post(address, signed | {"csrfmiddlewaretoken": approver.token()}).status_code

    assert answers | {"another's": anothers} == dict.fromkeys([*forged, "another's"], 422)
    assert world.refused(before) == [
        *[("operator", "refund.requested")] * len(forged), ("approver", "refund.requested"),
    ]  # fmt: skip
    assert operator.get(f"/refunds/{signed['request_id']}/").status_code == 404


def test_nobody_approves_their_own_however_often_at_once(world: World) -> None:
    """An approver may ask and may approve, signed in at two browsers; twelve times at once."""
    again = Robot(world.site, "approver")
    own = world.ask_for("approver", world.other, payment=world.others_payment)
    before = len(world.trail())
    tokens = {robot: robot.token() for robot in (again, world.people["approver"])}

    def approve(nth: int) -> int:
        robot = (again, world.people["approver"])[nth % 2]
        fields = {"approve": "1", "note": "", "csrfmiddlewaretoken": tokens[robot]}
        return robot.ask("POST", f"/refunds/{own}/decide/", data=fields).status_code

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(approve, range(12)))

    assert answers == [403] * 12
    assert world.state(own) == "awaiting_approval"
    assert world.refused(before) == [("approver", "page.refused")] * 12
    world.people["approver"].post(f"/refunds/{own}/withdraw/")


def test_session_of_before_the_sign_in_opens_nothing(world: World) -> None:
    """Whoever plants a session in a browser and waits for its owner to sign in holds nothing afterwards."""
    planter = Robot(world.site, "")
    planter.get("/oidc/authenticate/")
    planted = planter.session
    made_up = Robot(world.site, "", session="a" * 32)
    made_up.get("/oidc/authenticate/")

    victim = Robot(world.site, "operator", session=planted)

    assert planted
    assert victim.session not in {"", planted}
    assert made_up.session not in {"", "a" * 32}
    assert planter.get("/orders/").headers["Location"] == "/sign-in/?next=/orders/"
    assert Robot(world.site, "", session=victim.session).get("/orders/").status_code == 200


# --- From where: other sites --------------------------------------------------------------------------------
def test_other_sites_post_nothing(world: World) -> None:
    robot, answers = world.people["approver"], {}
    token = robot.token()
    posts = {address for address, method in rights.expected() if method == "POST"} - rights.WITHOUT_TOKEN
    evil = {
        "no token": ({}, {}),
        "a token of their own": ({"csrfmiddlewaretoken": "a" * 64}, {}),
        "another's token": ({"csrfmiddlewaretoken": world.people["operator"].token()}, {}),
        "foreign origin": ({"csrfmiddlewaretoken": token}, {"Origin": "https://evil.example"}),
        "null origin": ({"csrfmiddlewaretoken": token}, {"Origin": "null"}),
        "likely origin": ({"csrfmiddlewaretoken": token}, {"Origin": f"{world.site.url}.evil.example"}),
        "token in the address": ({}, {"X-Original-Token": token}),
    }
    for address in sorted(posts):
        path = world.concrete(address)
        for name, (fields, headers) in evil.items():
            where = f"{path}?csrfmiddlewaretoken={token}" if "address" in name else path
            sent = (
                world.form(confirm="1", approve="1", stop="1", choice="not_executed", note="x", do="start")
                | fields
            )
            answers[name, path] = robot.ask("POST", where, data=sent, headers=headers).status_code

    assert {key: status for key, status in answers.items() if status != 403} == {}
    assert "送信した内容は処理されていません" in robot.ask("POST", "/refunds/sends/", data={}).text


def test_every_page_forbids_to_be_framed_kept_or_scripted(world: World) -> None:
    expected = {
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    wrong = []
    for role in ("", "approver", "auditor"):
        robot = world.people[role] if role else world.anyone
        for path in [path for path in world.addresses() if "/logout" not in path]:
            headers = robot.get(path).headers
            policy = dict(
                each.split(" ", 1) for each in headers.get("Content-Security-Policy", "").split("; ")
            )
            safe = (
                policy.get("default-src")
                == policy.get("frame-ancestors")
                == policy.get("base-uri")
                == "'none'"
                and policy.get("script-src") == policy.get("style-src") == "'self'"
                and "unsafe" not in str(policy)
            )
            if not safe or {name: headers.get(name) for name in expected} != expected:
                wrong.append((role, path, dict(headers)))

    assert wrong == []


# --- With what: bytes ---------------------------------------------------------------------------------------
NASTY = {
    "NUL": b"a%00b",
    "surrogate": b"%ED%A0%80",
    "not UTF-8": b"%FF%FE%C0%AF",
    "line breaks": b"a%0D%0ASet-Cookie:%20stolen=1%0D%0A%0D%0A<h1>",
    "line separators": b"%E2%80%A8%E2%80%A9%C2%85%0B%0C",
    "ANSI": b"%1B[31m%1B]0;title%07",
    "bidi": b"%E2%80%AE%E2%81%A6%E2%80%8B%EF%BB%BF",
    "SQL": b"'%22)%3B--%20%25_%5C",
    "template": b"{{7*7}}{%25%20debug%20%25}%25(x)s",
    "long": b"%E7%94%B0" * 20_000,
    "number": b"99999999999999999999999999",
    "list": b"[]&%s=2&%s=3",
}  # fmt: skip
FIELDS = {
    "/orders/search/": ["q"],
    "/orders/<order_id>/refund/": [*["request_id", "payment", "amount", "reason", "description", "memo", "signature", "confirm"],
                                   "similar_reason", "all"],
    "/refunds/<refund_id>/withdraw/": ["x"],
    "/refunds/<refund_id>/review/": ["choice", "note", "round"],
    "/refunds/sends/": ["reason", "resume", "case"],
    "/bulk/": ["file"],
    "/bulk/<bulk_id>/": ["do"],
    "/i18n/setlang/": ["language", "next"],
    "/oidc/backchannel-logout/": ["logout_token"],
    "/admin/refunds/auditentry/": ["action", "_selected_action", "index"],
    "/admin/refunds/auditentry/verify/": ["after", "x"],
}  # fmt: skip
QUERIES = {
    "/": ["q"],
    "/orders/": ["q", "search", "page", "status", "refund_status", "period"],
    "/orders/<order_id>/": ["x"],
    "/orders/<order_id>/refund/": ["x"],
    "/refunds/": ["state", "person", "period", "min_amount", "max_amount", "page"],
    "/refunds/<refund_id>/": ["renew"],
    "/refunds/<refund_id>/review/": ["x"],
    "/approvals/": ["x"],
    "/bulk/": ["page"],
    "/bulk/<bulk_id>/": ["state", "after", "renew"],
    "/sign-in/": ["next"],
    "/signed-out/": ["here"],
    "/oidc/authenticate/": ["next", "account"],
    "/oidc/step-up/": ["next"],
    "/oidc/callback/": ["state", "code", "iss", "error"],
    "/admin/": ["q"],
    "/admin/login/": ["next"],
    "/admin/jsi18n/": ["x"],
    "/admin/refunds/auditentry/": [*["q", "o", "p", "e", "all", "_popup", "at__gte", "actor__id__exact", "action", "at__year", "outcome"]],
    "/admin/refunds/auditentry/export.csv": ["q", "action", "actor__id__exact", "at__gte"],
    "/admin/refunds/order/": ["q", "o", "p", "status__exact", "search"],
    "/admin/refunds/search/": ["q", "o", "p"],
    "/admin/dashboard/user/": ["q", "groups__id__exact"],
}  # fmt: skip


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def nasty(name: str, field: str) -> bytes:
    value = NASTY[name]
    return value.replace(b"%s", field.encode()) if name == "list" else value


def test_every_field_takes_any_bytes(world: World) -> None:
    """No 5xx for what is typed; what is refused is refused with a page of ours."""
    wrong = []
    for address, fields in FIELDS.items():
        robot = world.people["auditor" if address.startswith("/admin/") else "approver"]
        token, path = robot.token(), world.concrete(address)
        for field, name in itertools.product(fields, NASTY):
            others = {"csrfmiddlewaretoken": token} | world.form(confirm="1")
            others.pop(field, None)
            body = urlencode(others).encode() + b"&" + field.encode() + b"=" + nasty(name, field)
            answer = robot.ask("POST", path, data=body, headers=FORM)
            if answer.status_code >= 500 or "stolen" in answer.cookies:
                wrong.append((address, field, name, answer.status_code))

    assert wrong == []


def test_every_query_takes_any_bytes(world: World) -> None:
    wrong = []
    for address, names in QUERIES.items():
        robot = world.people["auditor" if address.startswith("/admin/") else "approver"]
        for field, name in itertools.product(names, NASTY):
            value = nasty(name, field).decode()[:3000]
            answer = raw(world, robot, "GET", f"{world.concrete(address)}?{field}={value}")
            if answer.status >= 500 or astray(world, answer):
                wrong.append((address, field, name, answer.status, answer.getheader("Location")))

    assert wrong == []


def astray(world: World, answer: Any) -> bool:
    """Whether it leads to another site, or sets what was asked for to be set."""
    to = answer.getheader("Location", "")
    elsewhere = urlsplit(to).netloc not in ours(world) or to.startswith(("//", "/\\"))
    return elsewhere or answer.getheader("Set-Cookie", "").startswith("stolen")


def ours(world: World) -> set[str]:
    """Where a redirect may lead: here, and to the identity provider."""
    return {"", urlsplit(world.site.url).netloc, urlsplit(world.site.environment["OIDC_ISSUER"]).netloc}


def raw(world: World, robot: Robot, method: str, target: str, headers: dict[str, str] | None = None) -> Any:
    """One request whose target nobody puts right."""
    there = http.client.HTTPConnection(urlsplit(world.site.url).netloc, timeout=60)
    there._validate_path = lambda _url: None  # type: ignore[attr-defined]
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in robot.http.cookies)
    there.putrequest(method, target, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
    for name, value in ({"Cookie": cookies} | (headers or {})).items():
        there.putheader(name, value)
    there.endheaders()
    answer = there.getresponse()
    answer.text = answer.read().decode(errors="replace")  # type: ignore[attr-defined]
    there.close()
    return answer


PATHS = [
    "//evil.example/", "//evil.example/%2e%2e", "/\\evil.example/", "/%5cevil.example/", "/%09/evil.example/", "///",
    "/orders/..%2f..%2fetc%2fpasswd/", "/orders/../../etc/passwd", "/static/../dashboard/settings.py",
    "/static/..%2f..%2fdashboard%2fsettings.py", "/static/%2e%2e/%2e%2e/.env", "/.env", "/.git/config", "/static/",
    "/orders/%00/", "/orders/a%00b/refund/", "/refunds/%00/", "/admin/refunds/order/%00/change/", "/%00", "/orders/%ff/",
    "/orders/%ED%A0%80/", "/orders/%E2%80%AE/", "/orders/order_test_1;a=b/", "/orders;jsessionid=1/", "/orders/;/",
    "/orders/" + "a" * 3000 + "/", "/" + "a/" * 1500, "/orders/%0d%0aSet-Cookie:%20stolen=1/", "/ORDERS/", "/orders//",
    "/orders/%u0041/", "/orders/%/", "/orders/?" + "a=1&" * 900, "/orders/?page=%2f%2fevil.example",
    "/sign-in/?next=//evil.example/", "/sign-in/?next=https:evil.example", "/sign-in/?next=javascript:alert(1)",
    "/oidc/authenticate/?next=//evil.example/", "/admin/login/?next=//evil.example/", "/admin//evil.example/",
    "/admin/r/1/1/", "http://evil.example/orders/",
]  # fmt: skip


@pytest.mark.parametrize("role", ["", "operator", "auditor"])
def test_no_path_leads_astray(world: World, role: str) -> None:
    robot, wrong = world.people[role] if role else world.anyone, []
    for path in PATHS:
        answer = raw(world, robot, "GET", path)
        if answer.status >= 500 or astray(world, answer) or "SECRET_KEY" in answer.text:
            wrong.append((path, answer.status, answer.getheader("Location")))

    assert wrong == []


def test_methods_that_nobody_uses_do_nothing(world: World) -> None:
    robot = world.people["approver"]
    path, fields = (
        f"/refunds/{world.large}/decide/",
        {"approve": "1", "note": "", "csrfmiddlewaretoken": robot.token()},
    )
    methods = ["PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "post", "GETPOST", "X" * 200]
    overrides = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]

    answers = {
        **{method: raw(world, robot, method, path).status for method in methods},
        **{
            name: robot.ask("GET", path, headers={name: "POST"}, data=fields).status_code
            for name in overrides
        },
        "_method": robot.ask("GET", f"{path}?_method=POST", data=fields | {"_method": "POST"}).status_code,
    }

    assert set(answers.values()) <= {302, 400, 405}, (
        answers
    )  # 302: to the refund's page, which anybody may read


def test_large_bodies_are_turned_away_in_words(world: World) -> None:
    """10 MB at every address that takes a post: as fields, as a file, and without saying how much is to come."""
    size, wrong = 10_000_000, []
    robot = world.people["approver"]
    token = robot.token()

    def endless() -> Iterator[bytes]:
        for _ in range(size // 100_000):
            yield b"q=" + b"a" * 99_998

    for address in sorted({address for address, method in rights.expected() if method == "POST"}):
        path = world.concrete(address)
        bodies: dict[str, dict[str, Any]] = {
            "fields": {"data": b"csrfmiddlewaretoken=" + token.encode() + b"&q=" + b"a" * size},
            "file": {"data": {"csrfmiddlewaretoken": token}, "files": {"memo": ("a.txt", b"a" * size)}},
            "chunks": {"data": endless()},
        }
        for kind, options in bodies.items():
            answer = robot.ask("POST", path, **options)
            right = {"fields": 413, "file": 413, "chunks": 411}[kind]
            if answer.status_code != right or "<h1>受け付けられませんでした</h1>" not in answer.text:
                wrong.append((path, kind, answer.status_code))

    assert wrong == []


def test_other_kinds_of_content_are_no_form(world: World) -> None:
    robot, address = world.people["operator"], f"/orders/{world.order}/refund/"
    last, token = world.confirmation("operator"), robot.token()
    fields = {name: (None, value) for name, value in last.items()}
    bodies: dict[str, Any] = {
        "JSON": {"data": json.dumps(last), "headers": {"Content-Type": "application/json"}},
        "XML": {"data": "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
                "headers": {"Content-Type": "application/xml"}},
        "text": {"data": "&".join(f"{k}={v}" for k, v in last.items()), "headers": {"Content-Type": "text/plain"}},
        "files for fields": {"files": {name: (f"{name}.txt", value) for name, value in last.items()}},
        "no boundary": {"data": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
        "cut off": {"data": b"--x\r\nContent-Disposition: form-data; name=",
                    "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        "too many fields": {"data": "&".join(f"a{n}=1" for n in range(500)),
                            "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        "too many files": {"files": {f"f{n}": ("a", b"a") for n in range(200)} | fields},
        "other charset": {"data": "amount=%82%a0", "headers": {
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-7"}},
    }  # fmt: skip

    answers = {}
    for name, options in bodies.items():
        headers = options.pop("headers", {}) | {"X-CSRFToken": token}
        answers[name] = robot.ask("POST", address, headers=headers, **options).status_code

    assert {name: status for name, status in answers.items() if not 400 <= status < 500} == {}
    assert robot.get(f"/refunds/{last['request_id']}/").status_code == 404


def test_limit_is_one_for_all_processes(world: World) -> None:
    """Two web servers beside each other; a person asks them in turns."""
    ports = [free_port(), free_port()]
    environment = world.site.environment | {"SEARCHES_PER_HOUR": "30"}  # six a minute
    command = [sys.executable, "-m", "gunicorn", "dashboard.wsgi", "--no-control-socket", "--bind"]
    servers = [subprocess.Popen([*command, f"127.0.0.1:{port}"], cwd=ROOT, env=environment) for port in ports]
    cookies = {"session": world.people["viewer"].session}
    try:
        for port in ports:
            sites._wait_for(f"http://127.0.0.1:{port}/readyz")
        time.sleep(15 if time.time() % 60 > 45 else 0)  # all within one minute
        answers = [
            requests.get(f"http://127.0.0.1:{ports[nth % 2]}/refunds/", cookies=cookies, timeout=30)
            for nth in range(10)
        ]
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)

    assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 4


# --- What is written down -----------------------------------------------------------------------------------
def test_headers_say_nothing_that_we_believe_or_repeat(world: World) -> None:
    """Who asks, from where and under what number is ours to say."""
    robot, mark = world.people["operator"], "canary-of-headers"
    lies = {
        "X-Request-Id": mark, "X-Correlation-Id": mark, "Forwarded": f"for={mark};host={mark}",
        "X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "X-Forwarded-Host": f"{mark}.example",
        "X-Forwarded-Proto": "https", "X-Original-URL": "/admin/", "X-Rewrite-URL": "/admin/", "Remote-User": "auditor",
        "User-Agent": f"{mark} \"}}{{\"event\":\"forged\"", "Referer": f"https://{mark}.example/",
        "Accept-Language": f"{mark}; q=%s", "Sec-Fetch-Site": mark,
    }  # fmt: skip

    answers = [
        robot.get(path, headers=lies) for path in ("/", "/orders/", f"/orders/{world.order}/", "/nowhere/")
    ]
    entry = world.trail()[-2]  # the last is the auditor's own export

    assert [answer.status_code for answer in answers] == [200, 200, 200, 404]
    assert [answer for answer in answers if mark in answer.text + str(answer.headers)] == []
    assert (entry["roles"], entry["ip"]) == ("operator", "127.0.0.1")
    assert mark not in json.dumps(entry)
    for host in (
        "evil.example",
        "127.0.0.1@evil.example",
        "evil.example:80",
        "127.0.0.1:80, evil.example",
        "[",
    ):
        assert raw(world, robot, "GET", "/", {"Host": host}).status == 400


@pytest.mark.parametrize(
    "line",
    [
        b"X-A: 1\r\n\r\nGET /admin/ HTTP/1.1\r\nHost: x\r\n",  # ends here; the rest is a request of its own, unsigned
        b"X-A: 1\rX-B: 2\r\n", b"X-A: 1\nX-B\n", b"X-A: a\x00b\r\n", b"X-A: \x1b[31m\r\n", b"X A: 1\r\n", b"Content-Length: 1, 2\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n", b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1e3\r\n", b"Host: b\r\n",
        b"X-Long: " + b"a" * 20_000 + b"\r\n", b"X-Many: 1\r\n" * 500,
    ],
    ids=lambda line: repr(line[:40]),
)  # fmt: skip
def test_malformed_requests_are_refused_or_change_nothing(world: World, line: bytes) -> None:
    where = urlsplit(world.site.url)
    with socket.create_connection((where.hostname, where.port), 20) as there:
        there.sendall(
            b"POST /refunds/sends/ HTTP/1.1\r\nHost: 127.0.0.1\r\n" + line + b"Connection: close\r\n\r\nab"
        )
        there.settimeout(20)
        told = b""
        try:
            while piece := there.recv(65536):
                told += piece
        except ConnectionResetError:
            pass  # it did not want to hear more

    statuses = {int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", told)}
    assert statuses <= {302, 400, 403, 411, 413, 431, 501}, told[:300]


def test_nobody_writes_lines_into_the_logs(world: World) -> None:
    """Words with line breaks, escapes and JSON in them, from every side: each line stays one event, and of ours."""
    operator, canary = world.people["operator"], "canary-of-logs"
    forged = f'{canary}\r\n{{"event": "forged", "level": "info"}}\n\x1b[2K\u2028\x85{canary}'
    name = "山田 花子 canary@example.jp"

    for words in (forged, name):
        operator.post("/orders/search/", {"q": words})
        operator.post(
            f"/orders/{world.order}/refund/", world.form(description=words, memo=words, amount=words)
        )
        operator.get(f"/orders/{quote(words)}/")
        operator.get(f"/{quote(words)}", headers={"User-Agent": quote(words), "Referer": quote(words)})
        raw(world, operator, "GET", "/", {"Host": f"{quote(words)[:50]}.example"})
        operator.get("/oidc/callback/", params={"state": words, "error": words, "code": words})
        operator.ask(
            "POST", "/webhooks/smartpay/", data=words.encode(), headers={"Smartpay-Signature": canary}
        )
    operator.post("/refunds/sends/", {"reason": forged})

    lines = world.site.log.read_text(errors="replace").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(events) > 20
    assert [event for event in events if event["event"] == "forged"] == []
    # What is not JSON is gunicorn's own, in its own form, and repeats nothing that was sent.
    assert [line for line in lines if not re.match(r"\{.*\}$|\[[\d :+-]+\] \[\d+\] \[[A-Z]+\] ", line)] == []
    told = "\n".join(lines)
    assert "山田" not in told
    assert "canary@example.jp" not in told
    customers = [each["customerInfo"] or {} for each in world.site.sandbox.find_all("refundable", limit=50)]
    mails = {each.get("emailAddress", "") for each in customers} - {""}
    assert mails
    assert [mail for mail in mails if mail in told] == []


# --- What others have us show -------------------------------------------------------------------------------
RUN = "told(1)"
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"--><script>{RUN}</script><!--",
    f"]]><script>{RUN}</script>",
    f"<ScRiPt src=data:,{RUN}></sCrIpT>",
    "<script src=//evil.example/x.js></script>",
    f"<script\x0c>{RUN}</script\x0c>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<img src=x onerror={RUN}>",
    f"<img src=x onerror=\"{RUN}\"//",
    f"<img/src/onerror={RUN}>",
    f"\"><img src=x onerror={RUN}>",
    f"'><img src=x onerror={RUN}>",
    f"x\" onmouseover=\"{RUN}\" autofocus onfocus=\"{RUN}",
    f"x' autofocus onfocus='{RUN}",
    f"x` onfocus=`{RUN}",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<object data='javascript:{RUN}'></object>",
    f"<a href='javascript:{RUN}' autofocus>x</a>",
    f"javascript:{RUN}",
    f"data:text/html,<script>opener.{RUN}</script>",
    "<meta http-equiv=refresh content='0;url=//evil.example/'>",
    "<base href=//evil.example/><link rel=stylesheet href=//evil.example/x.css>",
    "<style>*{display:none}</style><b style='position:fixed;inset:0'>x</b>",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"{{% debug %}}${{{RUN}}}<%={RUN}%>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#x3C;img src=x onerror={RUN}&#x3E;",
    f"＜script＞{RUN}＜/script＞",
]  # fmt: skip
LISTEN = """
addEventListener("securitypolicyviolation", (event) => broken(event.violatedDirective + " " + event.blockedURI));
"""


class Watched:
    """A browser in which `ran` and `broken` fill when a script runs that is not ours, or the CSP is violated."""

    def __init__(self, chrome: Browser, robot: Robot) -> None:
        self.site = robot.site
        self.ran: list[str] = []
        self.broken: list[str] = []
        self.context = chrome.new_context(base_url=robot.site.url, locale="ja-JP")
        self.context.add_cookies(
            [
                {"name": each.name, "value": str(each.value), "url": robot.site.url}
                for each in robot.http.cookies
            ]
        )
        self.context.expose_function("told", lambda *_: self.ran.append(self.page.url))
        self.context.expose_function("broken", lambda what: self.broken.append(f"{self.page.url} {what}"))
        self.context.add_init_script(LISTEN)
        self.page = self.context.new_page()
        self.page.on("dialog", self.hear)

    def hear(self, dialog: Dialog) -> None:
        self.ran.append(dialog.message)
        dialog.dismiss()

    def look(self, path: str) -> None:
        self.page.goto(path, wait_until="load")
        self.judge()

    def judge(self) -> None:
        """Hover, press and focus what there is: some payloads wait for that."""
        self.page.mouse.move(300, 300)
        hidden = "[onerror], [onload], [onfocus], [onmouseover], [href^='javascript:'], main iframe, main object, base"
        assert self.page.locator(hidden).count() == 0, self.page.url
        assert self.page.url.startswith(f"{self.site.url}/")


@pytest.mark.browser
def test_nothing_that_others_wrote_runs_in_a_browser(world: World, chrome: Browser) -> None:
    """Customers' names and mails, descriptions, memos, reasons, searches and ids, drawn by every page in Chromium."""
    sandbox, operator, auditor = world.site.sandbox, world.people["operator"], world.people["auditor"]
    orders = sandbox.find_all("refundable", limit=len(PAYLOADS) + 8)
    orders = [
        each for each in orders if each.get("session") and each["order"] not in {world.order, world.other}
    ]
    assert len(orders) >= len(PAYLOADS)
    for found, payload in zip(orders, PAYLOADS, strict=False):
        customer = {
            "lastName": payload,
            "firstName": payload[:60],
            "emailAddress": f"{payload[:60]}@example.jp",
        }
        sandbox.set(found["session"], customerInfo=customer)
        sandbox.set(found["order"], description=payload, reference=payload[:80])
        sandbox.set(found["payments"][0]["id"], description=payload, reference=payload[:80])
    world.site.manage("sync_orders", "--full")
    refunds = []
    for found, payload in zip(orders[:12], PAYLOADS[10:22], strict=False):
        payment, amount = found["payments"][0]["id"], found["payments"][0]["amount"]
        if amount > 5000:
            fields = {"payment": payment, "amount": "5001", "description": payload[:80], "memo": payload}
            refunds.append(world.ask_for("operator", found["order"], **fields))
    assert refunds
    world.people["approver"].post("/refunds/sends/", {"stop": "1", "reason": PAYLOADS[0]})  # on every page
    for payload in PAYLOADS:
        operator.post("/orders/search/", {"q": payload})
    lines = "\n".join(
        f'{found["order"]},1,"{payload.replace(chr(34), chr(34) * 2)}"'
        for found, payload in zip(orders, PAYLOADS, strict=False)
    )
    file = world.upload(f"{PAYLOADS[10]}.csv", f"注文ID,返金額,説明\n{lines}\n")

    watched = [Watched(chrome, robot) for robot in (operator, auditor)]
    mine, theirs = watched
    for each in watched:
        for path in ["/", "/orders/", "/refunds/", f"/refunds/{refunds[0]}/", "/bulk/", f"/bulk/{file}/"]:
            each.look(path)
    for found in orders[: len(PAYLOADS)]:
        mine.look(f"/orders/{found['order']}/")
    for payload in PAYLOADS:
        mine.look(f"/orders/{quote(payload, safe='')}/")
        mine.look(f"/orders/?q={quote(payload)}")
        mine.look(f"/refunds/?min_amount={quote(payload)}&state={quote(payload)}")
        mine.look(f"/oidc/callback/?error={quote(payload)}&state={quote(payload)}")
    for found, payload in zip(orders, PAYLOADS[::3], strict=False):
        mine.look(f"/orders/{found['order']}/refund/")
        mine.page.get_by_label("返金額").fill(payload[:60])
        mine.page.get_by_label("説明").fill(payload)
        mine.page.get_by_label("説明").press("Enter")
        mine.page.wait_for_load_state("load")
        mine.judge()
    for path in [
        *[f"/admin/refunds/{model}/" for model in ("order", "payment", "refund", "search", "auditentry", "control")],
        *[f"/admin/refunds/refund/{refund}/change/" for refund in refunds], "/admin/refunds/control/True/change/",
    ]:  # fmt: skip
        theirs.look(path)
    for refund in refunds:
        theirs.look(f"/refunds/{refund}/")
        theirs.look(f"/refunds/{refund}/review/")
        operator.post(f"/refunds/{refund}/withdraw/")
    world.people["approver"].post("/refunds/sends/", {"resume": "1", "reason": "x"})

    assert [each.ran + each.broken for each in watched] == [[], []]
    # The same words where nobody escapes them, and no CSP is: they do run, and it is noticed.
    mine.page.goto("about:blank")
    mine.page.set_content("<p>".join(PAYLOADS[10:14]))
    mine.page.wait_for_timeout(500)
    assert mine.ran
    for each in watched:
        each.context.close()


# --- Under HTTPS --------------------------------------------------------------------------------------------
ASK = """
import json, time, django
from django.conf import settings
settings.STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.test import Client
from dashboard.models import User
client = Client(headers={"Host": "refunds.example.jp"})
plain = client.get("/sign-in/")
page = client.get("/sign-in/", secure=True)
client.force_login(User.objects.create(username="x"), backend="dashboard.sso.StrictOIDCBackend")
session = client.session
session["seen_at"] = time.time() - 60  # so that the next page writes the session, and its cookie
session.save()
set_by = [page, client.get("/orders/", secure=True), client.post("/i18n/setlang/", {"language": "en"}, secure=True)]
forged = Client(enforce_csrf_checks=True, headers={"Host": "refunds.example.jp"})
forged.get("/sign-in/", secure=True)
token = forged.cookies["__Host-csrf"].value
post = lambda **headers: forged.post(
    "/i18n/setlang/", {"language": "en", "csrfmiddlewaretoken": token}, secure=True, headers=headers
).status_code
print(json.dumps({
    "plain": [plain.status_code, plain["Location"]],
    "hsts": page["Strict-Transport-Security"],
    "cookies": {name: each.OutputString().split("; ")[1:] for page in set_by for name, each in page.cookies.items()},
    "foreign referer": post(Referer="https://evil.example/"), "no referer": post(),
    "own referer": post(Referer="https://refunds.example.jp/sign-in/"),
}))
"""


def test_under_https_nothing_is_left_open() -> None:
    """Cookies, HSTS, and the referer, with the settings of a deployment."""
    command, settings = [sys.executable, "-W", "ignore", "-c", ASK], os.environ | PRODUCTION
    told = subprocess.run(command, cwd=ROOT, env=settings, check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout.splitlines()[-1])

    assert answer["plain"] == [301, "https://refunds.example.jp/sign-in/"]
    assert answer["hsts"] == "max-age=63072000; includeSubDomains; preload"
    assert [answer[f"{whose} referer"] for whose in ("foreign", "no", "own")] == [403, 403, 302]
    assert set(answer["cookies"]) == {"__Host-session", "__Host-csrf", "__Host-language"}
    for name, flags in answer["cookies"].items():
        assert {"HttpOnly", "Secure", "Path=/"} <= set(flags), name
        assert not [flag for flag in flags if flag.startswith("Domain")]
        assert f"SameSite={'Strict' if 'csrf' in name else 'Lax'}" in flags
