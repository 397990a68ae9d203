"""Settings under which the site must not start."""

from typing import Any

import pytest
from django.core import checks as django_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from refunds import checks

SOUND: dict[str, Any] = {
    "SMARTPAY_API_URL": "https://api.smartpay.co/v1",
    "SMARTPAY_SECRET_KEY": "sk_live_Abc123",
    "SMARTPAY_WEBHOOK_SECRETS": ["nRbTxYkG6vPq3sWm9ZcLd2HfJ8aQe5UiKo7NyB4z"],
    "SMARTPAY_DEADLINE": 30,
    "REFUND_LEASE_SECONDS": 120,
}


def found(settings: Any, **other: Any) -> list[str]:
    """The ids of the faults of sound settings but for these."""
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


@pytest.mark.parametrize("url", ["http://127.0.0.1:8090/v1", "http://localhost:8090/v1"])
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
