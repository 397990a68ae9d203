"""`make mutants`: change the modules that move money, a little and one place at a time, and see a test fail each time.

mutmut makes the mutants and runs, for each, the tests that reach the changed function, the quickest first, until one
fails. It works on a copy in .state/mutants, never on the sources; what it may change and which tests judge it is in
pyproject.toml. SQLite in memory, one sandbox, one mutant at a time.

Arguments are names of mutants, with wildcards: `make mutants ARGS="refunds.services.states.*"`. Only these are tried,
in the copy that is there, and the score is that of all that were tried there. They are numbered, function by function,
so that `make mutants ARGS="*3 *7"` is a fifth of them, and the same fifth each time.
"""

import ast
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

from tests.sandbox import Sandbox

BASE_DIR = Path(__file__).resolve().parent.parent
WORKSPACE = BASE_DIR / ".state" / "mutants"
MUTMUT = Path(sys.executable).parent / "mutmut"
MUTATED = "refunds/services"
WANTED = 90  # per cent
LENT = ["dashboard", "locale", "scripts", "static", "templates", "tests", "manage.py", "pyproject.toml"]


def main() -> int:
    WORKSPACE.parent.mkdir(parents=True, exist_ok=True)
    with WORKSPACE.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("make mutants: it runs already")
            return 1
        return run(sys.argv[1:])


def run(chosen: list[str]) -> int:
    if not chosen:
        shutil.rmtree(WORKSPACE, ignore_errors=True)
    prepare()
    with Sandbox(orders=300) as sandbox:
        done = mutmut("run", "--max-children", "1", *chosen, SANDBOX_CONTROL=sandbox.control)
    if done:
        print("make mutants: mutmut could not run")
        return 1
    return judge()


def prepare() -> None:
    """A copy of the project in which every function may be changed; what mutmut leaves alone is only lent."""
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    for name in LENT:
        if not (WORKSPACE / name).is_symlink():
            (WORKSPACE / name).symlink_to(BASE_DIR / name)
    for source in sorted((BASE_DIR / "refunds").rglob("*")):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        copy = WORKSPACE / source.relative_to(BASE_DIR)
        content = source.read_bytes()
        if source.parent == BASE_DIR / MUTATED:
            content = undecorated(content.decode()).encode()
        if not copy.exists() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)


def undecorated(source: str) -> str:
    """The same module, its functions decorated by a call below each: mutmut passes over those with decorators."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.FunctionDef) or not node.decorator_list:
            continue
        value = node.name
        for decorator in reversed(node.decorator_list):
            value = f"{ast.unparse(decorator)}({value})"
        lines.insert(cast(int, node.end_lineno), f"{node.name} = {value}")
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def mutmut(*arguments: str, **environment: str) -> int:
    return subprocess.run(
        [MUTMUT, *arguments],
        cwd=WORKSPACE,
        env=os.environ | {"DATABASE_URL": "sqlite:///tests.sqlite3"} | environment,
        check=False,
    ).returncode


def judge() -> int:
    """Name what no test noticed, and tell the score. A test that never ends has noticed, too."""
    results = subprocess.run([MUTMUT, "results"], cwd=WORKSPACE, check=True, capture_output=True, text=True)
    for line in results.stdout.splitlines():
        if not line.endswith("not checked"):
            print(line)
    if mutmut("export-cicd-stats"):
        return 1
    told = json.loads((WORKSPACE / "mutants" / "mutmut-cicd-stats.json").read_text())
    killed = told["killed"] + told["timeout"] + told["segfault"]
    total = killed + told["survived"] + told["no_tests"] + told["suspicious"]
    if not total:
        print("make mutants: no mutant was tried")
        return 1
    score = 100 * killed / total
    print(f"mutation score: {score:.1f} % ({killed}/{total})")
    return int(score < WANTED)


if __name__ == "__main__":
    sys.exit(main())
