"""Names and sizes of the tree: the glossary's words, one home for a class, small modules."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NEVER: dict[str, str] = {
    **dict.fromkeys(("answer", "answers", "answered", "told", "tell", "tells"), "outcome, notify"),
    **dict.fromkeys(("burial", "bury", "buried"), "dead letter"),
    **dict.fromkeys(("remembered", "remember", "recall"), "ledger entry"),
    **dict.fromkeys(("extent", "extents"), "offset range"),
    **dict.fromkeys(("fill", "filled", "filling"), "restore"),
    **dict.fromkeys(("roll", "rolled"), "catch up"),
    **dict.fromkeys(("leftover", "stuck"), "hanging transaction"),
    **dict.fromkeys(("follower", "followers", "beside"), "standby replica"),
    **dict.fromkeys(("hear", "hears", "heard"), "notify"),
    **dict.fromkeys(("hand", "hands"), "pending"),
    "stored": "checkpoint",
    "still": "consistent cut",
    "job": "flow, task",
    "image": "snapshot",
}
"""The words of docs/glossary.md that no identifier has, and what to say instead."""
AS_A_WHOLE = {"number": "partition, row_number", "numbers": "partitions, row_numbers"}
"""Words that may be a part of a name but not all of it; a test may count by `number`."""
NOT_OF_PARTITIONS = ("processor/partition", "processor/worker", "processor/recovery")
"""Where `owner` would be the partition processor: the owner is the flow's."""
PUBLISHED = {
    ("processor/views/http/responses.py", "FlowAnswer"),
    ("tests/unit/test_compose.py", "container_image"),
}
"""A schema of the HTTP API, a word of Docker's."""

TWO_HOMES = {"Execution", "Flow", "ManagedStep", "ObservedStep"}
"""The published models, and those that the engine works with."""
NOUNS = {"encoding", "logging", "tracing"}
"""Module names that end like a participle and are none."""
QUESTIONS = {"How", "What", "When", "Where", "Whether", "Which", "Who", "Why"}
"""No module's docstring begins with one."""
LINES_MAX = 400
MODULES_MAX = 12
README_LINES_MAX = 150


def modules(root: Path, *tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (root / top).rglob("*.py"))


def words_of(name: str) -> list[str]:
    """The words of an identifier: by underscores, and by capital letters."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [part.lower() for part in parts]


def bound(path: Path) -> Iterator[tuple[str, int]]:
    """The names that a module gives, with their lines. Names of tests are sentences: left out."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if not name.startswith("test_"):
                    yield name, node.lineno
            case ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def wrong_word(place: str, name: str) -> str | None:
    """The word in `name` that the glossary does not use; None if there is none."""
    words = words_of(name)
    for nth, word in enumerate(words):
        if word in ("letter", "letters") and words[nth - 1 : nth] != ["dead"]:
            return word
        if word in NEVER:
            return word
        if word in ("owner", "owners") and place.startswith(NOT_OF_PARTITIONS):
            return word
    if len(words) == 1 and words[0] in AS_A_WHOLE and place.startswith("processor/"):
        return words[0]
    return None


def wrong_names(root: Path) -> list[str]:
    found = []
    for path in modules(root, "processor", "tests"):
        place = str(path.relative_to(root))
        for name, line in bound(path):
            if (word := wrong_word(place, name)) and (place, name) not in PUBLISHED:
                instead = NEVER.get(word) or AS_A_WHOLE.get(word) or "see docs/glossary.md"
                found.append(f"{place}:{line}: {name} ({instead})")
    return found


def classes_of_two_homes(root: Path) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in modules(root, "processor"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(root)))
    return {name: places for name, places in homes.items() if len(places) > 1}


def participles(root: Path) -> list[str]:
    names = {path.stem for path in modules(root, "processor")}
    return sorted(name for name in names if re.search(r"(ing|ed)$", name) and name not in NOUNS)


def long_modules(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in modules(root, "processor")
        if len(path.read_text("utf-8").splitlines()) > LINES_MAX
    }


def full_folders(root: Path) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for path in modules(root, "processor"):
        if path.name != "__init__.py":
            counts[str(path.parent.relative_to(root))] += 1
    return {folder: count for folder, count in counts.items() if count > MODULES_MAX}


