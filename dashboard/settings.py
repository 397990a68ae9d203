"""Every setting, read from the environment (or `.env`) once. `.env.example` documents each variable.

Production is the default: a missing secret stops the start, `DEBUG` and plain HTTP must be asked for.
"""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
import structlog
from django.core.exceptions import ImproperlyConfigured
from django.utils.csp import CSP
from django.utils.translation import gettext_lazy as _

from dashboard.logs import SHARED, configuration, counted

BASE_DIR = Path(__file__).resolve().parent.parent
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}

env = environ.Env()
env.read_env(BASE_DIR / ".env")  # the environment wins over the file
# A secret may begin with $. Unescaped, django-environ would read the rest as a variable's name and show it in an error.
env.escape_proxy = True
env.ENVIRON = {name: value.replace("$", r"\$") for name, value in os.environ.items()}

# --- The site -----------------------------------------------------------------------------------------------
SECRET_KEY = env.str("SECRET_KEY")  # no default, so that the site does not start without it
# Former keys, so that sessions survive a change of the key.
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=[])
HTTPS = env.bool("HTTPS", default=True)
if not HTTPS and not set(ALLOWED_HOSTS) <= LOOPBACK:
    raise ImproperlyConfigured("HTTPS=False is for a site on this machine alone: ALLOWED_HOSTS names others.")
# The reverse proxies in front of the site, whose X-Forwarded-For is trusted.
TRUSTED_PROXIES = [ip_network(each.strip()) for each in env.list("TRUSTED_PROXIES", default=[])]
STATE_DIR = Path(env.str("STATE_DIR", default=str(BASE_DIR / ".state")))

INSTALLED_APPS = [
    "django.contrib.auth",
    "dashboard",
    "refunds",
    "dashboard.apps.AuditorAdminConfig",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "mozilla_django_oidc",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "dashboard.middleware.ClientAddressMiddleware",
    "dashboard.middleware.RequestLogMiddleware",
    "dashboard.middleware.PrivacyHeadersMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "dashboard.middleware.LanguageCookieMiddleware",
    "dashboard.middleware.BodySizeMiddleware",  # after the language: it draws error pages
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Before LoginRequiredMiddleware, so that a form is parked when its session has ended.
    "dashboard.middleware.SessionPolicyMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "refunds.audit.RequestContext",
    "dashboard.limits.RateLimitMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "dashboard.urls"
WSGI_APPLICATION = "dashboard.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "refunds.context_processors.every_page",
            ],
        },
    },
    {
        "BACKEND": "django.template.backends.jinja2.Jinja2",  # only for parts that a page repeats many times
        "APP_DIRS": True,
        "OPTIONS": {"environment": "refunds.templatetags.order_rows.environment"},
    },
]
FORM_RENDERER = "django.forms.renderers.Jinja2"

# --- The database -------------------------------------------------------------------------------------------
# Whether a pooler gives each transaction another connection, without the statements prepared on the last one.
DATABASE_POOLED = env.bool("DATABASE_POOLED", default=False)
# No ATOMIC_REQUESTS: a refund's row must be committed before its request is sent.
DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{STATE_DIR / 'dashboard.sqlite3'}")}
# Connections persist across requests: on a new one, a page takes two to three times as long.
DATABASES["default"]["CONN_MAX_AGE"] = 3600  # seconds
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["ENGINE"] = "dashboard.sqlite"
    # Django's own SQLite engine has this default, and pytest-django recognises that engine by its name only.
    DATABASES["default"]["TEST"] = {"NAME": ":memory:"}
    DATABASES["default"]["OPTIONS"] = {
        # A transaction that writes waits for the lock at its beginning, instead of failing at its first write.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # FULL: a commit is on the disk, not in a buffer, before money moves.
        # recursive_triggers: REPLACE fires the trigger that forbids deleting a row.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA recursive_triggers=ON;",
    }
