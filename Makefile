# Every target sets up what it needs and is missing; see scripts/setup.

# Tests and measurements start processes by the hundred: none is to compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.state/pycache

.PHONY: help run test simulate kills check format translations screenshots mutants bench kills-sync drill

help:
	@echo "make run           everything on http://127.0.0.1:8000 (PORT=9000 moves it); Ctrl-C ends it"
	@echo "make test          all tests, on SQLite and PostgreSQL (ARGS=\"-k name\" for some of them)"
	@echo "make simulate      lives of the refund engine in virtual time (SEEDS=300 FROM=1), on all cores"
	@echo "make kills         the product killed 250 times, then held against Smartpay (KILLS_PG=200 KILLS_SQLITE=50)"
	@echo "make kills-sync    a reading of Smartpay killed 20 times at random, then compared (SYNC_KILLS=20)"
	@echo "make drill         deploy/ on this machine, each part killed in turn during 500 refunds (DRILL_REFUNDS=500)"
	@echo "make check         format, lint, types, imports, migrations, deployment, templates, translations, lock"
	@echo "make format        rewrite the sources as make check wants them"
	@echo "make translations  bring locale/ up to date with the sources"
	@echo "make screenshots   make docs/screenshots anew, by the browser tests"
	@echo "make mutants       whether the tests notice small changes of the modules that move money"
	@echo "make bench         pages at 10,000 and 1,000,000 orders (BENCH_ORDERS=\"10000 100000\"), refunds, events; PARTS=recall"

run:
	@scripts/setup
	@exec .venv/bin/python -m scripts.run

test:
	@scripts/setup postgresql nginx systemd prometheus pgbouncer chromium fonts
	@exec .venv/bin/python -m scripts.test $(ARGS)

SEEDS ?= 300
FROM ?= 1

simulate:
	@scripts/setup
	@exec .venv/bin/python -m scripts.simulate --seeds $(SEEDS) --from $(FROM)

kills:
	@scripts/setup postgresql
	@exec .venv/bin/python -m scripts.kills

DRILL_REFUNDS ?= 500

drill:
	@scripts/setup postgresql nginx prometheus chromium fonts
	@CHROMIUM=$$(.venv/bin/python -m scripts.chromium) DRILL_REFUNDS=$(DRILL_REFUNDS) \
		exec .venv/bin/python -m pytest -q -s -n0 -m postgresql -o faulthandler_timeout=1800 tests/test_drill.py

SYNC_KILLS ?= 20

kills-sync:
	@scripts/setup
	@SYNC_KILLS=$(SYNC_KILLS) exec .venv/bin/python -m pytest -q -n0 tests/test_scanning.py -k whenever_its_process_was_killed

check:
	@scripts/setup gettext
	@exec .venv/bin/python -m scripts.check

format:
	@scripts/setup
	@.venv/bin/ruff check --fix --exit-zero --quiet
	@.venv/bin/ruff format

translations:
	@scripts/setup gettext
	@.venv/bin/python -m scripts.translations

screenshots:
	@scripts/setup chromium fonts
	@SCREENSHOTS=docs/screenshots .venv/bin/python -m pytest -q tests/test_journeys.py tests/test_keyboard.py

mutants:
	@scripts/setup
	@exec nice .venv/bin/python -m scripts.mutants $(ARGS)

bench:
	@scripts/setup postgresql
	@exec .venv/bin/python -m scripts.bench $(PARTS)
