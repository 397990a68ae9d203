"""The settings that tests run under, set before Django reads its own; loaded by pytest's `-p` in pyproject.toml."""

import os
from pathlib import Path

# Collected static files, of which tests have none; the server of the pages wants the directory all the same.
STATIC_ROOT = Path(__file__).resolve().parent.parent / ".state" / "tests" / "static"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)

os.environ.update(
    STATIC_ROOT=str(STATIC_ROOT),
    SECRET_KEY="a-secret-of-the-tests-long-enough-for-every-check-0123456789",
    HTTPS="False",
    ALLOWED_HOSTS="127.0.0.1,localhost",
    SMARTPAY_API_URL="http://127.0.0.1:9/v1",  # nothing listens: a test that talks says to whom
    SMARTPAY_SECRET_KEY="sk_test_ofTheTests",
    SMARTPAY_WEBHOOK_SECRETS="",
    OIDC_ISSUER="http://127.0.0.1:9",
    OIDC_CLIENT_ID="refund-dashboard",
    OIDC_CLIENT_SECRET="a-secret-of-the-tests",
    DEBUG="False",
    METRICS_TOKEN="the-token-of-the-tests",
)
# Robots are quicker than people; the tests of the limits set their own.
LIMITS = ("SEARCHES_PER_HOUR", "ORDERS_PER_HOUR", "REFUND_FORMS_PER_HOUR", "SIGN_INS_PER_HOUR")
for name in ("REFUND_APPROVAL_ABOVE", "REFUND_MAX_AMOUNT", "REFUND_DAILY_LIMIT", *LIMITS):
    os.environ[name] = ""
