"""The company's identity provider: its endpoints, the calls to it, and the checks of its tokens.

Every answer of the provider is checked here. A wrong one raises SignInFailed, with a page that tells the person what
happened and what to do, instead of a traceback.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
from django.conf import settings
from django.core.cache import cache
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

TIMEOUT = (3.05, 5)  # seconds: to connect, and between two bytes
DISCOVERY_SECONDS = 3600
KEYS_SECONDS = 300  # how long a key that the provider has withdrawn may still be accepted
KEYS_AGAIN_SECONDS = 60  # seconds between two requests for the keys because of an unknown one
LEEWAY = 30  # seconds by which two clocks may differ
# Asymmetric only: with the key that checks an HMAC one can also forge it, and "none" is no signature.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ENDPOINTS = [
    "authorization_endpoint",
    "token_endpoint",
    "userinfo_endpoint",
    "jwks_uri",
    "end_session_endpoint",
]


@dataclass(frozen=True)
class SignInProblem:
    """The page that a person is shown when a sign-in fails."""

    status: int
    title: str | Promise
    text: str | Promise
    template: str = "site/sign_in_failed.html"
    ends_session: bool = True  # whether a person who is signed in is signed out


UNAVAILABLE = SignInProblem(
    503,
    _("会社の認証サービスが応答しません"),
    _(
        "サインインを確認できませんでした。"
        "しばらく待ってから、もう一度お試しください。"
        "続く場合は、社内の認証サービスの管理者に連絡してください。"
    ),
    ends_session=False,  # nothing was said about the person; the check is still due
)
MISCONFIGURED = SignInProblem(
    503,
    _("サインインの設定に誤りがあります"),
    _(
        "会社の認証サービスが、返金ダッシュボードからの問い合わせを受け付けません。"
        "もう一度サインインしても同じ結果になります。"
        "システム担当者と社内の認証サービスの管理者に連絡してください。"
    ),
    ends_session=False,  # nothing was said about the person
)
STALE = SignInProblem(
    400,
    _("このサインインは続けられません"),
    _(
        "使用済みか、期限が切れています。"
        "ページを再読み込みした場合や、別のタブでサインインした場合に起こります。"
        "もう一度サインインしてください。"
    ),
    ends_session=False,  # anybody can make a browser open such an address
)
CANCELLED = SignInProblem(
    403,
    _("サインインが取り消されました"),
    _(
        "会社の認証サービスで操作が取り消されたか、このサービスの利用が許可されていません。"
        "もう一度サインインするか、社内の認証サービスの管理者に連絡してください。"
    ),
)
UNPROVEN = SignInProblem(
    400,
    _("サインインを確認できませんでした"),
    _(
        "会社の認証サービスからの応答が正しくないため、サインインを中止しました。"
        "もう一度お試しください。"
        "続く場合は、時刻を添えて社内の認証サービスの管理者に連絡してください。"
    ),
)
SUSPENDED = SignInProblem(
    403,
    _("このアカウントは利用を停止されています"),
    _(
        "返金ダッシュボードの利用が停止されています。"
        "心当たりがない場合は、上長または社内の認証サービスの管理者に連絡してください。"
    ),
)
NO_ROLE = SignInProblem(403, _("利用する権限がありません"), "", template="site/no_role.html")
NOT_FRESH = SignInProblem(
    403,
    _("ご本人の再確認ができませんでした"),
    _(
        "この操作には直前のサインインが必要ですが、会社の認証サービスから、いつ本人確認をしたかの返答がありませんでした。"
        "操作は行われていません。"
        "社内の認証サービスの管理者に連絡してください。"
    ),
    ends_session=False,
)
WITHOUT_PROVIDER = SignInProblem(
    403,
    _("緊急用サインインではこの操作はできません"),
    _(
        "この操作には、会社の認証サービスによるご本人の再確認が必要です。"
        "操作は行われていません。"
        "会社の認証サービスが復旧してから、会社のアカウントでサインインして行ってください。"
    ),
    ends_session=False,
)
# RFC 6749, 4.1.2.1: errors with which the provider refuses the dashboard, not the person.
REFUSES_US = {"invalid_request", "invalid_scope", "unauthorized_client", "unsupported_response_type"}


class SignInFailed(Exception):
    """A sign-in failed.

    problem: the page to show.
    reason: for the audit trail and the log; a word, never a name, mail address or token.
    username: of the person, if the provider has proven who it is.
    """

    def __init__(self, problem: SignInProblem, reason: str, username: str = "") -> None:
        super().__init__(reason)
        self.problem = problem
        self.reason = reason
        self.username = username


@dataclass(frozen=True)
class Provider:
    """The parts of the provider's discovery document that the site uses."""

    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str
    jwks_uri: str
    end_session_endpoint: str
    algorithms: frozenset[str]
    scopes: frozenset[str]
    basic_auth: (
        bool  # whether the client secret is sent in the Authorization header; otherwise it is a form field
    )
    names_itself: bool  # whether its answers carry `iss` (RFC 9207)

    def can_be_left(self) -> bool:
        """Return whether the browser can be sent to the provider's sign-out after the form was posted.

        The CSP (form-action) allows a form to be redirected to the issuer's origin only.
        """
        return _is_at_issuer(self.end_session_endpoint)

    def can_be_asked_on_leaving(self) -> bool:
        return _is_at_issuer(self.authorization_endpoint)


