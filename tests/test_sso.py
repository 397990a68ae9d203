"""Sign-in, with a dishonest provider and with the development provider of `make run`, over real HTTP."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from werkzeug.serving import make_server

from dashboard import oidc_provider, sso, urls
from dashboard.checks import issuer as check_issuer
from dashboard.models import SeenLogoutToken, SessionIndex, User
from dashboard.sso import backchannel, sessions
from dashboard.sso.decorators import fresh_sign_in_required
from refunds.models import AuditEntry
from scripts import identity_provider
from tests.dishonest_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    FOREIGN_KEY,
    FORGED_ID_TOKENS,
    FORGED_LOGOUT_TOKENS,
    DishonestProvider,
    jwk,
    signed,
)


def page(request: HttpRequest) -> JsonResponse:
    """Stand in for a screen of the app: answer with the user and the parked fields."""
    return JsonResponse(
        {
            "person": request.user.pk,
            "posted": request.POST.dict(),
            "parked": request.parked.dict(),  # type: ignore[attr-defined]
        }
    )


urlpatterns = [
    path("page/", page),
    path("page/act/", page),
    path("page/fresh/", fresh_sign_in_required(page)),
    *urls.urlpatterns,
]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@pytest.fixture(scope="module")
def running() -> Iterator[DishonestProvider]:
    with DishonestProvider() as provider:
        yield provider
        provider.shutdown()


@pytest.fixture
def idp(running: DishonestProvider, settings: Any) -> DishonestProvider:
    """The provider, reset to honest answers, and the site configured to trust it."""
    fresh = {"lie": "", "forge": signed, "metadata": {}, "groups": ["operator"], "in_id_token": {}}
    vars(running).update(fresh, has_session=True, asked=[], codes={}, tokens=[])
    running.signed_in = {"sub": "u-1", "name": "返金 花子", "email": "hanako@example.jp"}
    trust(settings, running.issuer, CLIENT_SECRET)
    return running


@pytest.fixture(autouse=True)
def _nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc_provider, "TIMEOUT", (2, 2))


def trust(settings: Any, issuer: str, secret: str) -> None:
    cache.clear()
    settings.HTTPS = settings.SECURE_SSL_REDIRECT = False
    settings.OIDC_ISSUER, settings.OIDC_RP_CLIENT_ID, settings.OIDC_RP_CLIENT_SECRET = (
        issuer,
        CLIENT_ID,
        secret,
    )
    settings.OIDC_ROLE_VALUES = {role: role for role in ("viewer", "operator", "approver", "auditor")}
    settings.OIDC_ROLES_CLAIM = "groups"


@pytest.fixture
def refusals() -> Iterator[list[dict[str, str]]]:
    """The credentials of each user_login_failed signal."""
    told: list[dict[str, str]] = []

    def listen(sender: Any, credentials: dict[str, str], request: HttpRequest, **kwargs: Any) -> None:
        told.append(credentials)

    user_login_failed.connect(listen)
    yield told
    user_login_failed.disconnect(listen)


def to_provider(client: Client, address: str) -> str:
    """Follow the site's redirects to the provider; return the address to which its answer sends the browser."""
    response = client.get(address)
    while response.status_code in {302, 303} and not response["Location"].startswith("http:"):
        response = client.get(response["Location"])
    assert response.status_code == 302, response.content.decode()
    return requests.get(response["Location"], allow_redirects=False, timeout=5).headers["Location"]


def back(client: Client, location: str) -> Any:
    url = urlsplit(location)
    return client.get(f"{url.path}?{url.query}")


def sign_in(client: Client, then: str = "/page/") -> Any:
    """Sign in as the person whom the provider names; return the callback's answer."""
    return back(client, to_provider(client, f"/oidc/authenticate/?next={then}"))


def who(client: Client) -> User | None:
    """Return the user in the session, read directly so that no time in it changes."""
    return User.objects.filter(pk=client.session.get("_auth_user_id", 0), is_active=True).first()


def set_clock(client: Client, name: str, seconds_ago: float) -> None:
    session = client.session
    session[name] = time.time() - seconds_ago
    session.save()


def recheck_is_due(client: Client) -> None:
    set_clock(client, "oidc_id_token_expiration", 1)


# --- The good path ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ["viewer", "operator", "approver", "auditor"])
def test_each_role_signs_in(idp: DishonestProvider, client: Client, role: str) -> None:
    idp.groups = [role, "all-staff"]

    response = sign_in(client, then="/page/?a=1%26b=2")

    person = User.objects.get()
    assert (response.status_code, response["Location"]) == (302, "/page/?a=1&b=2")
    assert who(client) == person
    assert (person.name, person.email) == ("返金 花子", "hanako@example.jp")
    assert (person.issuer, person.subject) == (idp.issuer, "u-1")
    assert person.role_names == [role]
    assert (person.is_staff, person.is_superuser) == (role == "auditor", False)
    assert "hanako" not in person.username
    assert not person.has_usable_password()


