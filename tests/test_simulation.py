"""Lives of the refund engine: nothing is made twice, lost, overdrawn or left open; and each rule is missed.

Each runs in a process of its own, since a life owns the clock, the network and the database.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.simulation.mutants import MUTANTS

pytestmark = pytest.mark.sqlite

CHUNKS, CHUNK = 12, 25  # lives of each run, spread over the test processes


def live(first: int, seeds: int, *arguments: str, hash_seed: str = "0") -> list[dict[str, Any]]:
    """What is told of so many lives."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", str(first), str(seeds), *arguments],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_life_goes_wrong(chunk: int) -> None:
    lives = live(1 + chunk * CHUNK, CHUNK)

    assert len(lives) == CHUNK
    assert {life["seed"]: life["violations"] for life in lives if life["violations"]} == {}
    assert {"succeeded", "cancelled"} <= {state for life in lives for state in life["states"]}


def test_a_seed_is_the_same_life_each_time() -> None:
    first, second = live(1, 6), live(1, 6, hash_seed="1")
    alone = live(5, 1)

    assert [life["digest"] for life in first] == [life["digest"] for life in second]
    assert alone[0]["digest"] == first[4]["digest"]


@pytest.mark.parametrize("name", MUTANTS)
def test_life_without_a_rule_goes_wrong(name: str) -> None:
    [life] = live(MUTANTS[name].seed, 1, "--mutant", name)

    assert {kind for kind, _text in life["violations"]} & {"twice", "lost", "over", "stuck"}


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.climate])
def test_same_life_with_the_rule_goes_well(name: str) -> None:
    [life] = live(MUTANTS[name].seed, 1, "--mutant", name, "--intact")

    assert life["violations"] == []
