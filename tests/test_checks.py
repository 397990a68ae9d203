"""System checks: settings under which the site must not start."""

import os
import subprocess
import sys
from typing import Any

import pytest
from django.core import checks as django_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection

from dashboard import checks as site_checks
from refunds import checks
from refunds.roles import ROLES
from scripts.check import BASE_DIR, PRODUCTION

SOUND: dict[str, Any] = {
    "SMARTPAY_API_URL": "https://api.smartpay.co/v1",
    "SMARTPAY_SECRET_KEY": "sk_live_Abc123",
    "SMARTPAY_WEBHOOK_SECRETS": ["nRbTxYkG6vPq3sWm9ZcLd2HfJ8aQe5UiKo7NyB4z"],
    "SMARTPAY_DEADLINE": 30,
    "REFUND_LEASE_SECONDS": 120,
}


def found(settings: Any, **other: Any) -> list[str]:
    """Return the ids of the errors under valid settings changed by these."""
    for name, value in (SOUND | other).items():
        setattr(settings, name, value)
    return [str(fault.id) for fault in checks.money(None)]


@pytest.mark.parametrize(
    "sound",
    [
        {},
        {"SMARTPAY_SECRET_KEY": "sk_test_Abc123"},
        {"SMARTPAY_SECRET_KEY": "sk_test_Abc123", "SMARTPAY_API_URL": "http://127.0.0.1:8090/v1"},
        {"SMARTPAY_SECRET_KEY": "sk_test_Abc123", "SMARTPAY_API_URL": "http://localhost:8090/v1"},
        {"SMARTPAY_WEBHOOK_SECRETS": []},
        {"REFUND_LEASE_SECONDS": 60.1},
    ],
    ids=str,
)
def test_sound_settings_pass(settings: Any, sound: dict[str, Any]) -> None:
    assert found(settings, **sound) == []


@pytest.mark.parametrize(
    "key", ["", "pk_live_Abc123", "sk_live_", "sk_prod_Abc123", " sk_live_Abc123", "secret"]
)
def test_key_that_is_none_is_a_fault_and_is_not_repeated(settings: Any, key: str) -> None:
    assert found(settings, SMARTPAY_SECRET_KEY=key) == ["refunds.E001"]

    [fault] = checks.money(None)
    assert fault.msg == "Not a Smartpay secret key: sk_test_… or sk_live_… is expected."


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8090/v1", "http://localhost:8090/v1", "https://localhost/v1", "https://[::1]/v1"],
)
def test_live_key_for_a_sandbox_is_a_fault(settings: Any, url: str) -> None:
    assert found(settings, SMARTPAY_API_URL=url) == ["refunds.E002"]


@pytest.mark.parametrize("key", ["sk_test_Abc123", "sk_live_Abc123"])
@pytest.mark.parametrize(
    "url",
    [
        "http://api.smartpay.co/v1",
        "ftp://api.smartpay.co/v1",
        "api.smartpay.co/v1",
        "",
        "http://127.0.0.1.example.jp/v1",
        "http://127.0.0.1:80@example.jp/v1",
        "http://localhost:80@example.jp/v1",
    ],
)
def test_smartpay_is_reached_over_https_alone(settings: Any, url: str, key: str) -> None:
    assert found(settings, SMARTPAY_API_URL=url, SMARTPAY_SECRET_KEY=key) == ["refunds.E003"]


@pytest.mark.parametrize("lease", [60, 59.9, 0, -1])
def test_lease_that_ends_before_two_calls_do_is_a_fault(settings: Any, lease: float) -> None:
    assert found(settings, REFUND_LEASE_SECONDS=lease) == ["refunds.E004"]


@pytest.mark.parametrize("secret", ["", "A", "AAAA", "abc-def", " abc", "abc\n", "ａｂｃ"])
def test_signing_secret_that_is_none_is_a_fault(settings: Any, secret: str) -> None:
    assert found(settings, SMARTPAY_WEBHOOK_SECRETS=["abc", secret]) == ["refunds.E005"]


def test_all_faults_are_told_at_once(settings: Any) -> None:
    faults = found(
        settings,
        SMARTPAY_API_URL="http://127.0.0.1:8090/v1",
        REFUND_LEASE_SECONDS=1,
        SMARTPAY_WEBHOOK_SECRETS=[""],
    )

    assert faults == ["refunds.E002", "refunds.E004", "refunds.E005"]


