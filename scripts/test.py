"""`make test`: the suite on SQLite, then on a PostgreSQL of its own, the coverage of both together, and a look at
what was written to logs and metrics meanwhile.

Chromium and Smartpay's own SDK (markers `browser`, `sdk`) run with SQLite only: the pages and the wire are the same.
Arguments go to pytest (`make test ARGS="-k name"`); coverage is then not judged.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts import chromium, postgres

BASE_DIR = Path(__file__).resolve().parent.parent
COVERAGE_DIR = BASE_DIR / ".state" / "coverage"
# A way through these that no test takes is a way that money or a name may take.
FULLY_COVERED = [
    "refunds/services/*",
    "refunds/smartpay.py",
    "refunds/mirror.py",
    "refunds/customer_fields.py",
    "refunds/customer_import.py",
    "refunds/order_keys.py",
    "refunds/retention.py",
    "refunds/scanning.py",
    "refunds/search/*",
]
RUNS = {
    "sqlite": "not postgresql",
    "postgresql": "not sqlite and not browser and not sdk",
}
LOGS_DIR = BASE_DIR / ".state" / "logs-of-the-tests"
# Of a person or of a key, by its form: all our own words are ASCII, and of ids only sessions have such letters.
REVEALING = {
    "not ASCII, such as a name": r"[^\x00-\x7f]|\\u[0-9a-f]{4}",
    "a mail": r"[\w.+-]+(?:@|%40)[\w-]+\.\w+",
    "a key": r"sk_(?:test|live)_\w+|whsec_\w+|(?i:bearer|basic) [\w+/=-]{6,}",
    "a signed token": r"\beyJ[\w-]+\.[\w-]+\.",
    "a secret of the tests": r"a-secret-of-the-tests|not-a-secret|of-many-different-letters|the-token-of-prometheus",
    "a session or a form's token": r"\b(?![0-9a-f]+\b)(?=\w*\d)(?:[A-Za-z0-9]{32}|[A-Za-z0-9]{64})\b",
}
INTERRUPTED, NO_TESTS = 2, 5  # pytest's words for it


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches pytest too, which ends in its own time
    chosen = sys.argv[1:]
    shutil.rmtree(LOGS_DIR, ignore_errors=True)
    LOGS_DIR.mkdir(parents=True)
    if not chosen:
        shutil.rmtree(COVERAGE_DIR, ignore_errors=True)
        COVERAGE_DIR.mkdir(parents=True)

    with tempfile.TemporaryDirectory(prefix="refund-dashboard-tests-") as directory:
        ended = {"sqlite": pytest("sqlite", f"sqlite:///{directory}/tests.sqlite3", chosen)}
    if given := os.environ.get(
        "TEST_DATABASE_URL"
    ):  # a PostgreSQL of the developer's own, where none is installed
        ended["postgresql"] = pytest("postgresql", given, chosen)
    else:
        with postgres.server() as url:
            ended["postgresql"] = pytest("postgresql", url, chosen)

    if all(code == NO_TESTS for code in ended.values()):
        return NO_TESTS
    failed = [database for database, code in ended.items() if code not in {0, NO_TESTS}]
    if not chosen and not coverage():
        failed.append("coverage")
    if not kept_to_themselves():
        failed.append("logs")
    for what in failed:
        print(f"make test: {what} FAILED")
    return bool(failed)


def pytest(database: str, url: str, chosen: list[str]) -> int:
    print(f"\n=== tests on {database} ===", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", RUNS[database], *chosen]
    environment = os.environ | {"DATABASE_URL": url, "CHROMIUM": chromium.find() or ""}
    environment |= {"PYTHONPATH": str(BASE_DIR / "tests" / "written"), "KEPT_LOGS": str(LOGS_DIR)}
    if not chosen:
        command += ["--numprocesses=2", "--cov", "--cov-report="]
        environment["COVERAGE_FILE"] = str(COVERAGE_DIR / database)
    code = subprocess.run(command, cwd=BASE_DIR, env=environment, check=False).returncode
    if code == INTERRUPTED:
        sys.exit(130)
    return code


def kept_to_themselves() -> bool:
    """Whether no process of the tests wrote a name, a mail, a key or a token to its log or its metrics.

    Scanned is all that went through the site's own logging, in the process of the tests and in each that they started,
    and what each had counted when it ended by itself. Who was killed had no time to tell its metrics.
    """
    print("\n=== what was written to logs and metrics ===", flush=True)
    lines, found = 0, []
    for file in sorted(LOGS_DIR.iterdir()):
        for line in file.read_text(encoding="utf-8").splitlines():
            lines += 1
            found += [(what, line) for what, form in REVEALING.items() if re.search(form, line)]
    for what, line in found[:20]:
        print(f"{what}: {line[:300]}")
    print(f"processes={len(list(LOGS_DIR.iterdir()))} lines={lines} revealing={len(found)}")
    return lines > 0 and not found


def coverage() -> bool:
    """Show what neither run reached; judge the modules that move money or names."""
    print("\n=== branches reached by either run ===", flush=True)
    tool = [sys.executable, "-m", "coverage"]
    environment = os.environ | {"COVERAGE_FILE": str(COVERAGE_DIR / "all")}

    def report(*arguments: str) -> bool:
        return not subprocess.run([*tool, *arguments], cwd=BASE_DIR, env=environment, check=False).returncode

    measured = report("combine", "--quiet", *(str(path) for path in sorted(COVERAGE_DIR.iterdir())))
    if not measured or not report("report"):
        return False
    missing = [path for path in FULLY_COVERED if not any(BASE_DIR.glob(path))]
    if missing:
        print(f"these must be there and be covered in full: {', '.join(missing)}")
        return False
    print("\n=== 100 % here, or the tests have failed ===", flush=True)
    return report("report", f"--include={','.join(FULLY_COVERED)}", "--fail-under=100", "--no-skip-covered")


if __name__ == "__main__":
    sys.exit(main())
