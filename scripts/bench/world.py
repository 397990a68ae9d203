"""A sandbox Smartpay, a database that has read it, and the product on both: what refunds and events are measured in."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.bench import databases
from scripts.bench.site import PYTHON, environment, run, served, started
from scripts.embedded import signing_secret
from scripts.postgres import free_port
from tests.sandbox import Sandbox


@dataclass(frozen=True)
class World:
    """site: its address. database: the URL. cookie: of an operator who is signed in, `name=value`."""

    site: str
    sandbox: Sandbox
    database: str
    cookie: str


@contextlib.contextmanager
def world(engine: str, orders: int) -> Iterator[World]:
    """Web server and worker as deployed. PostgreSQL writes to the disk here, as it has to where money moves."""
    port, secret = free_port(), signing_secret()
    webhook = f"http://127.0.0.1:{port}/webhooks/smartpay/"
    with (
        tempfile.TemporaryDirectory() as state,
        databases.server(durable=True) as server,
        databases.empty(server, engine) as url,
        Sandbox("--webhook", webhook, "--webhook-secret", secret, orders=orders) as sandbox,
    ):
        inside = environment(
            url,
            DJANGO_SETTINGS_MODULE="dashboard.settings",
            STATE_DIR=state,  # a machine's own memory of the ledger: another ledger would look restored
            SMARTPAY_API_URL=sandbox.url,
            SMARTPAY_SECRET_KEY=sandbox.secret_key,
            SMARTPAY_WEBHOOK_SECRETS=secret,
        )
        for command in (["migrate", "-v", "0"], ["sync_orders"]):
            run([PYTHON, "manage.py", *command], inside)
        [cookie] = json.loads(run([PYTHON, "-m", "scripts.bench.people", "1"], inside))["cookies"]
        beside = inside | {"DJANGO_SETTINGS_MODULE": "scripts.bench.settings"}  # with the empty view
        with served(beside, port=port) as site, started([PYTHON, "manage.py", "run_worker"], inside):
            yield World(site, sandbox, url, cookie)
