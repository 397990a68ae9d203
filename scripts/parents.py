"""What is started here must not outlive whoever started it, even when that one is killed outright."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(by: signal.Signals) -> None:
    """Have the kernel send this signal when the parent dies. Linux only; elsewhere a kill may leave orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