def test_what_is_asked_of_the_provider(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    sign_in(client)

    first, second = idp.asked
    assert first["response_type"] == "code"
    assert first["client_id"] == CLIENT_ID
    assert first["redirect_uri"] == "http://testserver/oidc/callback/"
    assert first["scope"] == "openid profile email groups"
    assert first["code_challenge_method"] == "S256"
    assert not {first[name] for name in ("state", "nonce", "code_challenge")} & set(second.values())


def test_roles_name_and_mail_are_those_of_the_latest_sign_in(idp: DishonestProvider, client: Client) -> None:
    idp.groups = ["auditor", "approver"]
    sign_in(client)
    User.objects.update(is_superuser=True)
    idp.groups, idp.signed_in = ["viewer"], {"sub": "u-1", "name": "改姓 花子", "email": "new@example.jp"}

    sign_in(Client())

    person = User.objects.get()
    assert (person.name, person.email, person.role_names) == ("改姓 花子", "new@example.jp", ["viewer"])
    assert (person.is_staff, person.is_superuser) == (False, False)


def test_roles_of_the_id_token_win_over_userinfo(idp: DishonestProvider, client: Client) -> None:
    idp.groups, idp.in_id_token = ["approver"], {"groups": "viewer"}  # a single role may come as plain text

    sign_in(client)

    assert User.objects.get().role_names == ["viewer"]


def test_claims_that_are_no_text_are_left_out(idp: DishonestProvider, client: Client) -> None:
    idp.signed_in = {"sub": "u-1", "name": "花\0子\n" + "長" * 200, "email": ["a@example.jp"]}
    idp.groups = ["operator", 7, None, {"x": 1}]

    sign_in(client)

    assert (User.objects.get().name, User.objects.get().email) == (("花子" + "長" * 200)[:150], "")


def test_an_equal_mail_is_another_person(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    idp.signed_in = idp.signed_in | {"sub": "u-2"}

    other = Client()
    sign_in(other)

    assert who(client) != who(other)
    assert User.objects.count() == 2


def test_an_equal_subject_of_another_provider_is_another_person(
    idp: DishonestProvider, client: Client
) -> None:
    there = User.objects.create(username="there", issuer="https://other.example", subject="u-1")

    sign_in(client)

    assert who(client) not in {None, there}


@pytest.mark.postgresql  # SQLite in memory has one connection, so there is no race
@pytest.mark.django_db(transaction=True)
def test_a_person_is_created_once(settings: Any) -> None:
    claims = {
        "iss": "https://login.example.jp",
        "sub": "u-1",
        "name": "花子",
        "groups": ["viewer", "operator"],
    }
    together = threading.Barrier(8)

    def arrive(number: int) -> int:
        try:
            together.wait(5)
            return sso.sync_user(claims).pk
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        people = set(pool.map(arrive, range(8)))

    assert people == {User.objects.get().pk}
    assert User.objects.get().role_names == ["operator", "viewer"]


def test_signing_in_changes_the_session_key_and_is_told(idp: DishonestProvider, client: Client) -> None:
    told: list[str] = []

    def logged_in(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        told.append(f"in {user.subject} {request.path}")

    def logged_out(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        told.append(f"out {user.subject} {request.path}")

    user_logged_in.connect(logged_in)
    user_logged_out.connect(logged_out)
    location = to_provider(client, "/oidc/authenticate/")
    before = client.session.session_key
    back(client, location)
    after = client.session.session_key
    client.post("/oidc/logout/")

    assert before != after
    assert told == ["in u-1 /oidc/callback/", "out u-1 /oidc/logout/"]


# --- Lies ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FORGED_ID_TOKENS)
def test_a_forged_id_token_is_refused(
    idp: DishonestProvider, client: Client, refusals: list[dict[str, str]], name: str
) -> None:
    idp.forge = FORGED_ID_TOKENS[name]

    response = sign_in(client)

    assert response.status_code == 400
    assert "サインインを確認できませんでした" in response.content.decode()
    assert who(client) is None
    assert not User.objects.exists()
    assert len(refusals) == 1
    assert refusals[0]["reason"]


@pytest.mark.parametrize(
    ("lie", "status", "title"),
    [
        ("userinfo of somebody else", 400, "サインインを確認できませんでした"),
        ("answers as another provider", 400, "サインインを確認できませんでした"),
        ("no keys", 400, "サインインを確認できませんでした"),
        ("userinfo is down", 503, "会社の認証サービスが応答しません"),
        ("token endpoint hangs", 503, "会社の認証サービスが応答しません"),
        ("token endpoint is down", 503, "会社の認証サービスが応答しません"),
        ("token endpoint redirects", 503, "会社の認証サービスが応答しません"),
        ("token endpoint speaks HTML", 503, "会社の認証サービスが応答しません"),
        ("token endpoint answers a list", 503, "会社の認証サービスが応答しません"),
        ("error=access_denied", 403, "サインインが取り消されました"),
        ("error=server_error", 503, "会社の認証サービスが応答しません"),
        ("error=<script>", 503, "会社の認証サービスが応答しません"),
    ],
)
def test_a_provider_that_misbehaves_is_explained(
    idp: DishonestProvider,
    client: Client,
    refusals: list[dict[str, str]],
    lie: str,
    status: int,
    title: str,
) -> None:
    idp.lie = lie

    response = sign_in(client)

    assert (response.status_code, who(client)) == (status, None)
    assert f"<h1>{title}</h1>" in response.content.decode()
    assert not User.objects.exists()
    assert all("@" not in word and "<" not in word for told in refusals for word in told.values())
    assert len(refusals) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "javascript:alert(1)"},
        {"jwks_uri": None},
        {"authorization_endpoint": "https://evil.example/authorize"},  # http was promised; a mix is a mistake
        {"id_token_signing_alg_values_supported": ["HS256", "none"]},
    ],
)
def test_discovery_that_cannot_be_trusted_is_not_followed(
    idp: DishonestProvider, client: Client, metadata: dict[str, Any]
) -> None:
    idp.metadata = metadata

    assert client.get("/oidc/authenticate/").status_code == 503
    assert idp.asked == []


def test_discovery_is_read_again_after_a_failure(idp: DishonestProvider, client: Client) -> None:
    idp.lie = "discovery is down"
    down = client.get("/oidc/authenticate/")
    idp.lie = ""

    assert (down.status_code, sign_in(client).status_code) == (503, 302)


def test_nobody_listens_at_the_issuer(idp: DishonestProvider, client: Client, settings: Any) -> None:
    settings.OIDC_ISSUER = "http://127.0.0.1:1"

    response = client.get("/oidc/authenticate/")

    assert response.status_code == 503
    assert "127.0.0.1" not in response.content.decode()


def test_a_provider_that_names_itself_must_do_so(idp: DishonestProvider, client: Client) -> None:
    idp.metadata = {"authorization_response_iss_parameter_supported": True}
    honest = sign_in(client).status_code
    idp.lie = "no iss"

    assert (honest, sign_in(Client()).status_code) == (302, 400)


def test_a_provider_that_takes_the_secret_in_the_body_only(idp: DishonestProvider, client: Client) -> None:
    idp.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}

    assert sign_in(client).status_code == 302