def riddles(root: Path) -> list[str]:
    """Modules without a docstring, or whose first sentence asks instead of saying what they are."""
    found = []
    for path in modules(root, "processor"):
        said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if not said or said.split(maxsplit=1)[0] in QUESTIONS:
            found.append(str(path.relative_to(root)))
    return found


def readme_lines(root: Path) -> int:
    return len((root / "README.md").read_text("utf-8").splitlines())


def test_identifiers_use_the_words_of_the_glossary() -> None:
    assert wrong_names(ROOT) == []


def test_each_published_exception_is_there() -> None:
    for place, name in PUBLISHED:
        assert name in {found for found, _ in bound(ROOT / place)}, (place, name)


def test_no_public_class_has_two_homes() -> None:
    assert classes_of_two_homes(ROOT).keys() <= TWO_HOMES


def test_no_module_is_named_by_a_participle() -> None:
    assert participles(ROOT) == []


def test_each_module_begins_with_what_it_is() -> None:
    assert riddles(ROOT) == []


def test_a_module_has_at_most_400_lines() -> None:
    assert long_modules(ROOT) == set()


def test_a_folder_has_at_most_12_modules() -> None:
    assert full_folders(ROOT) == {}


def test_the_readme_has_at_most_150_lines() -> None:
    assert readme_lines(ROOT) <= README_LINES_MAX


# Planted breaches: each rule finds what it is for


def plant(root: Path, place: str, text: str = "") -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("processor/a.py", "def the_answer(): ..."),
        ("processor/a.py", "class ToldOnce: ..."),
        ("processor/a.py", "letter = 1"),
        ("processor/a.py", "def f(extent): ..."),
        ("processor/a.py", "self.in_hand = 1"),
        ("processor/a.py", "for number in range(3): ..."),
        ("processor/a.py", "import os as stored"),
        ("processor/a.py", "try: ...\nexcept OSError as heard: ..."),
        ("processor/worker/a.py", "owner = 1"),
        ("tests/a.py", "async def until_filled(): ..."),
    ],
)
def test_a_wrong_name_is_found(tmp_path: Path, place: str, text: str) -> None:
    plant(tmp_path, place, text)

    assert len(wrong_names(tmp_path)) == 1


def test_names_that_the_glossary_has_are_let_pass(tmp_path: Path) -> None:
    plant(tmp_path, "processor/a.py", "DeadLetter = dead_letters = row_number = owner = 1")
    plant(tmp_path, "tests/a.py", "def test_an_answer_is_told(): number = 1")

    assert wrong_names(tmp_path) == []


def test_a_class_with_two_homes_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "processor/a.py", "class Pack: ...\nclass _Own: ...")
    plant(tmp_path, "processor/b/c.py", "class Pack: ...\nclass _Own: ...")

    assert classes_of_two_homes(tmp_path) == {"Pack": ["processor/a.py", "processor/b/c.py"]}


def test_a_participle_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "processor/comparing.py")
    plant(tmp_path, "processor/recorded.py")
    plant(tmp_path, "processor/logging.py")

    assert participles(tmp_path) == ["comparing", "recorded"]


def test_a_module_that_does_not_say_what_it_is_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "processor/asks.py", '"""What is decided."""')
    plant(tmp_path, "processor/says.py", '"""The decision."""')
    plant(tmp_path, "processor/silent.py", "A = 1")
    assert riddles(tmp_path) == ["processor/asks.py", "processor/silent.py"]


def test_a_long_module_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "processor/short.py", "\n" * LINES_MAX)
    plant(tmp_path, "processor/long.py", "\n" * (LINES_MAX + 1))

    assert long_modules(tmp_path) == {"processor/long.py"}


def test_a_full_folder_is_found(tmp_path: Path) -> None:
    for nth in range(MODULES_MAX):
        plant(tmp_path, f"processor/enough/m{nth}.py")
        plant(tmp_path, f"processor/full/m{nth}.py")
    plant(tmp_path, "processor/enough/__init__.py")
    plant(tmp_path, "processor/full/one_more.py")

    assert full_folders(tmp_path) == {"processor/full": MODULES_MAX + 1}


def test_a_long_readme_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "README.md", "\n" * (README_LINES_MAX + 1))

    assert readme_lines(tmp_path) > README_LINES_MAX
