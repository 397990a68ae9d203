"""Middlewares of every page, and the pages around the app."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from dashboard import urls
from dashboard.models import User
from dashboard.sqlite.base import DatabaseWrapper


@csrf_exempt
def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a customer's name")


urlpatterns = [path("broken/", broken), *urls.urlpatterns]
handler400, handler500 = urls.handler400, urls.handler500
pytestmark = pytest.mark.urls(__name__)


@pytest.fixture
def person(client: Client, db: None) -> User:
    """A person who is signed in with the test client and has no role."""
    user = User.objects.create(username="somebody", issuer="https://login.example.jp", subject="1")
    client.force_login(user)
    return user


# --- Health -------------------------------------------------------------------------------------------------
def test_healthz_asks_nothing_of_the_database(
    client: Client,
) -> None:  # pytest-django denies this test the database
    response = client.get("/healthz")

    assert (response.status_code, response.content) == (200, b"ok\n")


def test_readyz_when_all_is_well(client: Client, db: None) -> None:
    response = client.get("/readyz")

    assert (response.status_code, response.content) == (200, b"ok\n")


def test_readyz_when_migrations_are_missing(client: Client, db: None) -> None:
    MigrationRecorder.Migration.objects.filter(app="sessions").delete()

    response = client.get("/readyz")

    assert (response.status_code, response.content) == (503, b"1 migrations are not applied\n")


@pytest.mark.sqlite
def test_a_kept_connection_leaves_a_file_that_was_replaced(tmp_path: Path, db: None) -> None:
    file, backup = tmp_path / "site.sqlite3", tmp_path / "backup.sqlite3"
    for each, name in ((file, "old"), (backup, "new")):
        with closing(sqlite3.connect(each)) as made, made:
            made.execute(f"CREATE TABLE {name} (id)")
    kept = DatabaseWrapper(
        connection.settings_dict | {"NAME": str(file), "OPTIONS": {}, "CONN_HEALTH_CHECKS": True}
    )

    def tables() -> list[str]:
        """As a request finds them: Django tells the connection when one begins."""
        kept.close_if_unusable_or_obsolete()
        with kept.cursor() as cursor:
            return [name for (name,) in cursor.execute("SELECT name FROM sqlite_schema").fetchall()]

    assert tables() == ["old"]
    first = kept.connection
    assert tables() == ["old"]
    assert kept.connection is first

    backup.replace(file)

    assert tables() == ["new"]
    kept.close()


def test_readyz_when_the_database_is_down(client: Client, db: None) -> None:
    def down(*args: Any) -> None:
        raise OperationalError("host=db.internal user=dashboard")

    with connection.execute_wrapper(down):
        response = client.get("/readyz")

    assert (response.status_code, response.content) == (503, b"the database does not answer\n")


# --- Every page ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("address", ["/sign-in/", "/signed-out/", "/healthz", "/no-such-page/", "/orders/"])
def test_headers_of_every_page(client: Client, db: None, address: str) -> None:
    response = client.get(address)

    assert response["Cache-Control"] == "no-store"
    assert response["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Frame-Options"] == "DENY"
    assert "camera=()" in response["Permissions-Policy"]
    policy = response["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "Server" not in response


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "DELETE", "CONNECT", "PROPFIND"])
@pytest.mark.parametrize("address", ["/sign-in/", "/healthz", "/orders/"])
def test_methods_that_nobody_uses_are_refused(client: Client, db: None, method: str, address: str) -> None:
    response = client.generic(method, address)

    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")


@pytest.mark.parametrize("address", ["/", "/orders/", "/refunds/", "/oidc/step-up/", "/admin/"])
def test_who_is_not_signed_in_is_sent_to_the_sign_in_page(client: Client, db: None, address: str) -> None:
    response = client.get(address, follow=True)

    assert response.status_code == 200
    assert response.redirect_chain[-1][0] == f"/sign-in/?next={address}"
    assert f'href="/oidc/authenticate/?next={address.replace("/", "%2F")}"' in response.content.decode()
    assert 'type="password"' not in response.content.decode()


def test_the_language_can_be_chosen_without_signing_in(client: Client, db: None) -> None:
    response = client.post("/i18n/setlang/", {"language": "en", "next": "/sign-in/"})

    assert response["Location"] == "/sign-in/"
    assert response.cookies["django_language"].value == "en"


# --- Pages that say no ----------------------------------------------------------------------------------------
def test_404_says_what_to_do(client: Client, db: None) -> None:
    response = client.get("/no-such-page/")

    assert response.status_code == 404
    assert "<h1>見つかりません</h1>" in response.content.decode()


def test_403_says_what_to_do_and_asks_nobody_to_sign_in_again(client: Client, person: User) -> None:
    response = client.get("/admin/", follow=True)

    assert response.status_code == 403
    assert "<h1>この操作はできません</h1>" in response.content.decode()


def test_400_says_what_to_do(client: Client, db: None) -> None:
    response = client.get("/sign-in/", headers={"Host": "evil.example"})

    assert response.status_code == 400
    assert "<h1>受け付けられませんでした</h1>" in response.content.decode()


def test_500_says_what_to_do_and_not_what_happened(client: Client, person: User) -> None:
    client.raise_request_exception = False

    response = client.get("/broken/")

    assert response.status_code == 500
    assert "<h1>エラーが発生しました</h1>" in response.content.decode()
    assert "customer" not in response.content.decode()
    assert 'href="/refunds/"' in response.content.decode()
    assert response["Cache-Control"] == "no-store"


def test_500_tells_when_and_which_request_without_the_database(
    client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # pytest-django denies this test the database
    monkeypatch.setattr(timezone, "now", lambda: datetime(2026, 11, 30, 18, 23, 45, tzinfo=UTC))
    client.raise_request_exception = False
    client.cookies[settings.SESSION_COOKIE_NAME] = "a" * 32

    response = client.get("/orders/")

    assert response.status_code == 500
    assert "2026/12/01 03:23:45" in response.content.decode()
    assert f'<code class="id">{response["X-Request-Id"]}</code>' in response.content.decode()


def test_a_form_without_its_token_says_that_nothing_was_done(person: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(person)

    response = client.post("/oidc/logout/")

    assert response.status_code == 403
    assert "送信した内容は処理されていません" in response.content.decode()
    assert client.get("/sign-in/")["Location"] == "/"  # still signed in


def test_signing_out_of_the_admin_is_signing_out_of_the_site(
    client: Client, person: User, settings: Any
) -> None:
    settings.OIDC_ISSUER = "http://127.0.0.1:1"

    assert client.post("/admin/logout/")["Location"] == "/signed-out/?here=only"
    assert "_auth_user_id" not in client.session


def test_the_sign_in_page_leads_on_who_is_signed_in(client: Client, person: User) -> None:
    assert client.get("/sign-in/?next=/orders/")["Location"] == "/orders/"
