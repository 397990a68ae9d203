"""The authentication backend: an authorization code -> a user, with the roles that the provider's claims give."""

import hashlib
import json
from typing import Any
from urllib.parse import quote_plus

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group
from django.db import transaction
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.utils import import_from_settings

from dashboard.models import User
from dashboard.oidc_provider import (
    MISCONFIGURED,
    NO_ROLE,
    STALE,
    SUSPENDED,
    UNPROVEN,
    SignInFailed,
    ask,
    check_token,
    provider,
)
from dashboard.sso.sessions import take_roles
from refunds import audit
from refunds.roles import ROLES, STAFF_ROLES

ID_TOKEN_CLAIMS = ["iss", "sub", "aud", "exp", "iat", "nonce"]


class StrictSettingsMixin:
    """Overrides the library's settings: with endpoints from discovery, and with rules that no deployment may relax."""

    @staticmethod
    def get_settings(attr: str, *args: Any) -> Any:
        match attr:
            case "OIDC_OP_AUTHORIZATION_ENDPOINT":
                return provider().authorization_endpoint
            case "OIDC_RP_SCOPES":  # some providers refuse a scope that they do not support
                roles = {settings.OIDC_ROLES_CLAIM} & provider().scopes
                return " ".join(["openid", "profile", "email", *roles])
            case "OIDC_USE_PKCE" | "OIDC_USE_NONCE":
                return True
            case "OIDC_PKCE_CODE_CHALLENGE_METHOD":
                return "S256"
            case "OIDC_RENEW_ID_TOKEN_EXPIRY_SECONDS":
                return settings.SSO_RECHECK_SECONDS
        return import_from_settings(attr, *args)


class StrictOIDCBackend(StrictSettingsMixin, OIDCAuthenticationBackend):  # type: ignore[misc]
    """Turns an authorization code into a User, or raises SignInFailed. It never returns None.

    For a None, Django would send user_login_failed with the nonce and the code verifier among the "credentials".
    """

    get_user = ModelBackend.get_user  # the library's own lets deactivated people stay signed in

    def __init__(self) -> None:
        # Not super().__init__(), which reads the endpoints: Django makes a backend for every request, and no page may
        # wait for discovery.
        self.OIDC_RP_CLIENT_ID = settings.OIDC_RP_CLIENT_ID
        self.OIDC_RP_CLIENT_SECRET = settings.OIDC_RP_CLIENT_SECRET

    def get_all_permissions(self, user: Any, obj: Any = None) -> set[str]:
        """Return the permissions of the person's roles, from the table in refunds/roles.py.

        `migrate` makes the groups in the database equal to that table, and nobody has permissions of their own. Every
        page asks for them, and Django's own way takes two more statements.
        """
        if obj is not None or not user.is_active or user.is_anonymous:
            return set()
        return {name for role in user.role_names for name in ROLES.get(role, ())}

    def get_token(self, payload: dict[str, str]) -> dict[str, Any]:
        credentials = None
        if provider().basic_auth:
            # RFC 6749, 2.3.1: both are form-encoded first, so that a colon in one cannot split the pair wrongly.
            credentials = (quote_plus(payload.pop("client_id")), quote_plus(payload.pop("client_secret")))
        return ask(
            "POST",
            provider().token_endpoint,
            data=payload,
            auth=credentials,
            rejected=lambda error: (
                # "invalid_grant": the code was used, or is too old. After any other error a new code would fail too.
                SignInFailed(STALE, "code")
                if error == "invalid_grant"
                else SignInFailed(MISCONFIGURED, f"token_{error}")
            ),
        )

    def verify_token(self, token: object, **kwargs: Any) -> dict[str, Any]:
        claims = check_token(token, required=ID_TOKEN_CLAIMS)
        if not kwargs.get("nonce") or claims["nonce"] != kwargs["nonce"]:
            raise SignInFailed(UNPROVEN, "nonce")
        if not claims["sub"] or len(claims["sub"]) > 255 or not claims["sub"].isprintable():
            raise SignInFailed(UNPROVEN, "sub")
        return claims

    def get_userinfo(self, access_token: str, id_token: str, payload: dict[str, Any]) -> dict[str, Any]:
        info = ask("GET", provider().userinfo_endpoint, headers={"Authorization": f"Bearer {access_token}"})
        if info.get("sub") != payload["sub"]:
            raise SignInFailed(UNPROVEN, "userinfo_sub")
        return info

    def get_or_create_user(self, access_token: str, id_token: str, payload: dict[str, Any]) -> User:
        user = sync_user({**self.get_userinfo(access_token, id_token, payload), **payload})
        self.request.id_token = payload
        return user


def sync_user(claims: dict[str, Any]) -> User:
    """Create or update the user whom the provider's claims describe, and return it. Their roles replace the old ones.

    Raises: SignInFailed, if the claims give no role, or the user was deactivated here. Without a role, the user also
    loses the old ones, and all their sessions end.
    """
    issuer, subject = claims["iss"], claims["sub"]
    username = hashlib.sha256(json.dumps([issuer, subject]).encode()).hexdigest()[:32]
    values = claims.get(settings.OIDC_ROLES_CLAIM)
    values = [values] if isinstance(values, str) else values if isinstance(values, list) else []
    roles = {role for value, role in settings.OIDC_ROLE_VALUES.items() if value and value in values}
    if not roles:
        people = User.objects.filter(issuer=issuer, subject=subject)
        with transaction.atomic():
            for user in people.filter(groups__isnull=False).distinct():
                audit.record(
                    None,
                    "person.signed_in",
                    user,
                    refused=True,
                    reason="no_role",
                    roles_before=user.role_names,
                )
            take_roles(people)
        raise SignInFailed(NO_ROLE, "no_role", username)
    with transaction.atomic():
        # Of two simultaneous first sign-ins, the unique constraint lets one create the user; the other finds it.
        user, is_new = User.objects.get_or_create(
            issuer=issuer, subject=subject, defaults={"username": username, "password": make_password(None)}
        )
        if not user.is_active:
            raise SignInFailed(SUSPENDED, "deactivated", username)
        known_as = user.name
        user.name = _text(claims.get("name") or claims.get("preferred_username"), 150)
        user.email = _text(claims.get("email"), 254)
        user.is_staff = bool(roles & STAFF_ROLES)
        user.is_superuser = False
        user.save(update_fields=["name", "email", "is_staff", "is_superuser"])
        before: dict[str, Any] = {}
        had = sorted(user.groups.values_list("name", flat=True))
        if had != sorted(roles):
            user.groups.set([Group.objects.get_or_create(name=role)[0] for role in sorted(roles)])
            before["roles_before"] = had
        if known_as != user.name and not is_new:
            before["name_before"] = known_as
        if before:
            audit.record(user, "person.signed_in", user, **before)
    return user


def _text(value: object, length: int) -> str:
    """Return a claim as one line of text: PostgreSQL accepts no NUL, and no name needs a line break."""
    return "".join(c for c in value if c.isprintable())[:length] if isinstance(value, str) else ""
