"""Who may open what, as one table. tests/test_rights.py asks the site for every line; docs/security.md shows it.

    python -m tests.rights          write the table into docs/security.md anew

The table is the decision, not a record of what the site happens to do: a line is changed by whoever answers for it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "security.md"
BEGIN = "<!-- rights: written by `python -m tests.rights` from tests/rights.py -->"
END = "<!-- /rights -->"

ROLES = ["anonymous", "no role", "viewer", "operator", "approver", "auditor"]
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"]
# A line's method stands for these. "other" is what the address has no line for.
STANDS_FOR = {"GET": ["GET", "HEAD"], "POST": ["POST"], "any": METHODS[:4], "other": METHODS[:4]}
NEVER = METHODS[4:]  # 405 for everybody at every address; so they have no lines

LEGEND = {
    "200": "the page",
    "302": "done, or nothing to do here: on to another page of ours, or to the identity provider",
    "sign-in": "on to the sign-in page; nothing else happens",
    "door": "on to `/admin/login/`, where whoever is signed in is told 403 and nobody can type a password",
    "400": "refused: nothing signed or begun by whom it claims",
    "403": "not for this role; said in words",
    "404": "there is no such thing, or not for this person",
    "405": "not this way: the address takes no such method",
}

# Its posts are not forms of ours: the sender proves itself by a signature instead of a token.
WITHOUT_TOKEN = {"/webhooks/smartpay/", "/oidc/backchannel-logout/"}
# Only within SSO_STEP_UP_SECONDS of the provider having asked for the person. The table is of people just asked for.
OF_A_FILE = "/bulk/<bulk_id>/"  # the table's post approves; pausing and cancelling want no such sign-in
FRESH = {
    OF_A_FILE,
    "/refunds/<refund_id>/decide/",
    "/refunds/<refund_id>/review/",
    "/refunds/sends/",
}

# What the admin shows; each has the lines of `/admin/<model>/…`.
MODELS = [
    "dashboard/user",
    "refunds/attempt",
    "refunds/auditentry",
    "refunds/bulk",
    "refunds/bulkline",
    "refunds/control",
    "refunds/jobrun",
    "refunds/order",
    "refunds/payment",
    "refunds/refund",
    "refunds/search",
    "refunds/smartpayrefund",
    "refunds/synccursor",
]

# Refund and search are a colleague's; the refund waits for approval, at review/ for people who find out.
TABLE = """
address                                     method  anonymous  no role  viewer  operator  approver  auditor

/                                           GET     sign-in    403      200     200       200       200
/                                           other   sign-in    405      405     405       405       405
/orders/                                    GET     sign-in    403      200     200       200       200
/orders/                                    other   sign-in    405      405     405       405       405
/orders/?search=<search_id>                 GET     sign-in    403      404     404       404       200
/orders/search/                             GET     sign-in    302      302     302       302       302
/orders/search/                             POST    sign-in    403      302     302       302       302
/orders/search/                             other   sign-in    405      405     405       405       405
/orders/saved/                              GET     sign-in    302      302     302       302       302
/orders/saved/                              POST    sign-in    403      302     302       302       302
/orders/saved/                              other   sign-in    405      405     405       405       405
/orders/export/                             GET     sign-in    403      200     200       200       200
/orders/export/                             other   sign-in    405      405     405       405       405
/orders/<order_id>/                         GET     sign-in    403      200     200       200       200
/orders/<order_id>/                         other   sign-in    405      405     405       405       405
/orders/<order_id>/refund/                  GET     sign-in    403      403     200       200       403
/orders/<order_id>/refund/                  POST    sign-in    403      403     200       200       403
/orders/<order_id>/refund/                  other   sign-in    405      405     405       405       405
/refunds/                                   GET     sign-in    403      200     200       200       200
/refunds/                                   other   sign-in    405      405     405       405       405
/refunds/export/                            GET     sign-in    403      200     200       200       200
/refunds/export/                            other   sign-in    405      405     405       405       405
/refunds/<refund_id>/                       GET     sign-in    403      200     200       200       200
/refunds/<refund_id>/                       other   sign-in    405      405     405       405       405
/bulk/                                      GET     sign-in    403      200     200       200       200
/bulk/                                      POST    sign-in    403      403     302       302       403
/bulk/                                      other   sign-in    405      405     405       405       405
/bulk/template/                             GET     sign-in    403      200     200       200       200
/bulk/template/                             other   sign-in    405      405     405       405       405
/bulk/<bulk_id>/                            GET     sign-in    403      200     200       200       200
/bulk/<bulk_id>/                            POST    sign-in    403      403     403       302       403
/bulk/<bulk_id>/                            other   sign-in    405      405     405       405       405
/bulk/<bulk_id>/result/                     GET     sign-in    403      200     200       200       200
/bulk/<bulk_id>/result/                     other   sign-in    405      405     405       405       405
/refunds/<refund_id>/withdraw/              GET     sign-in    302      302     302       302       302
/refunds/<refund_id>/withdraw/              POST    sign-in    403      403     403       403       403
/refunds/<refund_id>/withdraw/              other   sign-in    405      405     405       405       405
/refunds/<refund_id>/decide/                GET     sign-in    302      302     302       302       302
/refunds/<refund_id>/decide/                POST    sign-in    403      403     403       302       403
/refunds/<refund_id>/decide/                other   sign-in    405      405     405       405       405
/refunds/<refund_id>/review/                GET     sign-in    403      200     200       200       200
/refunds/<refund_id>/review/                POST    sign-in    403      403     403       302       403
/refunds/<refund_id>/review/                other   sign-in    405      405     405       405       405
/refunds/sends/                             GET     sign-in    302      302     302       302       302
/refunds/sends/                             POST    sign-in    403      403     403       302       403
/refunds/sends/                             other   sign-in    405      405     405       405       405
/approvals/                                 GET     sign-in    403      403     403       200       403
/approvals/                                 other   sign-in    405      405     405       405       405
/reconciliation/                            GET     sign-in    403      403     403       200       200
/reconciliation/                            other   sign-in    405      405     405       405       405
/reconciliation/<day>/                      GET     sign-in    403      403     403       200       200
/reconciliation/<day>/                      other   sign-in    405      405     405       405       405

