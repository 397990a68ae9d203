// panva's oidc-provider, certified by the OpenID Foundation, with the settings of a company's single sign-on:
// one confidential client, PKCE asked of it, groups as a claim, both kinds of sign-out, the one that the dashboard begins
// for an ID token alone. Its pages are its own.
//
//   node provider.mjs '{"port": 8002, "app": "http://127.0.0.1:8000", "client_id": "…", "client_secret": "…"}'
//
// PUT /door/people replaces the people: {"hanako": {"name": "返金 花子", "groups": ["operator"]}}.
// GET /door/told lists whom it told of a sign-out, and what it was answered.

import { createServer } from "node:http";
import { interactionPolicy, Provider } from "oidc-provider";

const { port, app, client_id, client_secret } = JSON.parse(process.argv[2]);
let people = {};
const told = [];

const policy = interactionPolicy.base();
policy.get("login").checks.add(
  // An account that was disabled has no session any more, whatever its cookie says.
  new interactionPolicy.Check("account_disabled", "the account is disabled", "login_required", ({ oidc }) =>
    oidc.session.accountId && !(oidc.session.accountId in people)
      ? interactionPolicy.Check.REQUEST_PROMPT
      : interactionPolicy.Check.NO_NEED_TO_PROMPT,
  ),
);

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id,
      client_secret,
      redirect_uris: [`${app}/oidc/callback/`],
      post_logout_redirect_uris: [`${app}/signed-out/`],
      backchannel_logout_uri: `${app}/oidc/backchannel-logout/`,
      backchannel_logout_session_required: true,
    },
  ],
  claims: { openid: ["sub"], profile: ["name"], email: ["email"], groups: ["groups"] },
  scopes: ["openid", "profile", "email", "groups"],
  pkce: { required: () => true },
  cookies: { keys: ["of-the-tests"] },
  features: { backchannelLogout: { enabled: true } },
  interactions: { policy },
  ttl: { Session: 3600, Grant: 3600, Interaction: 3600, AccessToken: 300, IdToken: 300 },
  findAccount: (ctx, login) =>
    login in people
      ? { accountId: login, claims: () => ({ sub: login, email: `${login}@example.jp`, ...people[login] }) }
      : undefined,
  // The company consented for everybody.
  async loadExistingGrant({ oidc }) {
    const grant = new oidc.provider.Grant({ clientId: oidc.client.clientId, accountId: oidc.session.accountId });
    grant.addOIDCScope("openid profile email groups");
    await grant.save();
    return grant;
  },
  // Without its guard against addresses of this machine, which is where the dashboard of the tests is.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
});
provider.on("backchannel.success", (ctx, client, login) => told.push([login, "done"]));
provider.on("backchannel.error", (ctx, error, client, login) => told.push([login, error.message]));

const answer = provider.callback();
createServer(async (request, response) => {
  if (request.url === "/door/people") {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    people = JSON.parse(Buffer.concat(chunks).toString());
    response.writeHead(204).end();
  } else if (request.url === "/door/told") {
    response.end(JSON.stringify(told));
  } else if (request.url.includes("post_logout_redirect_uri=") && !request.url.includes("id_token_hint=")) {
    // As Okta does. This provider itself would do without.
    response.writeHead(400).end("id_token_hint is missing");
  } else {
    answer(request, response);
  }
}).listen(port, "127.0.0.1");
