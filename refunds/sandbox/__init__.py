"""Smartpay's merchant API on this machine: real HTTP, real signatures, no real money.

A process of its own (`manage.py run_sandbox`, or `python -m refunds.sandbox` without Django) for
`make run`, the tests, fault simulations and benchmarks. The app never imports it, and it imports
nothing of the app: both know Smartpay only by its contract, so neither can agree with the other's
mistakes.

    ids.py        ids that look random and can be turned back into an object's number
    names.py      Japanese customers: how names are spread, how shops spell them
    world.py      the seeded trade: order number i, made when asked for
    model.py      Smartpay's state and rules; no HTTP
    api.py        its endpoints: keys, validation, idempotency, pages; no sockets
    webhooks.py   events, signed and delivered with retries
    scenarios.py  ways to misbehave
    server.py     sockets, and the control door that tests and people use
"""
