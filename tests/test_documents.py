"""What docs/ promises of the tests: every test it names is there, and no fault or answer is without one."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from refunds.models import Attempt

ROOT = Path(__file__).resolve().parent.parent
SECURITY = ROOT / "docs" / "security.md"
ASVS = ROOT / "docs" / "asvs.md"
DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

FILE = re.compile(r"tests/test_\w+\.py")
TEST = re.compile(r"(?:(tests/test_\w+\.py)::)?\b(test_\w+)\b(?!\.py)")


@cache
def names_in(file: Path) -> frozenset[str]:
    """The names of a file's tests, as pytest would find them."""
    tree = ast.parse(file.read_text())
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return frozenset(name for name in functions if name.startswith("test_"))


@cache
def all_names() -> frozenset[str]:
    return frozenset().union(*(names_in(file) for file in (ROOT / "tests").glob("test_*.py")))


def missing(text: str) -> list[str]:
    """What a text names, as a file of tests or as a test, that is not there."""
    absent = [name for name in FILE.findall(text) if not (ROOT / name).is_file()]
    for file, name in TEST.findall(text):
        if file in absent:
            continue
        if name not in (names_in(ROOT / file) if file else all_names()):
            absent.append(f"{file}::{name}" if file else name)
    return absent


def rows(heading: str, document: Path = SECURITY) -> list[list[str]]:
    """The cells of the table below a heading of a document."""
    section = document.read_text().split(f"# {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    assert missing(document.read_text()) == []


def test_every_fault_is_in_the_table_once_with_what_happens_and_its_tests() -> None:
    faults = rows("Faults that cost no money")

    assert [fault[0] for fault in faults] == [f"F{number}" for number in range(1, 26)]
    for number, fault, happens, tests in faults:
        assert fault, number
        assert happens, number
        assert FILE.search(tests), number


def test_every_answer_is_in_the_table_with_its_class_and_its_tests() -> None:
    answers = rows("What an answer means")

    assert {answer[1] for answer in answers} == set(Attempt.Outcome.values) - {Attempt.Outcome.NONE_YET}
    for seen, _outcome, first, later, tests in answers:
        assert first, seen
        assert later, seen
        assert re.search(r"tests/test_\w+\.py::test_\w+", tests), seen


def test_every_requirement_of_asvs_is_there_once_with_how_it_is_met() -> None:
    requirements = rows("OWASP ASVS 5.0", ASVS)
    numbers = [number for each in requirements for number in each[0].split(", ")]

    assert all(re.fullmatch(r"\d+\.\d+\.\d+", number) for number in numbers)
    assert len(numbers) == len(set(numbers))
    for numbers_here, asks, met in requirements:
        assert asks, numbers_here
        assert met, numbers_here


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("`tests/test_documents.py`, `test_every_test_that_a_document_names_is_there`", []),
        ("`tests/test_documents.py::test_every_test_that_a_document_names_is_there`", []),
        ("`tests/test_documents.py::test_renamed`", ["tests/test_documents.py::test_renamed"]),
        ("`tests/test_faults.py::test_every_test_that_a_document_names_is_there`",
         ["tests/test_faults.py::test_every_test_that_a_document_names_is_there"]),
        ("`test_renamed`", ["test_renamed"]),
        ("`tests/test_gone.py`", ["tests/test_gone.py"]),
        ("`tests/test_gone.py::test_renamed`", ["tests/test_gone.py"]),
        ("`sk_test_1`, refund_test_2, tests/sandbox.py, the test_ of a name", []),
    ],
)  # fmt: skip
def test_what_is_not_there_is_noticed(text: str, absent: list[str]) -> None:
    assert missing(text) == absent


def test_every_alarm_is_explained_to_who_is_woken_by_it() -> None:
    raised = set()
    for source in [*ROOT.glob("refunds/**/*.py"), *ROOT.glob("dashboard/**/*.py")]:
        text = source.read_text()
        raised |= set(re.findall(r"""\balarm\(\s*"([a-z_.]+)\"""", text))
        raised |= set(re.findall(r"""log\.\w+\(\s*"([a-z_.]+)",[^()]*alarm=True""", text))
    explained = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", (ROOT / "docs" / "operations.md").read_text()))

    assert len(raised) > 20
    assert raised <= explained