def issuer_fault(issuer: str, *, https: bool) -> str:
    """Return why this issuer must not be trusted, for the administrator; empty if it may be."""
    parts = urlsplit(issuer)
    if not parts.hostname or parts.scheme not in {"http", "https"}:
        return "OIDC_ISSUER is not a web address."
    on_this_machine = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme == "http" and not on_this_machine:
        return "OIDC_ISSUER is spoken to in the clear: anybody on the way could sign in as anybody."
    if https and on_this_machine:
        return "OIDC_ISSUER is a provider on this machine, which is for development: HTTPS forbids it."
    return ""


def provider() -> Provider:
    """Return the provider, from its discovery document. It is read when first needed, and again after an hour.

    Raises: SignInFailed.
    """
    if fault := issuer_fault(settings.OIDC_ISSUER, https=settings.HTTPS):
        raise SignInFailed(UNAVAILABLE, fault)
    key = f"oidc-discovery:{settings.OIDC_ISSUER}"
    document = cache.get(key)
    if document is None:
        document = ask("GET", settings.OIDC_ISSUER.rstrip("/") + "/.well-known/openid-configuration")
        found = _provider(document)
        cache.set(key, document, DISCOVERY_SECONDS)
        return found
    return _provider(document)


def _provider(document: dict[str, Any]) -> Provider:
    if document.get("issuer") != settings.OIDC_ISSUER:
        raise SignInFailed(UNAVAILABLE, "discovery_issuer")
    endpoints = {name: document.get(name, "") for name in ENDPOINTS}
    for name, address in endpoints.items():
        optional = name == "end_session_endpoint" and address == ""
        if not optional and not _is_as_safe_as_issuer(address):
            raise SignInFailed(UNAVAILABLE, f"discovery_{name}")
    offered = document.get("id_token_signing_alg_values_supported", ["RS256"])
    algorithms = frozenset(ALGORITHMS).intersection(offered)
    if not algorithms:
        raise SignInFailed(UNAVAILABLE, "discovery_algorithms")
    methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    return Provider(
        **endpoints,
        algorithms=algorithms,
        scopes=frozenset(document.get("scopes_supported", [])),
        basic_auth="client_secret_basic" in methods,
        names_itself=document.get("authorization_response_iss_parameter_supported") is True,
    )


def _is_as_safe_as_issuer(address: object) -> bool:
    if not isinstance(address, str):
        return False
    parts = urlsplit(address)
    return bool(parts.hostname) and parts.scheme == urlsplit(settings.OIDC_ISSUER).scheme


def _is_at_issuer(address: str) -> bool:
    here, issuer = urlsplit(address), urlsplit(settings.OIDC_ISSUER)
    return (here.scheme, here.netloc) == (issuer.scheme, issuer.netloc)