def test_a_wrong_secret_is_a_fault_of_the_set_up(
    idp: DishonestProvider, client: Client, settings: Any, refusals: list[dict[str, str]]
) -> None:
    settings.OIDC_RP_CLIENT_SECRET = "yesterday's"

    response = sign_in(client)

    assert response.status_code == 503
    assert "<h1>サインインの設定に誤りがあります</h1>" in response.content.decode()
    assert "システム担当者" in response.content.decode()
    assert refusals == [{"reason": "token_invalid_client"}]


@pytest.mark.parametrize(
    ("error", "title"),
    [
        ("invalid_grant", "このサインインは続けられません"),  # used, or too old: the next one will do
        ("invalid_client", "サインインの設定に誤りがあります"),
        ("unauthorized_client", "サインインの設定に誤りがあります"),
        ("invalid_request", "サインインの設定に誤りがあります"),
        ("<script>", "会社の認証サービスが応答しません"),
        ("", "会社の認証サービスが応答しません"),
    ],
)
def test_what_the_token_endpoint_refuses_is_told_apart(
    idp: DishonestProvider, client: Client, error: str, title: str
) -> None:
    idp.lie = f"token error={error}"

    told = sign_in(client).content.decode()

    assert f"<h1>{title}</h1>" in told
    assert ("もう一度サインインしてください" in told) is (error == "invalid_grant")


@pytest.mark.parametrize("error", ["invalid_scope", "unauthorized_client"])
def test_what_the_provider_has_against_the_dashboard_is_no_ones_cancelling(
    idp: DishonestProvider, client: Client, error: str
) -> None:
    idp.lie = f"error={error}"

    assert "<h1>サインインの設定に誤りがあります</h1>" in sign_in(client).content.decode()


# --- Misuse of the callback -----------------------------------------------------------------------------------
def test_a_reloaded_callback_is_explained_and_ends_nothing(idp: DishonestProvider, client: Client) -> None:
    location = to_provider(client, "/oidc/authenticate/")
    back(client, location)
    person = who(client)

    again = back(client, location)

    assert again.status_code == 400
    assert "<h1>このサインインは続けられません</h1>" in again.content.decode()
    assert who(client) == person


def test_a_code_that_was_used_is_explained(idp: DishonestProvider, client: Client) -> None:
    location = to_provider(client, "/oidc/authenticate/")
    idp.codes.clear()

    response = back(client, location)

    assert response.status_code == 400
    assert "<h1>このサインインは続けられません</h1>" in response.content.decode()


@pytest.mark.parametrize(
    "query", ["", "?code=c", "?code=c&state=s", "?error=login_required", "?state=s&error=x"]
)
def test_a_callback_nobody_asked_for_ends_nothing(idp: DishonestProvider, client: Client, query: str) -> None:
    sign_in(client)

    assert client.get(f"/oidc/callback/{query}").status_code == 400
    assert who(client) is not None


def test_callbacks_that_nobody_began_here_are_not_on_the_trail(
    idp: DishonestProvider, client: Client, refusals: list[dict[str, str]]
) -> None:
    for number in range(3):
        client.get(f"/oidc/callback/?code=c&state={number}")
    assert refusals == []

    idp.lie = "error=access_denied"
    sign_in(client)
    assert refusals == [{"reason": "access_denied"}]


def test_an_answer_made_for_another_browser_is_refused(idp: DishonestProvider, client: Client) -> None:
    location = to_provider(Client(), "/oidc/authenticate/")  # somebody's own code and state, sent as a link

    assert back(client, location).status_code == 400
    assert who(client) is None


