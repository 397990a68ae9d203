"""Where nginx is: `python -m scripts.nginx` prints it, or ends with 1."""

import os
import shutil
import sys
from pathlib import Path


def program() -> Path | None:
    """Debian keeps it where an ordinary account's PATH does not lead."""
    found = shutil.which(
        "nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )
    return Path(found) if found else None


if __name__ == "__main__":
    where = program()
    print(where or "no nginx found")
    sys.exit(where is None)
