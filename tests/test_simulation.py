"""Whole lives of the real engine in virtual time, with everything that can go wrong in them: see tests/simulation."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.sandbox import ROOT

pytestmark = pytest.mark.sqlite  # in memory, whatever database the other tests have

CHUNK = 25


def lives(first: int, seeds: int, **environment: str) -> list[dict[str, Any]]:
    """Live these lives in a process of its own; what is told of each."""
    command = [sys.executable, "-m", "tests.simulation", str(first), str(seeds)]
    told = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout
    return [json.loads(line) for line in told.splitlines()]


@pytest.mark.parametrize("first", range(1, 301, CHUNK))
def test_no_life_refunds_twice_loses_overdraws_or_gets_stuck(first: int) -> None:
    told = lives(first, CHUNK)

    wrong = {
        f"make simulate SEEDS=1 FROM={life['seed']}": life["violations"]
        for life in told
        if life["violations"]
    }
    assert (len(told), wrong) == (CHUNK, {})


def test_seed_is_the_same_life_in_every_process() -> None:
    one, other = (lives(5, 2, PYTHONHASHSEED=seed) for seed in ("0", "1"))

    assert [life["digest"] for life in one] == [life["digest"] for life in other]
    assert one[0]["digest"] != one[1]["digest"]
