"""Live some lives in this process, one line of JSON for each: what scripts/simulate.py and the tests read.

python -m tests.simulation FROM SEEDS [STEP] [--journal] [--mutant NAME [--intact] [--until-noticed]]
"""

import argparse
import json
import os
import sys

import django

import tests.environment  # noqa: F401  (the settings)
from tests.simulation import mutants


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("seeds", type=int)
    parser.add_argument("step", type=int, nargs="?", default=1)
    parser.add_argument("--mutant", help="without one of the rules in mutants.py")
    parser.add_argument(
        "--intact", action="store_true", help="with the rule, in the climate of the mutant's lives"
    )
    parser.add_argument("--until-noticed", action="store_true", help="end with the first violation")
    parser.add_argument("--journal", action="store_true", help="tell the whole life")
    chosen = parser.parse_args()

    os.environ["DATABASE_URL"] = "sqlite://:memory:"
    os.environ["DJANGO_SETTINGS_MODULE"] = "dashboard.settings"
    from django.conf import settings

    settings.DATABASES["default"]["ENGINE"] = "tests.simulation.database"
    mutant = mutants.install(chosen.mutant, intact=chosen.intact) if chosen.mutant else None
    django.setup()
    from tests.simulation.life import Stage

    stage = Stage(mutant)
    for seed in range(chosen.first, chosen.first + chosen.seeds, chosen.step):
        life = stage.live(seed)
        tail = life.journal if chosen.journal else life.journal[-60:] if life.violations else []
        told = {
            "seed": seed,
            "violations": [[violation.kind, violation.text] for violation in life.violations],
            "states": [row.state for row in life.rows.values()],
            "counts": [[*what, count] for what, count in sorted(life.counts.items())],
            "settled_after": [round(seconds, 1) for seconds in life.settled_after],
            "digest": life.digest(),
            "journal": tail,
        }
        print(json.dumps(told), flush=True)
        if life.violations and chosen.until_noticed:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