def test_site_does_not_start_with_a_fault(db: None, settings: Any) -> None:
    assert checks.money in django_checks.registry.registry.registered_checks
    found(settings, SMARTPAY_SECRET_KEY="pk_live_Canary")

    with pytest.raises(SystemCheckError, match=r"refunds\.E001") as stopped:
        call_command("check")

    assert "Canary" not in str(stopped.value)


# --- The site -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, False),
        ({"viewer": "refund-viewers", "auditor": "viewer"}, False),
        (
            {"operator": "refunds", "approver": "refunds"},
            True,
        ),  # otherwise operators could decide, or nobody could
        ({"viewer": ""}, True),
        ({"viewer": " "}, True),
        ({"viewer": "", "operator": ""}, True),
    ],
)
def test_each_role_has_a_value_of_its_own(settings: Any, values: dict[str, str], fault: bool) -> None:
    settings.OIDC_ROLE_VALUES = {values.get(role, role): role for role in ROLES}

    assert [error.id for error in site_checks.roles(None)] == (["dashboard.E002"] if fault else [])


@pytest.mark.parametrize("key", ["changeme", "a" * 60, "abcd" * 20, "django-insecure-" + "0123456789" * 6])
def test_production_has_a_secret_that_cannot_be_guessed(settings: Any, key: str) -> None:
    settings.HTTPS, settings.SECRET_KEY = True, key

    assert [error.id for error in site_checks.secret(None)] == ["dashboard.E003"]


def test_production_is_never_debugged(settings: Any) -> None:
    settings.HTTPS, settings.DEBUG = True, True

    assert [error.id for error in site_checks.debug(None)] == ["dashboard.E004"]


@pytest.mark.postgresql
@pytest.mark.django_db
@pytest.mark.parametrize(("how", "faults"), [("off", ["refunds.E008"]), ("on", []), ("remote_apply", [])])
def test_database_that_forgets_what_it_committed_is_a_fault(how: str, faults: list[str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('synchronous_commit', %s, true)", [how])

    assert [str(fault.id) for fault in checks.durability(None)] == faults


@pytest.mark.django_db  # Django's own checks ask the database what it can do
@pytest.mark.parametrize(("proxies", "warned"), [([], ["dashboard.W001"]), (["10.0.0.5"], [])])
def test_deployment_is_told_that_it_knows_no_proxy(
    settings: Any, proxies: list[str], warned: list[str]
) -> None:
    settings.HTTPS, settings.TRUSTED_PROXIES = True, proxies
    asked = django_checks.run_checks(include_deployment_checks=True)

    assert [each.id for each in asked if str(each.id).startswith("dashboard.W")] == warned


@pytest.mark.parametrize(
    ("unsafe", "fault"),
    [
        # With a test key, as it is: Smartpay has one address, and the key decides between test and live.
        ({}, ""),
        ({"SMARTPAY_SECRET_KEY": "sk_live_A1", "SMARTPAY_API_URL": "http://127.0.0.1:8090/v1"}, "sandbox"),
        ({"OIDC_ISSUER": "http://127.0.0.1:8002"}, "provider on this machine"),
        ({"OIDC_ROLE_VIEWER": "approver"}, "value of its own"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY"),
        ({"DEBUG": "True"}, "DEBUG"),
    ],
    ids=str,
)
def test_web_server_refuses_to_start_under_unsafe_settings(unsafe: dict[str, str], fault: str) -> None:
    """Import it in a new process, as gunicorn does, which runs no checks itself."""
    done = subprocess.run(
        [sys.executable, "-c", "import dashboard.wsgi"],
        env=os.environ | PRODUCTION | unsafe, cwd=BASE_DIR, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, fault in done.stderr) == (bool(fault), True), done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "setting", "read"),
    [
        # The worker is a command: it removes names for good where RETENTION_DAYS has its default.
        ("RETENTION_DAYS", "", "RETENTION_DAYS", "None"),
        ("OIDC_CLIENT_SECRET", r"$HOME/\$", "OIDC_RP_CLIENT_SECRET", r"$HOME/\$"),
    ],
)
def test_setting_is_what_was_set_for_commands_as_for_the_web_server(
    variable: str, value: str, setting: str, read: str
) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "-v", "0", "-c", f"from django.conf import settings; print(settings.{setting})"],
        env=os.environ | PRODUCTION | {variable: value},
        cwd=BASE_DIR, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout == f"{read}\n"


@pytest.mark.postgresql
def test_postgresql_compiles_no_statement_on_a_guess_at_its_cost(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW jit")
        assert cursor.fetchone() == ("off",)
