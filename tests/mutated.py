"""What the tests share while `make mutants` runs them once for each mutant: the database, as migrated, and the sandbox.

Loaded by pytest's `-p` in [tool.mutmut]. mutmut runs pytest in one process, and forks that for each mutant: a database
in memory is a copy in every fork. The sandbox is one process for all of them; every test begins with a reset of it.
Nor does anybody wait between two tries of a read.
"""

import os
from typing import Any

from django.test import utils
from urllib3.util import Retry

from tests import sandbox

CONTROL = os.environ["SANDBOX_CONTROL"]

set_up = utils.setup_databases
done: list[str] = []


def setup_databases_once(*args: Any, **kwargs: Any) -> list[Any]:
    """Nothing is returned that would be torn down: what is in memory ends with the process."""
    if not done:
        done.append("migrated")
        set_up(*args, **kwargs)
    return []


class RunningSandbox(sandbox.Sandbox):
    def __init__(self, *_arguments: str, **_options: Any) -> None:
        super().__init__(control=CONTROL)


Retry.sleep = lambda *_arguments: None  # type: ignore[method-assign]
utils.setup_databases = setup_databases_once
sandbox.Sandbox = RunningSandbox  # type: ignore[misc]
