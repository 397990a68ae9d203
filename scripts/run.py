"""`make run`: the whole product on this machine, until Ctrl-C.

Looks whether the ports are free, migrates, collects static files, then runs the Procfile. When one process ends,
whatever the reason, all are ended: half a product would only seem to work.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import requests
from honcho.environ import Procfile, parse_procfile
from honcho.manager import Manager
from honcho.process import Popen, Process

from scripts import embedded
from scripts.identity_provider import PEOPLE
from scripts.parents import end_with_parent

PATIENCE = 120  # seconds until a start that has not come about is called one that failed
USES_PORT = {"web": "PORT", "sandbox": "SANDBOX_PORT", "identity": "IDENTITY_PORT"}


def main() -> int:
    if "MAKELEVEL" in os.environ:  # when make is killed, nobody is left to be told by
        end_with_parent(signal.SIGTERM)
    stand_ins, added = embedded.enter()
    procfile = parse_procfile((embedded.BASE_DIR / "Procfile").read_text())
    processes = [name for name in procfile.processes if name in {"web", "worker"} | stand_ins]
    if busy := busy_ports(processes):
        print("\n".join(busy), file=sys.stderr)
        return 1
    embedded.save(added)
    for command in (["migrate", "--no-input", "-v", "0"], ["collectstatic", "--no-input", "-v", "0"]):
        done = subprocess.run([sys.executable, "manage.py", *command], cwd=embedded.BASE_DIR, check=False)
        if done.returncode:
            print(f"run: manage.py {command[0]} failed, so nothing was started.", file=sys.stderr)
            return done.returncode
    return run(procfile, processes)


def busy_ports(processes: list[str]) -> list[str]:
    """In words, every port that somebody else holds."""
    busy = []
    for process, variable in USES_PORT.items():
        port = int(os.environ[variable])
        if process in processes:
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError as error:
                busy.append(
                    f"run: port {port} ({process}) cannot be used: {os.strerror(error.errno or 0)}. "
                    f"Is this already running? {variable}=N moves it."
                )
    return busy


def run(procfile: Procfile, processes: list[str]) -> int:
    manager = Manager()
    manager._process_ctor = Attached
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"}
    for name in processes:
        manager.add_process(name, procfile.processes[name], env=environment, cwd=embedded.BASE_DIR)

    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # the terminal was closed
    multiprocessing.Process(target=announce, args=(processes, os.getpid()), daemon=True).start()
    manager.loop()
    if manager.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return 0  # as asked
    print("run: one process ended, so all were ended; the first 'stopped' above is the one.", file=sys.stderr)
    return 1


class AttachedPopen(Popen):
    def __init__(self, cmd: str, **options: Any) -> None:
        super().__init__(cmd, preexec_fn=lambda: end_with_parent(signal.SIGTERM), **options)


class Attached(Process):
    """A process that does not survive this one, even if this one is killed without a chance to clean up."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._child_ctor = AttachedPopen

    def run(self, *args: Any, **options: Any) -> None:
        end_with_parent(signal.SIGKILL)
        super().run(*args, **options)


def announce(processes: list[str], parent: int) -> None:
    """Wait until everything answers, then say where and for whom."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    address = f"http://127.0.0.1:{os.environ['PORT']}"
    deadline = time.monotonic() + PATIENCE
    while not all(answers(process, address) for process in processes):
        if time.monotonic() > deadline:
            print(f"run: not up within {PATIENCE} s; giving up.", file=sys.stderr, flush=True)
            os.kill(parent, signal.SIGTERM)
            return
        time.sleep(0.2)
    lines = ["", f"  Ready: {address}"]
    if "identity" in processes:
        lines += ["  Sign in as one of these (there are no passwords):"]
        lines += [f"    {login:<9} {name}({role})" for login, (name, role) in PEOPLE.items()]
    print("\n".join([*lines, "  Ctrl-C ends everything.", ""]), flush=True)


def answers(process: str, address: str) -> bool:
    if process not in USES_PORT:
        return True
    try:
        if process == "web":
            return requests.get(f"{address}/healthz", timeout=5).ok
        socket.create_connection(("127.0.0.1", int(os.environ[USES_PORT[process]])), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork")  # so that the processes are children of this one
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