def ask(
    method: str, url: str, *, rejected: Callable[[str], SignInFailed] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Call the provider and return its JSON object.

    rejected: turns an OAuth error code of a 400 or 401 answer into the exception to raise.

    Raises: SignInFailed; of UNAVAILABLE for every answer that is no 200 with a JSON object and that `rejected` does not
    handle, and for errors of the network.
    """
    try:
        with requests.Session() as http:
            http.trust_env = (
                False  # so that no proxy or .netrc of the environment is used with the client secret
            )
            response = http.request(
                method,
                url,
                timeout=TIMEOUT,
                allow_redirects=False,  # the secret is sent only to the address in the discovery document
                verify=settings.OIDC_CA_BUNDLE or True,
                **kwargs,
            )
        if rejected and response.status_code in {400, 401} and (error := _oauth_error(response)):
            raise rejected(error)
        if response.status_code != 200:
            raise SignInFailed(UNAVAILABLE, f"provider_{response.status_code}")
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        raise SignInFailed(UNAVAILABLE, type(error).__name__) from error
    if not isinstance(answer, dict):
        raise SignInFailed(UNAVAILABLE, "provider_json")
    return answer


def _oauth_error(response: requests.Response) -> str:
    """Return the error code of an OAuth error answer (RFC 6749, 5.2), or "" if it has none."""
    answer = response.json()
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, str) and re.fullmatch(r"[a-z_]{1,40}", error) else ""


def check_token(token: object, *, required: list[str], typ: str = "") -> dict[str, Any]:
    """Return the claims of a token, after checking that the provider signed it for us and that it is valid now.

    Args:
        required: claims that the token must have; PyJWT checks any others only if they are present.
        typ: the `typ` that the header must have, in lower case, so that no other kind of token is accepted.

    Raises: SignInFailed.
    Source: OpenID Connect Core 1.0, 3.1.3.7; Back-Channel Logout 1.0, 2.6.
    """
    if not isinstance(token, str):
        raise SignInFailed(UNPROVEN, "token_missing")
    try:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in provider().algorithms:
            raise SignInFailed(UNPROVEN, "alg")
        if typ and str(header.get("typ", "")).lower() != typ:
            raise SignInFailed(UNPROVEN, "typ")
        claims = jwt.decode(
            token,
            _signing_key(header),
            algorithms=[header["alg"]],
            audience=settings.OIDC_RP_CLIENT_ID,
            issuer=settings.OIDC_ISSUER,
            leeway=LEEWAY,
            options={"require": required},
        )
    except jwt.PyJWTError as error:
        raise SignInFailed(UNPROVEN, type(error).__name__) from error
    several_audiences = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (several_audiences or "azp" in claims) and claims.get("azp") != settings.OIDC_RP_CLIENT_ID:
        raise SignInFailed(UNPROVEN, "azp")
    return claims


def _signing_key(header: dict[str, Any]) -> jwt.PyJWK:
    """Return the one published key that the header names. A key inside the token itself is never used.

    Anybody can send a token that names an unknown key, so the provider is asked for its keys again only once a minute.

    Raises: SignInFailed.
    """
    uri = provider().jwks_uri
    known = cache.get(f"oidc-keys:{uri}")
    fitting = _fitting(known or [], header)
    if known is None or (len(fitting) != 1 and cache.add(f"oidc-keys-again:{uri}", True, KEYS_AGAIN_SECONDS)):
        keys = ask("GET", uri).get("keys")
        known = [key for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
        cache.set(f"oidc-keys:{uri}", known, KEYS_SECONDS)
        fitting = _fitting(known, header)
    if len(fitting) != 1:
        raise SignInFailed(UNPROVEN, "key_unknown")
    return jwt.PyJWK(fitting[0], algorithm=header["alg"])


def _fitting(keys: list[dict[str, Any]], header: dict[str, Any]) -> list[dict[str, Any]]:
    alg, kid = header["alg"], header.get("kid")
    return [
        key
        for key in keys
        if key.get("use", "sig") == "sig" and key.get("alg", alg) == alg and kid in (None, key.get("kid"))
    ]