def test_an_answer_without_a_code_is_refused(idp: DishonestProvider, client: Client) -> None:
    state = parse_qs(urlsplit(client.get("/oidc/authenticate/")["Location"]).query)["state"][0]

    assert client.get(f"/oidc/callback/?state={state}").status_code == 400


@pytest.mark.parametrize(
    "there",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "http:evil.example",
    ],
)
def test_next_leads_nowhere_else(idp: DishonestProvider, client: Client, there: str) -> None:
    shown = client.get("/sign-in/", {"next": there})
    response = sign_in(client, then=there)

    assert 'href="/oidc/authenticate/?next=%2F"' in shown.content.decode()
    assert response["Location"] == "/"
    assert client.get("/sign-in/", {"next": there})["Location"] == "/"


# --- Roles lost -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "groups", [[], ["all-staff"], None, {"operator": True}, ["OPERATOR"], "viewer,operator"]
)
def test_without_a_role_there_is_no_way_in(
    idp: DishonestProvider, client: Client, refusals: list[dict[str, str]], groups: Any
) -> None:
    idp.groups = groups

    response = sign_in(client)

    assert response.status_code == 403
    assert "<h1>利用する権限がありません</h1>" in response.content.decode()
    assert "社内の認証サービスの管理者に依頼してください" in response.content.decode()
    assert who(client) is None
    assert not User.objects.exists()
    assert refusals[0]["reason"] == "no_role"


def test_a_role_lost_ends_every_session(idp: DishonestProvider, client: Client) -> None:
    idp.groups = ["auditor"]
    elsewhere = Client()
    sign_in(elsewhere)
    sign_in(client)
    idp.groups = []
    recheck_is_due(client)

    response = back(client, to_provider(client, "/page/"))

    person = User.objects.get()
    assert (response.status_code, who(client), who(elsewhere)) == (403, None, None)
    assert (person.is_staff, person.role_names) == (False, [])
    assert not SessionIndex.objects.exists()


def test_who_was_deactivated_is_out_at_once_and_stays_out(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    User.objects.update(is_active=False)

    page_then = client.get("/page/")
    again = sign_in(client)

    assert page_then["Location"] == "/sign-in/?next=/page/"
    assert again.status_code == 403
    assert "<h1>このアカウントは利用を停止されています</h1>" in again.content.decode()


# --- The session ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("clock", "setting"), [("seen_at", "SSO_IDLE_SECONDS"), ("signed_in_at", "SSO_ABSOLUTE_SECONDS")]
)
def test_a_session_ends(
    idp: DishonestProvider, client: Client, settings: Any, clock: str, setting: str
) -> None:
    sign_in(client)
    limit = getattr(settings, setting)
    set_clock(client, clock, limit - 5)
    before = client.get("/page/").status_code
    set_clock(client, clock, limit + 1)

    after = client.get("/page/")

    assert (before, after.status_code, after["Location"]) == (200, 302, "/sign-in/?next=/page/")
    assert "サインアウトしました" in client.get("/sign-in/").content.decode()
    assert who(client) is None
    assert not Session.objects.filter(session_key__in=SessionIndex.objects.values("session_key")).exists()


def test_session_survives_a_new_secret_key(idp: DishonestProvider, client: Client, settings: Any) -> None:
    sign_in(client)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "the-next-secret-of-the-tests-long-enough-for-every-check-012345"
    during = client.get("/page/").status_code
    settings.SECRET_KEY_FALLBACKS = []

    assert (during, client.get("/page/").status_code) == (200, 200)  # it was signed anew meanwhile


def test_using_the_site_keeps_the_session_alive_but_a_script_does_not(
    idp: DishonestProvider, client: Client, settings: Any
) -> None:
    sign_in(client)
    set_clock(client, "seen_at", 600)
    client.get("/page/", headers={"Sec-Fetch-Dest": "empty"})
    client.get("/page/?renew=1")  # without scripts a page renews itself by loading anew
    after_script = client.session["seen_at"]
    client.get("/page/", headers={"Sec-Fetch-Dest": "document"})

    assert after_script == pytest.approx(time.time() - 600, abs=5)
    assert client.session["seen_at"] == pytest.approx(time.time(), abs=5)


def test_a_script_is_not_taken_to_the_provider(idp: DishonestProvider, client: Client) -> None:
    script = {"Sec-Fetch-Dest": "empty"}
    sign_in(client)
    recheck_is_due(client)
    due = client.get("/page/", headers=script)
    set_clock(client, "seen_at", 10_000)
    over = client.post("/page/", FIELDS, headers=script)

    assert due["Location"] == over["Location"] == "/sign-in/?next=/page/"
    assert "parked" not in client.session


