"""`make check`: everything about the sources that needs no running product. All steps run; one line each.

python -m scripts.check          all
python -m scripts.check types    some, by name
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# As a company would run it: HTTPS, its own provider; but nothing here is connected to, so no database server.
PRODUCTION = {
    "SECRET_KEY": "long-enough-and-of-many-different-letters-0123456789-ABCDEFGHIJ",
    "DEBUG": "False",
    "HTTPS": "True",
    "ALLOWED_HOSTS": "refunds.example.jp",
    "TRUSTED_PROXIES": "10.0.0.5",
    "DATABASE_URL": "sqlite:///:memory:",
    "SMARTPAY_API_URL": "https://api.smartpay.co/v1",
    "SMARTPAY_SECRET_KEY": "sk_test_checks",
    "SMARTPAY_WEBHOOK_SECRETS": "",
    "OIDC_ISSUER": "https://login.example.jp",
    "OIDC_CLIENT_ID": "refund-dashboard",
    "OIDC_CLIENT_SECRET": "secret",
    "STATE_DIR": str(BASE_DIR / ".state" / "check"),
    "DJANGO_SETTINGS_MODULE": "dashboard.settings",
}


def tool(*command: str) -> Callable[[], str]:
    """A step that is a program: it passes when it ends with 0. What it printed is shown when it does not."""

    def step() -> str:
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            cwd=BASE_DIR,
            env=os.environ | PRODUCTION,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout.strip() or f"ended with {done.returncode}" if done.returncode else ""

    return step


def templates_compile() -> str:
    """Every template, also one that no test draws."""
    os.environ.update(PRODUCTION)
    import django
    from django.template import TemplateSyntaxError, engines

    django.setup()
    found = []
    for name, engine in {"templates": "django", "refunds/jinja2": "jinja2"}.items():
        root = BASE_DIR / name
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            try:
                engines[engine].get_template(str(path.relative_to(root)))
            except (TemplateSyntaxError, UnicodeDecodeError) as error:
                found.append(f"{path.relative_to(BASE_DIR)}: {error}")
    return "\n".join(found)


def translations() -> str:
    from scripts.translations import problems

    return "\n".join(problems())


def no_machine_paths() -> str:
    """What is committed must not know where it was written."""
    roots = [str(path) for path in (BASE_DIR, Path.home(), os.environ.get("PYENV_ROOT", "/"))]
    # A root of one name ("/app") may also be an address; below somebody's home nothing is.
    names = [re.escape(root) for root in roots if root.count("/") > 1 or root == str(Path.home()) != "/"]
    pattern = re.compile(rf"(?<![\w./-])({'|'.join(names) or '(?!)'})/")
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # no text
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(BASE_DIR)}:{line}: {match[1]}")
    return "\n".join(found)


def files() -> list[Path]:
    """What git has or would add; everything, where there is no git."""
    command = [
        "git",
        "-c",
        f"safe.directory={BASE_DIR}",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        listed = subprocess.run(
            command, cwd=BASE_DIR, capture_output=True, text=True, check=True
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        hidden = re.compile(r"(^|/)(\.(?!ci/)|node_modules/|__pycache__/)")
        everything = (path for path in BASE_DIR.rglob("*") if path.is_file())
        return [path for path in everything if not hidden.search(str(path.relative_to(BASE_DIR)))]
    return [BASE_DIR / name for name in listed if name and (BASE_DIR / name).is_file()]


STEPS: dict[str, Callable[[], str]] = {
    "format": tool("ruff", "format", "--check", "--output-format=concise", "."),
    "lint": tool("ruff", "check", "--output-format=concise", "."),
    "types": tool("mypy"),
    "imports": tool("lint-imports", "--no-cache"),
    "migrations": tool("python", "manage.py", "makemigrations", "--check", "--dry-run"),
    "deployment": tool("python", "manage.py", "check", "--deploy", "--fail-level", "WARNING"),
    "templates": tool("djlint", "templates", "--lint", "--quiet"),
    "templates compile": templates_compile,
    "translations": translations,
    "lock": tool("uv", "lock", "--check", "--offline", "--no-python-downloads", "--python", sys.executable),
    "paths": no_machine_paths,
}


def main() -> int:
    chosen = sys.argv[1:] or list(STEPS)
    failed = []
    for name in chosen:
        began = time.monotonic()
        try:
            problem = STEPS[name]()
        except Exception as error:  # one broken step must not hide the others
            problem = f"{type(error).__name__}: {error}"
        print(f"{'FAILED' if problem else 'ok':<7} {name} ({time.monotonic() - began:.1f} s)", flush=True)
        if problem:
            failed.append(name)
            print("\n".join(f"        {line}" for line in problem.splitlines()), flush=True)
    print(f"make check: {', '.join(failed)} FAILED" if failed else f"make check: all {len(chosen)} passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