/admin/                                     any     door       door     door    door      door      200
/admin/login/                               any     sign-in    403      403     403       403       403
/admin/logout/                              POST    302        302      302     302       302       302
/admin/logout/                              other   405        405      405     405       405       405
/admin/autocomplete/                        GET     door       door     door    door      door      403
/admin/autocomplete/                        POST    door       door     door    door      door      405
/admin/autocomplete/                        other   door       door     door    door      door      200
/admin/jsi18n/                              GET     door       door     door    door      door      200
/admin/jsi18n/                              POST    door       door     door    door      door      405
/admin/jsi18n/                              other   door       door     door    door      door      200
/admin/r/<content_type_id>/<object_id>/     any     door       door     door    door      door      404
/admin/<app_label>/                         any     door       door     door    door      door      200
/admin/<url>                                any     door       door     door    door      door      404
/admin/<model>/                             any     sign-in    door     door    door      door      200
/admin/<model>/add/                         any     sign-in    door     door    door      door      403
/admin/<model>/<object_id>/                 any     sign-in    door     door    door      door      302
/admin/<model>/<object_id>/change/          GET     sign-in    door     door    door      door      200
/admin/<model>/<object_id>/change/          POST    sign-in    door     door    door      door      403
/admin/<model>/<object_id>/change/          other   sign-in    door     door    door      door      200
/admin/<model>/<object_id>/delete/          any     sign-in    door     door    door      door      403
/admin/<model>/<object_id>/history/         any     sign-in    door     door    door      door      404

/admin/refunds/auditentry/verify/           POST    sign-in    door     door    door      door      200
/admin/refunds/auditentry/verify/           other   sign-in    door     door    door      door      405
/admin/refunds/auditentry/export.csv        GET     sign-in    door     door    door      door      200
/admin/refunds/auditentry/export.csv        other   sign-in    door     door    door      door      405
/admin/refunds/auditentry/export.jsonl      GET     sign-in    door     door    door      door      200
/admin/refunds/auditentry/export.jsonl      other   sign-in    door     door    door      door      405

