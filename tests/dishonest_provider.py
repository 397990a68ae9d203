"""An identity provider over real HTTP that can lie in one way at a time. Honest, it signs in whoever it is told to."""

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CLIENT_ID, CLIENT_SECRET = "refund-dashboard", "a-secret: with a colon, and 32 bytes"
KEY, FOREIGN_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"

type Claims = dict[str, Any]


def jwk(key: rsa.RSAPrivateKey, **more: str) -> Claims:
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), **more}


def signed(claims: Claims, *, key: Any = KEY, algorithm: str = "RS256", **header: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "key-1", **header})


def hmac_signed(claims: Claims, secret: bytes) -> str:
    """By hand: PyJWT itself refuses to use a public key as an HMAC's secret."""
    header = {"alg": "HS256", "typ": "JWT", "kid": "key-1"}
    text = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    return (text + b"." + _base64(hmac.digest(secret, text, "sha256"))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def without(*names: str) -> Callable[[Claims], str]:
    return lambda claims: signed({name: value for name, value in claims.items() if name not in names})


def but(**changes: Any) -> Callable[[Claims], str]:
    return lambda claims: signed(claims | changes)


PUBLIC_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
FORGED_ID_TOKENS: dict[str, Callable[[Claims], str | None]] = {
    "aud of another client": but(aud="other-client"),
    "no aud": without("aud"),
    "iss of another provider": but(iss="https://evil.example"),
    "no iss": without("iss"),
    "expired": but(exp=1_600_000_000),
    "no exp": without("exp"),
    "not yet valid": but(nbf=4_000_000_000),
    "issued in the future": but(iat=4_000_000_000),
    "no iat": without("iat"),
    "no sub": without("sub"),
    "empty sub": but(sub=""),
    "sub with a NUL": but(sub="operator\0"),
    "no nonce": without("nonce"),
    "nonce of another sign-in": but(nonce="0" * 32),
    "alg none": lambda claims: jwt.encode(claims, "", algorithm="none", headers={"kid": "key-1"}),
    "HS256 with the public key": lambda claims: hmac_signed(claims, PUBLIC_PEM),
    "HS256 with the client's secret": lambda claims: hmac_signed(claims, CLIENT_SECRET.encode()),
    "signed by another key": lambda claims: signed(claims, key=FOREIGN_KEY),
    "signed by an unpublished key": lambda claims: signed(claims, key=FOREIGN_KEY, kid="key-2"),
    "its own key in the header": lambda claims: signed(claims, key=FOREIGN_KEY, jwk=jwk(FOREIGN_KEY)),
    "RS512, which was not offered": lambda claims: signed(claims, algorithm="RS512"),
    "azp of another client": but(azp="other-client"),
    "two audiences and no azp": but(aud=[CLIENT_ID, "other-client"]),
    "changed after signing": lambda claims: signed(claims)[:-6] + "AAAAAA",
    "no token at all": lambda claims: None,
    "not a token": lambda claims: "garbage",
}
FORGED_LOGOUT_TOKENS: dict[str, Callable[[Claims], str | None]] = {
    "a nonce": but(nonce="n"),
    "no events": without("events"),
    "another event": but(events={"http://schemas.openid.net/event/other": {}}),
    "events as text": but(events=LOGOUT_EVENT),
    "aud of another client": but(aud="other-client"),
    "iss of another provider": but(iss="https://evil.example"),
    "expired": but(exp=1_600_000_000),
    "no iat": without("iat"),
    "no jti": without("jti"),
    "nobody": without("sub", "sid"),
    "sub as a list": but(sub=["operator"]),
    "signed by another key": lambda claims: signed(claims, key=FOREIGN_KEY, typ="logout+jwt"),
    "alg none": lambda claims: jwt.encode(claims, "", algorithm="none", headers={"typ": "logout+jwt"}),
    "an ID token": lambda claims: signed(claims, typ="JWT"),
    "nothing": lambda claims: None,
    "garbage": lambda claims: "a.b.c",
}


class DishonestProvider(ThreadingHTTPServer):
    """The provider. Set `lie` to one of the names that are looked for below, or to a forger of ID tokens."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server_port}"
        self.lie = ""
        self.forge: Callable[[Claims], str | None] = signed
        self.metadata: Claims = {}  # what discovery says instead
        self.signed_in: Claims = {"sub": "u-1", "name": "返金 花子", "email": "hanako@example.jp"}
        self.groups: Any = ["operator"]
        self.in_id_token: Claims = {}
        self.has_session = True  # whether prompt=none is answered without asking
        self.asked: list[dict[str, str]] = []  # parameters of each authorization request
        self.codes: dict[str, dict[str, str]] = {}
        self.tokens: list[str] = []  # ID tokens that it gave
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def handle_error(self, *args: Any) -> None:
        """Say nothing of clients that do not wait for a slow answer."""

    def discovery(self) -> Claims:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/jwks",
            "end_session_endpoint": f"{self.issuer}/end-session",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            "scopes_supported": ["openid", "profile", "email", "groups"],
            **self.metadata,
        }

    def logout_claims(self, **changes: Any) -> Claims:
        now = int(time.time())
        return {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 120,
            "jti": secrets.token_hex(8),
            "sub": self.signed_in["sub"],
            "events": {LOGOUT_EVENT: {}},
            **changes,
        }


class Handler(BaseHTTPRequestHandler):
    server: DishonestProvider

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        server, url = self.server, urlsplit(self.path)
        if url.path == "/.well-known/openid-configuration":
            self.answer(server.discovery(), 500 if server.lie == "discovery is down" else 200)
        elif url.path == "/jwks":
            self.answer({"keys": [] if server.lie == "no keys" else [jwk(KEY, kid="key-1", use="sig")]})
        elif url.path == "/authorize":
            self.authorize(dict(parse_qsl(url.query)))
        elif url.path == "/userinfo":
            sub = "somebody-else" if server.lie == "userinfo of somebody else" else server.signed_in["sub"]
            status = 500 if server.lie == "userinfo is down" else 200
            self.answer({**server.signed_in, "sub": sub, "groups": server.groups}, status)
        else:
            self.answer({}, 404)

    def authorize(self, query: dict[str, str]) -> None:
        server = self.server
        server.asked.append(query)
        answer = {"state": query["state"]}
        if server.lie.startswith("error="):
            answer["error"] = server.lie.removeprefix("error=")
        elif query.get("prompt") == "none" and not server.has_session:
            answer["error"] = "login_required"
        else:
            answer["code"] = secrets.token_hex(8)
            server.codes[answer["code"]] = query
        if server.lie == "answers as another provider":
            answer["iss"] = "https://evil.example"
        elif server.metadata.get("authorization_response_iss_parameter_supported") and server.lie != "no iss":
            answer["iss"] = server.issuer
        self.answer({}, 302, Location=f"{query['redirect_uri']}?{urlencode(answer)}")

    def do_POST(self) -> None:
        server = self.server
        fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if server.lie == "token endpoint hangs":
            time.sleep(3)
        if server.lie == "token endpoint is down":
            return self.answer({"error": "server_error"}, 500)
        if server.lie == "token endpoint redirects":
            return self.answer({}, 307, Location=f"{server.issuer}/elsewhere")
        if server.lie == "token endpoint speaks HTML":
            return self.answer("<html>", 200)
        if server.lie == "token endpoint answers a list":
            return self.answer([], 200)
        in_body = fields.get("client_id") == [CLIENT_ID] and fields.get("client_secret") == [CLIENT_SECRET]
        body_only = server.metadata.get("token_endpoint_auth_methods_supported") == ["client_secret_post"]
        if not (in_body if body_only else self.headers["Authorization"] == basic_auth()):
            return self.answer({"error": "invalid_client"}, 401)
        asked = server.codes.pop(fields["code"][0], None)
        challenge = _base64(hashlib.sha256(fields["code_verifier"][0].encode()).digest()).decode()
        if (
            not asked
            or asked["code_challenge"] != challenge
            or asked["redirect_uri"] != fields["redirect_uri"][0]
        ):
            return self.answer({"error": "invalid_grant"}, 400)
        if server.lie.startswith("token error="):
            return self.answer({"error": server.lie.removeprefix("token error=")}, 400)
        now = int(time.time())
        claims = {
            "iss": server.issuer,
            "aud": CLIENT_ID,
            "sub": server.signed_in["sub"],
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            "auth_time": now,
            "sid": "provider-session-1",
            **server.in_id_token,
        }
        token = server.forge(claims)
        server.tokens.append(str(token))
        return self.answer({"access_token": "opaque", "token_type": "Bearer", "id_token": token})

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def basic_auth() -> str:
    pair = urlencode({"": CLIENT_ID})[1:] + ":" + urlencode({"": CLIENT_SECRET})[1:]
    return "Basic " + base64.b64encode(pair.encode()).decode()