def test_the_recheck_is_silent_and_keeps_forms_in_other_tabs_working(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    key, idp.groups = client.session.session_key, ["approver"]
    recheck_is_due(client)

    response = back(client, to_provider(client, "/page/?q=1"))

    assert idp.asked[-1]["prompt"] == "none"
    assert (response["Location"], client.session.session_key) == ("/page/?q=1", key)
    assert User.objects.get().role_names == ["approver"]
    assert client.get("/page/?q=1").status_code == 200


def test_asking_unseen_prolongs_nothing(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    ages = []
    for address in ("/page/?renew=1", "/page/"):
        set_clock(client, "signed_in_at", 10_000)
        set_clock(client, "seen_at", 600)
        recheck_is_due(client)
        assert back(client, to_provider(client, address))["Location"] == address
        ages += [round(time.time() - client.session[clock], -1) for clock in ("signed_in_at", "seen_at")]

    assert ages == [10_000, 600, 10_000, 0]  # opening a page is a sign of life, not a sign-in


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_no_other_site_signs_anybody_in_unseen(idp: DishonestProvider, client: Client, site: str) -> None:
    led = client.get("/oidc/authenticate/?next=/page/", headers={"Sec-Fetch-Site": site})
    pressed = client.get("/oidc/authenticate/?next=/page/", headers={"Sec-Fetch-Site": "same-origin"})

    assert led["Location"] == "/sign-in/?next=/page/"
    assert pressed["Location"].startswith(idp.issuer)


def test_other_roles_than_before_are_on_the_trail(idp: DishonestProvider, client: Client) -> None:
    for groups in (["viewer"], ["operator", "approver"], []):
        idp.groups = groups
        recheck_is_due(client)  # the person stays signed in: this is a recheck
        back(client, to_provider(client, "/oidc/authenticate/"))

    person = User.objects.get()
    entries = AuditEntry.objects.filter(action="person.signed_in", object_id=str(person.pk)).order_by("id")
    assert [(entry.outcome, entry.roles, entry.data) for entry in entries] == [
        ("done", "viewer", {"roles_before": []}),
        ("done", "viewer", {}),
        ("done", "approver,operator", {"roles_before": ["viewer"]}),
        ("refused", "", {"reason": "no_role", "roles_before": ["approver", "operator"]}),
    ]


def test_other_name_than_before_is_on_the_trail_and_leaves_past_entries_as_they_were(
    idp: DishonestProvider, client: Client
) -> None:
    for name in ("旧姓 花子", "旧姓 花子", "新姓 花子"):
        idp.signed_in["name"] = name
        recheck_is_due(client)
        back(client, to_provider(client, "/oidc/authenticate/"))

    entries = AuditEntry.objects.filter(action="person.signed_in").order_by("id")
    assert [(entry.person, entry.data) for entry in entries] == [
        ("旧姓 花子", {"roles_before": []}),
        ("旧姓 花子", {}),
        ("新姓 花子", {"name_before": "旧姓 花子"}),
    ]


def test_two_tabs_come_back_to_their_own_pages(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    recheck_is_due(client)
    first, second = to_provider(client, "/page/?tab=1"), to_provider(client, "/page/?tab=2")

    assert [back(client, second)["Location"], back(client, first)["Location"]] == [
        "/page/?tab=2",
        "/page/?tab=1",
    ]


def test_who_signed_out_at_the_provider_is_signed_out_here_by_the_recheck(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    idp.has_session = False
    recheck_is_due(client)

    response = back(client, to_provider(client, "/page/?q=1"))

    assert response["Location"] == "/sign-in/?next=/page/%3Fq%3D1"
    assert who(client) is None


def test_a_provider_that_is_down_lets_nobody_go_on_unchecked(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    person = who(client)
    recheck_is_due(client)
    idp.lie = "discovery is down"
    cache.clear()
    down = client.get("/page/")
    idp.lie = ""

    assert (down.status_code, who(client)) == (503, person)
    assert back(client, to_provider(client, "/page/"))["Location"] == "/page/"


def test_somebody_else_at_the_recheck_takes_over_nothing(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    recheck_is_due(client)
    client.post("/page/", {"memo": "花子のメモ"})
    idp.signed_in = {"sub": "u-2", "name": "別人"}

    back(client, to_provider(client, "/page/"))

    person = who(client)
    assert person == User.objects.get(subject="u-2")
    assert client.get("/page/").json()["parked"] == {}


# --- Parked forms -----------------------------------------------------------------------------------------------
FIELDS = {"amount": "1000", "description": "サイズ交換のため"}


def test_a_form_that_meets_the_recheck_is_redrawn_unsent(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    recheck_is_due(client)

    posted = client.post("/page/", FIELDS)
    response = back(client, to_provider(client, posted["Location"]))
    shown = client.get(response["Location"])

    assert (posted.status_code, posted["Location"]) == (303, "/page/")
    assert shown.json() == {
        "person": User.objects.get().pk,
        "posted": {},
        "parked": FIELDS,
    }
    assert client.get("/page/").json()["parked"] == {}  # once
    assert client.post("/page/", FIELDS).json()["posted"] == FIELDS


def test_a_form_goes_back_to_the_page_that_held_it(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    recheck_is_due(client)

    posted = client.post("/page/act/", FIELDS, headers={"Referer": "http://testserver/page/?tab=2"})
    back(client, to_provider(client, posted["Location"]))
    foreign = client.get("/page/act/").json()
    shown = client.get(posted["Location"]).json()

    assert posted["Location"] == "/page/?tab=2"
    assert shown["parked"] == FIELDS
    assert foreign["parked"] == {}


def test_a_foreign_referer_leads_nowhere(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    recheck_is_due(client)

    from_elsewhere = client.post("/page/", FIELDS, headers={"Referer": "https://evil.example/page/"})
    twisted = client.post("/page/", FIELDS, headers={"Referer": "http://testserver//evil.example/"})

    assert from_elsewhere["Location"] == "/page/"
    assert twisted["Location"] == "/%2Fevil.example/"


@pytest.mark.parametrize("clock", ["seen_at", "signed_in_at"])
def test_a_form_outlives_the_session_for_its_sender(
    idp: DishonestProvider, client: Client, clock: str
) -> None:
    sign_in(client)
    set_clock(client, clock, 100_000)

    posted = client.post("/page/", FIELDS)
    back(client, to_provider(client, "/oidc/authenticate/?next=/page/"))

    assert posted["Location"] == "/sign-in/?next=/page/"
    assert client.get("/page/").json()["parked"] == FIELDS


def test_a_form_is_not_shown_to_whoever_signs_in_next(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    set_clock(client, "seen_at", 100_000)
    client.post("/page/", FIELDS)
    idp.signed_in = {"sub": "u-2"}
    sign_in(client)

    assert client.get("/page/").json()["parked"] == {}


def test_a_form_is_parked_for_ten_minutes_and_five_pages(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    recheck_is_due(client)
    for tab in range(7):
        client.post(f"/page/?tab={tab}", FIELDS)
    session = client.session
    kept = list(session["parked"])
    session["parked"]["/page/?tab=6"]["until"] = time.time() - 1
    session.save()
    back(client, to_provider(client, "/page/"))

    assert kept == [f"/page/?tab={tab}" for tab in range(2, 7)]
    assert client.get("/page/?tab=6").json()["parked"] == {}
    assert client.get("/page/?tab=5").json()["parked"] == FIELDS


def test_another_site_cannot_fill_in_a_form(idp: DishonestProvider) -> None:
    client = Client(enforce_csrf_checks=True)
    sign_in(client)
    recheck_is_due(client)

    assert client.post("/page/", FIELDS).status_code == 403
    assert "parked" not in client.session


# --- Asked for again before money moves ---------------------------------------------------------------------------
def test_a_fresh_sign_in_is_asked_for_and_believed_by_its_auth_time(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    straight_after = client.post("/page/fresh/", FIELDS).status_code
    session = client.session
    session["auth_time"] = time.time() - 400
    session.save()
    key = session.session_key

    posted = client.post("/page/fresh/", FIELDS)
    back(client, to_provider(client, posted["Location"]))

    assert straight_after == 200
    assert (idp.asked[-1]["prompt"], idp.asked[-1]["max_age"]) == ("login", "0")
    assert client.session.session_key != key
    assert client.get("/page/fresh/").json()["parked"] == FIELDS
    assert client.post("/page/fresh/", FIELDS).json()["posted"] == FIELDS


@pytest.mark.parametrize(
    "auth_time", [1_600_000_000, "now", None, True, pytest.param(4_102_444_800_000, id="milliseconds")]
)
def test_a_provider_that_did_not_ask_again_opens_nothing(
    idp: DishonestProvider, client: Client, auth_time: Any
) -> None:
    idp.in_id_token = {"auth_time": auth_time}
    sign_in(client)
    person = who(client)

    response = back(client, to_provider(client, client.get("/page/fresh/")["Location"]))

    assert response.status_code == 403
    assert "<h1>ご本人の再確認ができませんでした</h1>" in response.content.decode()
    assert who(client) == person
    assert client.get("/page/fresh/").status_code == 302


# --- Signing out --------------------------------------------------------------------------------------------------
def leave(client: Client) -> str:
    """Sign out here; return the redirect after the provider was asked for an ID token."""
    location: str = back(client, to_provider_by(client.post("/oidc/logout/")))["Location"]
    return location


def to_provider_by(response: Any) -> str:
    """Send the provider a browser's request; return the redirect with its answer."""
    return requests.get(response["Location"], allow_redirects=False, timeout=5).headers["Location"]


def test_signing_out_reaches_the_provider_with_an_id_token_that_was_never_kept(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    secret_parts = idp.tokens

    there = urlsplit(leave(client))

    query = parse_qs(there.query)
    [hint] = query.pop("id_token_hint")
    assert f"{there.scheme}://{there.netloc}{there.path}" == f"{idp.issuer}/end-session"
    assert query == {
        "client_id": [CLIENT_ID],
        "post_logout_redirect_uri": ["http://testserver/signed-out/"],
    }
    assert (idp.asked[-1]["prompt"], idp.asked[-1]["scope"]) == (
        "none",
        "openid",
    )  # no scope of names
    assert hint == idp.tokens[-1]
    kept = str([session.get_decoded() for session in Session.objects.all()])
    assert not any(token in kept for token in secret_parts)
    assert who(client) is None
    assert not SessionIndex.objects.exists()
    assert "ご利用ありがとうございました" in client.get("/signed-out/").content.decode()


def test_no_id_token_is_in_the_database_while_somebody_works(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)

    kept = str([session.get_decoded() for session in Session.objects.all()])

    assert idp.tokens
    assert not any(part in kept for token in idp.tokens for part in token.split("."))


def test_signing_out_ends_the_session_here_before_the_provider_is_asked(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    left = client.post("/oidc/logout/")

    assert who(client) is None
    assert left["Clear-Site-Data"] == '"cache"'


@pytest.mark.parametrize(
    "lie",
    [
        "token endpoint is down",
        "answers as another provider",
        "error=interaction_required",
        "error=server_error",
    ],
)
def test_signing_out_without_an_id_token_names_the_client(
    idp: DishonestProvider, client: Client, refusals: list[dict[str, str]], lie: str
) -> None:
    sign_in(client)
    idp.lie = lie

    there = parse_qs(urlsplit(leave(client)).query)

    assert there["client_id"] == [CLIENT_ID]
    assert "id_token_hint" not in there
    assert refusals == []


def test_what_was_said_to_one_person_is_in_no_cookie_and_told_to_no_other(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    recheck_is_due(client)
    client.post("/page/", FIELDS)
    back(client, to_provider(client, "/page/"))
    client.get("/page/")  # says so; a page that shows it has not been drawn yet

    cookies = set(client.cookies)
    client.post("/oidc/logout/")

    assert cookies == {"session", "csrf"}
    assert "入力した内容" not in client.get("/sign-in/").content.decode()


def test_who_is_signed_out_there_already_is_not_sent_there(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    idp.has_session = False

    assert leave(client) == "/signed-out/"


def test_what_comes_back_from_signing_out_signs_nobody_in(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    location = to_provider_by(client.post("/oidc/logout/"))
    back(client, location)

    assert back(client, location).status_code == 400
    assert who(client) is None


@pytest.mark.parametrize("end_session", ["", "http://127.0.0.2/end-session"])  # none; one the CSP would stop
def test_signing_out_here_only_says_so(idp: DishonestProvider, client: Client, end_session: str) -> None:
    idp.metadata = {"end_session_endpoint": end_session}
    sign_in(client)

    response = client.post("/oidc/logout/", follow=True)

    assert who(client) is None
    assert "サインアウトしたのは返金ダッシュボードだけです" in response.content.decode()


def test_signing_out_works_when_the_provider_does_not(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    idp.lie = "discovery is down"
    cache.clear()

    assert client.post("/oidc/logout/")["Location"] == "/signed-out/?here=only"
    assert who(client) is None


def test_a_link_signs_nobody_out(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)

    assert client.get("/oidc/logout/").status_code == 405
    assert client.get("/signed-out/")["Location"] == "/"
    assert who(client) is not None


@pytest.mark.parametrize("by", [{"sid": "provider-session-1", "sub": None}, {}])
def test_the_provider_ends_sessions(idp: DishonestProvider, client: Client, by: dict[str, Any]) -> None:
    sign_in(client)
    claims = {name: value for name, value in idp.logout_claims(**by).items() if value is not None}
    token = signed(claims, typ="logout+jwt")

    outside = Client(enforce_csrf_checks=True)
    answers = [outside.post("/oidc/backchannel-logout/", {"logout_token": token}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 400]  # the second is a replay
    assert answers[0]["Cache-Control"] == "no-store"
    assert client.get("/page/")["Location"] == "/sign-in/?next=/page/"


def test_the_provider_ends_the_session_of_who_took_over_from_another(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    idp.signed_in = {"sub": "u-2", "name": "別人"}
    sign_in(client)
    taken_over = who(client)

    token = signed(idp.logout_claims(sub="u-2"), typ="logout+jwt")
    told = client.post("/oidc/backchannel-logout/", {"logout_token": token})

    assert taken_over == User.objects.get(subject="u-2")
    assert (told.status_code, who(client)) == (200, None)


def test_the_provider_ends_nobody_elses_session(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    token = signed(idp.logout_claims(sub="u-2"), typ="logout+jwt")

    assert client.post("/oidc/backchannel-logout/", {"logout_token": token}).status_code == 200
    assert who(client) is not None


@pytest.mark.parametrize("name", FORGED_LOGOUT_TOKENS)
def test_a_forged_logout_token_ends_nothing(idp: DishonestProvider, client: Client, name: str) -> None:
    sign_in(client)
    token = FORGED_LOGOUT_TOKENS[name](idp.logout_claims())

    response = client.post("/oidc/backchannel-logout/", {"logout_token": token} if token else {})

    assert response.status_code == 400
    assert who(client) is not None


def test_a_crash_while_sessions_end_lets_the_provider_ask_again(
    idp: DishonestProvider, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(client)
    token = {"logout_token": signed(idp.logout_claims(), typ="logout+jwt")}
    outside = Client(raise_request_exception=False)

    with monkeypatch.context() as broken:
        broken.setattr(backchannel, "end_sessions", lambda rows: 1 / 0)
        crashed = outside.post("/oidc/backchannel-logout/", token).status_code
    again = outside.post("/oidc/backchannel-logout/", token).status_code

    assert (crashed, again, who(client)) == (500, 200, None)


def test_tokens_of_strangers_ask_the_provider_for_its_keys_once_a_minute(
    idp: DishonestProvider, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(method: str, url: str, **more: Any) -> dict[str, Any]:
        asked.append(url)
        return honest(method, url, **more)

    honest = oidc_provider.ask
    monkeypatch.setattr(oidc_provider, "ask", ask)
    sign_in(client)
    for kid in ("key-1", "key-7", "key-8", "key-9"):
        forged = signed(idp.logout_claims(), key=FOREIGN_KEY, kid=kid, typ="logout+jwt")
        client.post("/oidc/backchannel-logout/", {"logout_token": forged})

    assert asked.count(f"{idp.issuer}/jwks") == 2  # once for the sign-in, once for the first unknown key
    assert who(client) is not None


def test_a_key_that_the_provider_has_changed_is_found_at_once(idp: DishonestProvider, client: Client) -> None:
    cache.set(f"oidc-keys:{idp.issuer}/jwks", [jwk(FOREIGN_KEY, kid="key-0")])

    sign_in(client)

    assert who(client) is not None


def test_what_is_over_is_forgotten(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)
    over = timezone.now() - timedelta(days=2)
    Client().get("/oidc/authenticate/")  # a visitor who never signs in
    for jti, seen_at in {"old": over, "new": timezone.now()}.items():
        SeenLogoutToken.objects.create(jti=jti)
        SeenLogoutToken.objects.filter(jti=jti).update(seen_at=seen_at)
    Session.objects.exclude(session_key=client.session.session_key).update(expire_date=over)
    SessionIndex.objects.create(session_key="gone", user=User.objects.get())
    SessionIndex.objects.filter(session_key="gone").update(created_at=over)

    sessions.prune()

    assert [session.session_key for session in Session.objects.all()] == [client.session.session_key]
    assert [row.session_key for row in SessionIndex.objects.all()] == [client.session.session_key]
    assert [token.jti for token in SeenLogoutToken.objects.all()] == ["new"]


def test_a_logout_token_that_is_older_than_our_memory_is_refused(
    idp: DishonestProvider, client: Client
) -> None:
    sign_in(client)
    token = signed(idp.logout_claims(iat=int(time.time()) - 90_000), typ="logout+jwt")

    assert client.post("/oidc/backchannel-logout/", {"logout_token": token}).status_code == 400
    assert who(client) is not None


# --- Set-up -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("issuer", "https", "fault"),
    [
        ("https://login.example.jp/realms/company", True, False),
        ("http://127.0.0.1:8002", False, False),
        ("http://localhost:8002", False, False),
        ("http://login.example.jp", True, True),
        ("http://login.example.jp", False, True),
        ("http://127.0.0.1:8002", True, True),
        ("https://localhost", True, True),
        ("http://[::1]:8002", True, True),
        ("login.example.jp", True, True),
        ("", True, True),
    ],
)
def test_issuers_that_nobody_may_be_believed_on(settings: Any, issuer: str, https: bool, fault: bool) -> None:
    settings.OIDC_ISSUER, settings.HTTPS = issuer, https

    assert bool(check_issuer(None)) is fault


def test_a_forbidden_issuer_is_refused_even_if_the_checks_were_not_run(
    idp: DishonestProvider, client: Client, settings: Any
) -> None:
    settings.HTTPS = True

    assert client.get("/oidc/authenticate/").status_code == 503


# --- The provider of `make run` -----------------------------------------------------------------------------------
@pytest.fixture
def demo(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(os.environ, "AUTHLIB_INSECURE_TRANSPORT", "1")
    server = make_server("127.0.0.1", 0, identity_provider.create_app("http://testserver"), threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    issuer = f"http://127.0.0.1:{server.server_port}"
    trust(settings, issuer, identity_provider.CLIENT_SECRET)
    yield issuer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("login", identity_provider.PEOPLE)
def test_the_demo_people_sign_in_stay_and_sign_out(demo: str, client: Client, login: str) -> None:
    browser = requests.Session()

    asked = client.get("/oidc/authenticate/?next=/page/")["Location"]
    assert "開発用サインイン" in browser.get(asked, timeout=5).text
    answer = browser.post(asked, {"sub": login}, allow_redirects=False, timeout=5)
    landed = back(client, answer.headers["Location"])
    person = User.objects.get()
    recheck_is_due(client)
    silent = browser.get(client.get("/page/")["Location"], allow_redirects=False, timeout=5)
    rechecked = back(client, silent.headers["Location"])
    shown = client.get("/page/").status_code
    hinted = browser.get(client.post("/oidc/logout/")["Location"], allow_redirects=False, timeout=5)
    leaving = back(client, hinted.headers["Location"])
    out = browser.get(leaving["Location"], allow_redirects=False, timeout=5)

    assert (landed["Location"], rechecked["Location"], shown) == ("/page/", "/page/", 200)
    assert (person.role_names, person.name) == ([login], identity_provider.PEOPLE[login][0])
    assert "id_token_hint=" in leaving["Location"]
    assert out.headers["Location"] == "http://testserver/signed-out/"
    assert who(client) is None


def test_cancelling_at_the_demo_provider_is_explained(demo: str, client: Client) -> None:
    asked = client.get("/oidc/authenticate/")["Location"]
    answer = requests.post(asked, {"action": "deny"}, allow_redirects=False, timeout=5)

    response = back(client, answer.headers["Location"])

    assert response.status_code == 403
    assert "<h1>サインインが取り消されました</h1>" in response.content.decode()


def test_roles_are_groups_that_the_app_knows(idp: DishonestProvider, client: Client) -> None:
    sign_in(client)

    assert set(Group.objects.values_list("name", flat=True)) == {"viewer", "operator", "approver", "auditor"}