else:
    # synchronous_commit: a commit is on the disk before money moves, whatever the server's default.
    # jit: compiling a statement takes some 20 ms, and no statement here runs long enough to be worth it.
    DATABASES["default"].setdefault("OPTIONS", {})["options"] = "-c synchronous_commit=on -c jit=off"
    DATABASES["default"]["OPTIONS"]["server_side_binding"] = True
    # Only search/sql.py prepares its statements, and a web server those that it repeats: see dashboard/wsgi.py.
    DATABASES["default"]["OPTIONS"]["prepare_threshold"] = None
    # First, because refunds/admin/ unregisters its admin pages. With SQLite a timer runs jobs: see refunds/jobs.py.
    INSTALLED_APPS.insert(0, "procrastinate.contrib.django")
    PROCRASTINATE_ON_APP_READY = "refunds.job_queue.register"
    PROCRASTINATE_AUTODISCOVER_MODULE_NAME = None
    # A scheduled run that was missed because no worker was up is made up for within a day.
    PROCRASTINATE_PERIODIC_DEFAULTS = {"max_delay": 86400}  # seconds
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Language, time, static files ---------------------------------------------------------------------------
LANGUAGE_CODE = "ja"
LANGUAGES = [("ja", _("日本語")), ("en", _("英語"))]
LOCALE_PATHS = [BASE_DIR / "locale"]
TIME_ZONE = "Asia/Tokyo"
USE_TZ = True
FORMAT_MODULE_PATH = ["dashboard.formats"]
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.str("STATIC_ROOT", default=str(STATE_DIR / "static")))
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

# --- Smartpay -----------------------------------------------------------------------------------------------
SMARTPAY_API_URL = env.str("SMARTPAY_API_URL", default="https://api.smartpay.co/v1").rstrip("/")
SMARTPAY_SECRET_KEY = env.str("SMARTPAY_SECRET_KEY")
SMARTPAY_WEBHOOK_SECRETS = env.list("SMARTPAY_WEBHOOK_SECRETS", default=[])
SMARTPAY_CONNECT_TIMEOUT = env.float("SMARTPAY_CONNECT_TIMEOUT", default=5)  # seconds
SMARTPAY_READ_TIMEOUT = env.float("SMARTPAY_READ_TIMEOUT", default=20)  # seconds
# Seconds for a whole call, however slowly the answer arrives.
SMARTPAY_DEADLINE = env.float("SMARTPAY_DEADLINE", default=30)
# Seconds that a page waits before it shows the mirror's copy.
SMARTPAY_VIEW_DEADLINE = env.float("SMARTPAY_VIEW_DEADLINE", default=4)


def limit(name: str, default: str = "") -> int | None:
    """Return the variable as an integer; None, for no limit, if it is empty."""
    return int(value) if (value := env.str(name, default=default)) else None


# --- Refunds ------------------------------------------------------------------------------------------------
REFUND_APPROVAL_ABOVE = limit("REFUND_APPROVAL_ABOVE")
REFUND_MAX_AMOUNT = limit("REFUND_MAX_AMOUNT")
REFUND_DAILY_LIMIT = limit("REFUND_DAILY_LIMIT")
# Days that the names and mail addresses of an order are kept; empty: for ever.
RETENTION_DAYS = limit("RETENTION_DAYS", "1825")
REFUND_REQUEST_DAYS = env.int("REFUND_REQUEST_DAYS", default=7)  # until a request for approval expires
# Seconds; more than two deadlines: see refunds/checks.py.
REFUND_LEASE_SECONDS = env.float("REFUND_LEASE_SECONDS", default=120)
# Seconds; doubled at each turn, up to half an hour.
REFUND_BACKOFF_SECONDS = env.float("REFUND_BACKOFF_SECONDS", default=30)

# --- Single sign-on -----------------------------------------------------------------------------------------
AUTH_USER_MODEL = "dashboard.User"
AUTHENTICATION_BACKENDS = ["dashboard.sso.StrictOIDCBackend"]  # the only one: there are no local passwords
LOGIN_URL = "sign_in"
LOGIN_REDIRECT_URL = "/"
OIDC_ISSUER = env.str("OIDC_ISSUER")  # used exactly as given: some providers' issuers end in a slash
OIDC_RP_CLIENT_ID = env.str("OIDC_CLIENT_ID")
OIDC_RP_CLIENT_SECRET = env.str("OIDC_CLIENT_SECRET")
# A file with certificates, if the provider's was issued by the company's own certificate authority.
OIDC_CA_BUNDLE = env.str("OIDC_CA_BUNDLE", default="")
OIDC_ROLES_CLAIM = env.str("OIDC_ROLES_CLAIM", default="groups")
OIDC_ROLE_VALUES = {  # the claim's value -> our role
    env.str(f"OIDC_ROLE_{role.upper()}", default=role): role
    for role in ("viewer", "operator", "approver", "auditor")
}
SSO_RECHECK_SECONDS = env.int("SSO_RECHECK_SECONDS", default=900)
SSO_IDLE_SECONDS = env.int("SSO_IDLE_SECONDS", default=900)
SSO_ABSOLUTE_SECONDS = env.int("SSO_ABSOLUTE_SECONDS", default=28800)
SSO_STEP_UP_SECONDS = env.int("SSO_STEP_UP_SECONDS", default=300)