/sign-in/                                   any     200        302      302     302       302       302
/signed-out/                                any     200        302      302     302       302       302
/oidc/authenticate/                         GET     302        302      302     302       302       302
/oidc/authenticate/                         HEAD    405        405      405     405       405       405
/oidc/authenticate/                         other   405        405      405     405       405       405
/oidc/callback/                             GET     400        400      400     400       400       400
/oidc/callback/                             HEAD    405        405      405     405       405       405
/oidc/callback/                             other   405        405      405     405       405       405
/oidc/step-up/                              GET     sign-in    302      302     302       302       302
/oidc/step-up/                              HEAD    sign-in    405      405     405       405       405
/oidc/step-up/                              other   sign-in    405      405     405       405       405
/oidc/logout/                               POST    302        302      302     302       302       302
/oidc/logout/                               other   405        405      405     405       405       405
/oidc/backchannel-logout/                   POST    400        400      400     400       400       400
/oidc/backchannel-logout/                   other   405        405      405     405       405       405
/break-glass/                               GET     404        404      404     404       404       404
/break-glass/                               POST    404        404      404     404       404       404
/break-glass/                               other   405        405      405     405       405       405
/i18n/setlang/                              any     302        302      302     302       302       302
/healthz                                    any     200        200      200     200       200       200
/readyz                                     any     200        200      200     200       200       200
/metrics                                    any     404        404      404     404       404       404
/webhooks/smartpay/                         POST    400        400      400     400       400       400
/webhooks/smartpay/                         other   405        405      405     405       405       405
"""


@dataclass(frozen=True)
class Line:
    """What each role gets at an address by a method, as the table says it."""

    address: str
    method: str
    answers: dict[str, str]


def lines() -> list[Line]:
    """The table, line by line."""
    _heading, *rows = filter(None, TABLE.splitlines())
    found = []
    for row in rows:
        address, method, *answers = row.split()
        found.append(Line(address, method, dict(zip(ROLES, answers, strict=True))))
    return found


def expected() -> dict[tuple[str, str], dict[str, str]]:
    """Address and method -> role -> answer, for every method; the admin's lines for every model."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for line in sorted(lines(), key=lambda line: line.method == "other"):
        for address in _of_every_model(line.address):
            methods = STANDS_FOR.get(line.method, [line.method])
            for method in methods:
                if line.method == "other" or (line.method, method) == ("GET", "HEAD"):
                    table.setdefault((address, method), line.answers)
                else:
                    table[address, method] = line.answers
            for method in NEVER:
                table[address, method] = dict.fromkeys(ROLES, "405")
    return table


def _of_every_model(address: str) -> list[str]:
    return [address.replace("<model>", model) for model in MODELS] if "<model>" in address else [address]


def plain(route: str) -> str:
    """A route as Django spells it -> as the table does: `<uuid:refund_id>/` -> `<refund_id>/`."""
    route = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", route).strip("^$").replace("/^", "/")
    return re.sub(r"<\w+:(\w+)>", r"<\1>", route)


# --- The document -------------------------------------------------------------------------------------------
SECTION = """\
{begin}

Every address of the site by every method, for every role. `tests/test_rights.py` asks the site for each, and an
address without a line here fails. People with a role have just signed in. Refund and search are a colleague's; the refund
waits for approval (at `review/`: is 要調査).

| Answer | |
|---|---|
{legend}

{never} are answered 405 at every address, for everybody. `any` and `other` are GET, HEAD, POST and OPTIONS;
`other` those without a line of their own; HEAD is as GET.

A post without the form's token is 403, except at {without_token}, where a signature is asked for instead.
A post to {fresh} also wants a sign-in that is younger than `SSO_STEP_UP_SECONDS`. So do
two posts to `{of_a_file}`, the one that approves and the one that rejects, and whatever asks for more than `REFUND_APPROVAL_ABOVE`: a post to
`/orders/<order_id>/refund/`, and the one that starts a file. Pausing, resuming and cancelling a file want none. `/break-glass/` is there while a code of
`manage.py break_glass` waits.

`<model>` is each of {models}.

{heading}
{rule}
{table}

{end}"""


def section() -> str:
    """The table as docs/security.md shows it."""
    heads = ["Address", "Method", *("not signed in" if role == "anonymous" else role for role in ROLES)]
    rows = [f"| `{line.address}` | {line.method} | {' | '.join(line.answers.values())} |" for line in lines()]
    return SECTION.format(
        begin=BEGIN,
        legend="\n".join(f"| {answer} | {meaning} |" for answer, meaning in LEGEND.items()),
        never=", ".join(NEVER),
        without_token=_named(WITHOUT_TOKEN),
        fresh=_named(FRESH - {OF_A_FILE}),
        of_a_file=OF_A_FILE,
        models=_named(MODELS),
        heading=f"| {' | '.join(heads)} |",
        rule="|" + "---|" * len(heads),
        table="\n".join(rows),
        end=END,
    )


def _named(names: list[str] | set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def shown() -> str:
    """The section as the document has it now; "" where it has none."""
    _before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    inside, end, _after = rest.partition(END)
    return begin + inside + end if begin and end else ""


def write() -> None:
    """Put the table into the document: in the place of the one that is there, else under a heading before the trail."""
    text = DOCUMENT.read_text()
    if before := shown():
        text = text.replace(before, section())
    else:
        text = text.replace("\n## The trail\n", f"\n## Who may open what\n\n{section()}\n\n## The trail\n", 1)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    write()
