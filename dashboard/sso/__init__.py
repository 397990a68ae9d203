"""Single sign-on: the company's claims -> a person, a name and roles, anew at each sign-in.

A strict subclass of mozilla-django-oidc. The library keeps state, nonce and PKCE and walks through the code flow.
Its checks of the provider's answers are replaced, because they accept a token made for another client, recognise
people by e-mail, and leave a refused person signed in.

    sessions.py      a session's beginning and its early end
    backend.py       a code -> checked claims -> a user with roles
    decorators.py    for views: a refused sign-in as a page; a recent sign-in required
    backchannel.py   the provider ends sessions here
    views.py         sign-in, recheck, step-up, callback and sign-out
"""

from dashboard.sso.backend import StrictOIDCBackend, sync_user

# Every session in the database names its backend by the path "dashboard.sso.StrictOIDCBackend". Under another path,
# Django would sign everybody out.
__all__ = ["StrictOIDCBackend", "sync_user"]
