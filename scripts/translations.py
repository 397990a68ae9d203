"""The English catalogue of pages written in Japanese: `make translations` brings it up to date with the sources.

The messages are the Japanese texts themselves, so Japanese has a catalogue only of what
Django's own lacks. `make check` calls problems().
"""

import gettext
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
SOURCES = ("dashboard", "refunds", "templates", "static", "locale")
CATALOGUE = Path("locale/en/LC_MESSAGES/django.po")
DJANGOS = Path("locale/ja/LC_MESSAGES/django.po")  # what Django's own Japanese lacks


def extract(directory: Path) -> None:
    # Where a message stands would change with every line above it: --no-location.
    command = [sys.executable, "-m", "django", "makemessages", "--locale=en"]
    command += ["--no-obsolete", "--no-location", "--no-wrap", "--ignore=sandbox"]
    run(*command, cwd=directory)


def update() -> None:
    extract(BASE_DIR)
    for catalogue in (DJANGOS, CATALOGUE):
        compile_catalogue(BASE_DIR / catalogue, (BASE_DIR / catalogue).with_suffix(".mo"))


def problems() -> list[str]:
    """What `make check` has against the catalogues."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for name in SOURCES:
            shutil.copytree(BASE_DIR / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        extract(copy)
        if entries(BASE_DIR / CATALOGUE) != entries(copy / CATALOGUE):
            found.append(f"{CATALOGUE} is not what the sources say: make translations")
        for state, flag in (("not translated", "--untranslated"), ("marked fuzzy", "--only-fuzzy")):
            left = run("msgattrib", flag, "--no-obsolete", "--no-wrap", str(BASE_DIR / CATALOGUE))
            header = re.match(r'(?s).*?\nmsgid ""\nmsgstr .*?(\n\n|$)', left)  # comes along with any entry
            entries_left = left[header.end() :] if header else left
            found += [
                f"{CATALOGUE}: {state}: {text}" for text in re.findall(r"^msgid (.+)", entries_left, re.M)
            ]
        fresh = copy / "fresh.mo"
        for catalogue in (DJANGOS, CATALOGUE):
            compile_catalogue(BASE_DIR / catalogue, fresh)
            compiled = catalogue.with_suffix(".mo")
            if messages(fresh) != messages(BASE_DIR / compiled):
                found.append(f"{compiled} is not made from {catalogue.name}: make translations")
    return found


def entries(catalogue: Path) -> str:
    """The catalogue without what changes by itself: order, and the header's dates."""
    text = run("msgcat", "--no-wrap", "--no-location", "--sort-output", str(catalogue))
    return "\n".join(line for line in text.splitlines() if not line.startswith('"POT-Creation-Date'))


def messages(compiled: Path) -> dict[str, str]:
    if not compiled.exists():
        return {}
    with compiled.open("rb") as file:
        catalogue: dict[str, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    return {key: value for key, value in catalogue.items() if key}


def compile_catalogue(source: Path, target: Path) -> None:
    run("msgfmt", "--check", "-o", str(target), str(source))


def run(*command: str, cwd: Path = BASE_DIR) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    update()