# --- Rate limits: so many in an hour, and a fifth of it in a minute; see dashboard/limits.py ----------------
SEARCHES_PER_HOUR = limit("SEARCHES_PER_HOUR", "300")  # per person: searches, and pages of lists
ORDERS_PER_HOUR = limit("ORDERS_PER_HOUR", "600")  # per person: orders opened
REFUND_FORMS_PER_HOUR = limit("REFUND_FORMS_PER_HOUR", "300")  # per person
SIGN_INS_PER_HOUR = limit("SIGN_INS_PER_HOUR", "600")  # per address: a whole office may share one

# --- Mail: sent to the requester once a refund is no longer 結果不明; none without EMAIL_URL --------------------
MAILERS: dict[str, dict[str, Any]] = {"default": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend"}}
EMAIL_FROM = env.str("EMAIL_FROM", default="")
SITE_URL = env.str("SITE_URL", default="").rstrip("/")  # how the links in a mail begin
MAILS = bool(env.str("EMAIL_URL", default=""))
if MAILS:
    _mail = env.email_url("EMAIL_URL")
    if not (EMAIL_FROM and urlsplit(SITE_URL).netloc):
        raise ImproperlyConfigured("EMAIL_URL needs EMAIL_FROM and SITE_URL.")
    MAILERS["default"] = {"BACKEND": _mail["EMAIL_BACKEND"]}
    if _mail["EMAIL_BACKEND"].endswith(".smtp.EmailBackend"):
        MAILERS["default"]["OPTIONS"] = {
            "host": _mail["EMAIL_HOST"],
            "port": _mail["EMAIL_PORT"] or 25,
            "username": _mail["EMAIL_HOST_USER"] or "",
            "password": _mail["EMAIL_HOST_PASSWORD"] or "",
            "use_tls": _mail.get("EMAIL_USE_TLS", False),
            "use_ssl": _mail.get("EMAIL_USE_SSL", False),
            "timeout": 10,  # seconds
        }

# --- Security of pages and cookies --------------------------------------------------------------------------
_issuer = urlsplit(OIDC_ISSUER)
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    # The form that signs out is answered by a redirect to the provider.
    "form-action": [CSP.SELF, f"{_issuer.scheme}://{_issuer.netloc}"],
    "base-uri": [CSP.NONE],
    "object-src": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
}
SESSION_COOKIE_NAME = "__Host-session" if HTTPS else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS else "csrf"
LANGUAGE_COOKIE_NAME = "__Host-language" if HTTPS else "django_language"
LANGUAGE_COOKIE_HTTPONLY = True
LANGUAGE_COOKIE_SECURE = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 63_072_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$", r"^webhooks/smartpay/$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SESSION_COOKIE_SAMESITE = "Lax"  # Strict would withhold it at the provider's answer, a cross-site GET
LANGUAGE_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Strict"
CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "dashboard.views.csrf_failure"
# Django's default is a cookie without __Host-, which would show the next person at a screen what the last one did.
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"
SESSION_COOKIE_AGE = SSO_ABSOLUTE_SECONDS
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
SECURE_REFERRER_POLICY = "same-origin"  # with no-referrer, Chromium sends `Origin: null` and every form fails
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024  # bytes: the largest form here is a page of text
# An uploaded file of at most 5 MB; the form explains what is wrong with a larger one.
LARGER_BODIES = {"/bulk/": 6 * 1024 * 1024}
DATA_UPLOAD_MAX_NUMBER_FIELDS = 100

# --- Observability: logs, metrics, Sentry -------------------------------------------------------------------
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")  # without a token, /metrics answers 404 under HTTPS
METRICS_LISTEN = env.str("METRICS_LISTEN", default="")  # host:port at which a worker serves its own metrics
SENTRY_DSN = env.str("SENTRY_DSN", default="")
structlog.configure(
    processors=[*SHARED, counted, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING = configuration(
    env.str("LOG_LEVEL", default="INFO"),
    secrets=[
        SECRET_KEY,
        *SECRET_KEY_FALLBACKS,
        SMARTPAY_SECRET_KEY,
        *SMARTPAY_WEBHOOK_SECRETS,
        OIDC_RP_CLIENT_SECRET,
        METRICS_TOKEN,
        SENTRY_DSN,
        str(DATABASES["default"].get("PASSWORD", "")),
        MAILERS["default"].get("OPTIONS", {}).get("password", ""),
    ],
)
