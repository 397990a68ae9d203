"""The identity provider of `make run`: OpenID Connect on loopback, four demo people, no passwords.

    python -m scripts.identity_provider --port 8002 --app-url http://127.0.0.1:8000

oidc-provider-mock does the protocol: tokens, keys, discovery, userinfo. Replaced here are the two pages that a
person sees, because the package lets anybody in under any name, keeps no session and ignores PKCE, while a
company's provider does not. Never for a deployment.
"""

import argparse
import base64
import hashlib
import os
import secrets
import time
from urllib.parse import urlencode

import flask
import uvicorn
from oidc_provider_mock import User
from oidc_provider_mock import app as provider_app
from oidc_provider_mock._storage import AuthorizationCode, Client, ClientAllowAny
from werkzeug.wrappers import Response

CLIENT_ID = "refund-dashboard"
CLIENT_SECRET = "loopback-only-not-a-secret"  # noqa: S105  it guards four made-up people, on 127.0.0.1
PEOPLE = {
    "viewer": ("閲覧 太郎", "閲覧者"),
    "operator": ("返金 花子", "返金担当者"),
    "approver": ("承認 一郎", "承認者"),
    "auditor": ("監査 桜", "監査担当者"),
}
LOGIN_PAGE = """<!doctype html>
<html lang="ja">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>開発用サインイン</title>
<style>
  body { font: 1rem/1.6 system-ui, sans-serif; max-width: 26rem; margin: 3rem auto; padding: 0 1rem; }
  button, input { font: inherit; padding: .6rem .8rem; width: 100%; box-sizing: border-box; }
  button, input { margin-bottom: .5rem; }
  button { text-align: left; cursor: pointer; }
  .error { color: #b00020; }
</style>
<h1>開発用サインイン</h1>
<p>デモの4人だけがサインインできます。パスワードはありません。</p>
{% if error %}<p class="error" role="alert">{{ error }}</p>{% endif %}
<form method="post">
{% for login, (name, role) in people.items() %}
  <button name="sub" value="{{ login }}">{{ name }}({{ role }}) — {{ login }}</button>
{% endfor %}
</form>
<form method="post">
  <label for="login">ログイン名</label>
  <input id="login" name="sub" autocomplete="username" required>
  <button>サインイン</button>
</form>
<form method="post"><button name="action" value="deny">中止して戻る</button></form>
</html>
"""


class Dashboard(Client):
    """The one client; its secret may come in the header or in the body, but it must come."""

    def check_endpoint_auth_method(self, method: str, endpoint: object) -> bool:
        return method in {"client_secret_basic", "client_secret_post"}


def create_app(app_url: str) -> flask.Flask:
    """The provider, for one client that lives at `app_url`."""
    people = [
        User(
            sub=login,
            claims={"name": name, "email": f"{login}@example.jp", "email_verified": True, "groups": [login]},
        )
        for login, (name, _role) in PEOPLE.items()
    ]
    origins = {app_url, app_url.replace("127.0.0.1", "localhost")}
    client = Dashboard(
        id=CLIENT_ID,
        secret=CLIENT_SECRET,
        redirect_uris=[f"{origin}/oidc/callback/" for origin in origins],
        allowed_scopes=Client.SCOPES_SUPPORTED,
        token_endpoint_auth_method=ClientAllowAny(),  # see Dashboard
    )
    challenges: dict[str, str] = {}  # authorization code -> its PKCE challenge

    app: flask.Flask = provider_app(require_client_registration=True, user_claims=people)
    # Cookies of 127.0.0.1 are shared by all its ports, and the dashboard's is called "session" too.
    app.config["SESSION_COOKIE_NAME"] = "demo_identity"

    @app.before_request
    def know_only_this_client() -> Response | None:
        flask.g.oidc_provider_mock_storage.store_client(client)
        request = flask.request
        if request.endpoint in {"oidc-provider-mock.set_user", "oidc-provider-mock.register_client"}:
            return flask.Response("Only the four demo people and one client.\n", 403)
        if request.endpoint == "oidc-provider-mock.issue_token" and "code" in request.form:
            challenge = challenges.pop(request.form["code"], None)
            if challenge and challenge != s256(request.form.get("code_verifier", "")):
                return flask.make_response({"error": "invalid_grant", "error_description": "PKCE"}, 400)
        return None

    @app.after_request
    def tell_what_is_added(response: flask.Response) -> flask.Response:
        if flask.request.endpoint == "oidc-provider-mock.openid_config":
            metadata = response.get_json() | {
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
                "prompt_values_supported": ["none", "login"],
                "claims_supported": ["sub", "name", "email", "email_verified", "groups", "auth_time"],
            }
            response.data = flask.json.dumps(metadata, indent=2)
        return response

    def authorize() -> Response | tuple[str, int]:
        """Who is asking is checked first; only then may an answer, good or bad, go back to them."""
        query = flask.request.args
        if query.get("client_id") != CLIENT_ID or query.get("redirect_uri") not in client.redirect_uris:
            return f"Unknown client or redirect_uri: this provider serves {app_url} alone.\n", 400
        if query.get("response_type") != "code" or "openid" not in query.get("scope", "").split():
            return answer(error="invalid_request")
        if "code_challenge" in query and query.get("code_challenge_method") != "S256":
            return answer(error="invalid_request")

        if query.get("prompt") == "none":
            age = time.time() - flask.session.get("auth_time", 0)
            if "sub" not in flask.session or age > query.get("max_age", float("inf"), type=float):
                return answer(error="login_required")
            return answer(code=issue_code())

        if flask.request.method == "GET":  # always asked, so that a demo can change people
            return flask.render_template_string(LOGIN_PAGE, people=PEOPLE), 200
        if flask.request.form.get("action") == "deny":
            return answer(error="access_denied")
        login = flask.request.form.get("sub", "").strip()
        if login not in PEOPLE:
            error = "このログイン名は登録されていません。"
            return flask.render_template_string(LOGIN_PAGE, people=PEOPLE, error=error), 403
        flask.session.update(sub=login, auth_time=int(time.time()))
        return answer(code=issue_code())

    def issue_code() -> str:
        query = flask.request.args
        code = secrets.token_urlsafe(24)
        if "code_challenge" in query:
            challenges[code] = query["code_challenge"]
        flask.g.oidc_provider_mock_storage.store_authorization_code(
            AuthorizationCode(
                code=code,
                client_id=CLIENT_ID,
                redirect_uri=query["redirect_uri"],
                user_id=flask.session["sub"],
                scope=client.get_allowed_scope(query["scope"]),
                nonce=query.get("nonce"),
                auth_time=flask.session["auth_time"],
            )
        )
        return code

    def end_session() -> Response | str:
        flask.session.clear()
        target = flask.request.values.get("post_logout_redirect_uri", "")
        if not any(target == origin or target.startswith(f"{origin}/") for origin in origins):
            return "サインアウトしました。"
        state = flask.request.values.get("state")
        return flask.redirect(f"{target}?{urlencode({'state': state})}" if state else target, 302)

    app.view_functions["oidc-provider-mock.authorize"] = authorize
    app.view_functions["oidc-provider-mock.end_session"] = end_session
    return app


def answer(**parameters: str) -> Response:
    """Go back to the dashboard with a code or an error."""
    query = flask.request.args
    if "state" in query:
        parameters["state"] = query["state"]
    parameters["iss"] = flask.request.host_url.rstrip("/")
    return flask.redirect(f"{query['redirect_uri']}?{urlencode(parameters)}", 302)


def s256(verifier: str) -> str:
    """The PKCE challenge of a verifier (RFC 7636, 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--app-url", required=True, help="where the dashboard lives: http://127.0.0.1:8000")
    arguments = parser.parse_args()
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # plain HTTP, on loopback
    uvicorn.run(
        create_app(arguments.app_url.rstrip("/")),
        interface="wsgi",
        host="127.0.0.1",
        port=arguments.port,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
