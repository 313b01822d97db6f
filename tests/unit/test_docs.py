"""The documents keep their word: links lead somewhere, commands and tests exist, and both READMEs say the same."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

ENGLISH, UKRAINIAN = ROOT / "README.md", ROOT / "README.uk.md"
LOG, DURABILITY = ROOT / "docs" / "log.md", ROOT / "docs" / "durability.md"
DOCUMENTS = [
    *sorted(ROOT.glob("README*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "volumes" / "README.md",
]
HISTORY = {LOG, ROOT / "CHANGELOG.md"}  # what these name may be gone
PRESENT = [path for path in DOCUMENTS if path not in HISTORY]
CODE_SPAN = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")


def name(path: Path) -> str:
    """As a test's parameter shows it."""
    return str(path.relative_to(ROOT))


def split(text: str) -> tuple[list[str], list[list[str]]]:
    """The lines of the text, and the code blocks, fenced or indented, each as its lines."""
    prose: list[str] = []
    blocks: list[list[str]] = []
    fence = ""
    before = ""
    for line in text.splitlines():
        if fence or line.startswith("```"):
            if not fence:
                fence = "```"
                blocks.append([])
            elif line.startswith(fence):
                fence = ""
            else:
                blocks[-1].append(line)
            prose.append("")
        elif line.startswith("    ") and (not before or before.startswith("    ")):
            if not before:
                blocks.append([])
            blocks[-1].append(line.strip())
            prose.append("")
        else:
            prose.append(line)
        before = line.rstrip()
    return prose, blocks


def headings(path: Path) -> list[tuple[int, str]]:
    """Level and text."""
    lines, _ = split(path.read_text())
    return [(len(found[1]), found[2]) for line in lines if (found := re.match(r"(#{1,6}) +(.*?) *$", line))]


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings: lower case, no punctuation, a hyphen for each space, and a number if repeated."""
    seen: Counter[str] = Counter()
    found = set()
    for _, text in headings(path):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def code_spans(text: str) -> list[str]:
    """Inline code, also that in the comments of code blocks."""
    return [" ".join(span.split()) for span in CODE_SPAN.findall(text)]


def commands(text: str) -> list[list[str]]:
    """The code blocks without their comments. A line that is only a comment stays, as an empty one."""
    return [[re.sub(r"(^|\s+)# .*", "", line) for line in block] for block in split(text)[1]]


def targets(text: str) -> tuple[Counter[str], Counter[str]]:
    """Where links lead, and which images are shown."""
    plain = CODE_SPAN.sub("", "\n".join(split(text)[0]))
    images = re.findall(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)", plain) + re.findall(r'\ssrc="([^"]+)"', plain)
    every = re.findall(r'\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]: +(\S+)|\s(?:src|href)="([^"]+)"', plain, flags=re.MULTILINE)
    return Counter("".join(groups) for groups in every) - Counter(images), Counter(images)


def tables(text: str) -> list[list[int]]:
    """Each table as the number of cells of its rows."""
    found: list[list[int]] = []
    before = ""
    for line in split(text)[0]:
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(line.rstrip().count("|") - 1)
        before = line
    return found


def difference(english: Counter[str], ukrainian: Counter[str]) -> str:
    """For a message."""
    return (
        f"only in README.md: {sorted((english - ukrainian).elements())}; "
        f"only in README.uk.md: {sorted((ukrainian - english).elements())}"
    )


def test_both_readmes_have_the_same_headings() -> None:
    english, ukrainian = headings(ENGLISH), headings(UKRAINIAN)
    for number, (one, other) in enumerate(zip(english, ukrainian, strict=False), 1):
        assert one[0] == other[0], f"heading {number}: {one[1]!r} has level {one[0]}, {other[1]!r} has level {other[0]}"
    shorter = min(len(english), len(ukrainian))
    assert len(english) == len(ukrainian), f"without counterpart: {english[shorter:] or ukrainian[shorter:]}"


def test_both_readmes_have_the_same_commands_in_code_blocks() -> None:
    english, ukrainian = commands(ENGLISH.read_text()), commands(UKRAINIAN.read_text())
    for number, (one, other) in enumerate(zip(english, ukrainian, strict=False), 1):
        assert one == other, f"code block {number} is {one} in README.md and {other} in README.uk.md"
    assert len(english) == len(ukrainian), f"README.md has {len(english)} code blocks, README.uk.md {len(ukrainian)}"


def test_both_readmes_have_the_same_inline_code() -> None:
    """Commands, and also names of files, keys and messages, which are not translated either."""
    english, ukrainian = Counter(code_spans(ENGLISH.read_text())), Counter(code_spans(UKRAINIAN.read_text()))
    assert english == ukrainian, f"inline code {difference(english, ukrainian)}"


def test_both_readmes_have_the_same_links_and_images() -> None:
    (english, english_images), (ukrainian, ukrainian_images) = (
        targets(path.read_text()) for path in (ENGLISH, UKRAINIAN)
    )
    assert english.pop(UKRAINIAN.name, 0) == 1, "README.md does not have one link to README.uk.md"
    assert ukrainian.pop(ENGLISH.name, 0) == 1, "README.uk.md does not have one link to README.md"
    assert english == ukrainian, f"links {difference(english, ukrainian)}"
    assert english_images == ukrainian_images, f"images {difference(english_images, ukrainian_images)}"


def test_both_readmes_have_the_same_tables() -> None:
    english, ukrainian = tables(ENGLISH.read_text()), tables(UKRAINIAN.read_text())
    for number, (one, other) in enumerate(zip(english, ukrainian, strict=False), 1):
        assert len(one) == len(other), f"table {number}: {len(one)} rows in README.md, {len(other)} in README.uk.md"
        assert one == other, f"table {number}: cells by row are {one} in README.md and {other} in README.uk.md"
    assert len(english) == len(ukrainian), f"README.md has {len(english)} tables, README.uk.md {len(ukrainian)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    links, images = targets(path.read_text())
    for target in links + images:
        if re.match(r"[a-z][a-z+.-]*:", target):  # another site
            continue
        file, _, anchor = unquote(target).partition("#")
        to = path.parent / file if file else path
        assert to.exists(), f"{name(path)} links to {target}, which does not exist"
        if anchor and to.suffix == ".md":
            assert anchor in anchors(to), f"{name(path)} links to {target}, but {to.name} has no such heading"


@pytest.mark.parametrize("path", PRESENT, ids=name)
def test_every_make_target_exists(path: Path) -> None:
    text = path.read_text()
    known = set(re.findall(r"^([A-Za-z.][\w.-]*):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    lines = [*code_spans(text), *(line for block in commands(text) for line in block)]
    named = {target for line in lines for target in re.findall(r"(?<!\S)make (?:[A-Z]+=\S* )*([a-z.][\w.-]*)", line)}
    assert named <= known, f"{name(path)} names targets that the Makefile does not have: {sorted(named - known)}"


def test_the_makefile_is_read() -> None:
    """So that the test above cannot pass for want of names: each document that shows commands names some."""
    for path in (ENGLISH, UKRAINIAN):
        assert ["make demo", "make test"] in commands(path.read_text())


def test_the_index_of_the_log_is_complete() -> None:
    top = LOG.read_text().partition("\n## ")[0]
    index = [target for line in top.splitlines() if line.startswith("|") for target in re.findall(r"\]\(#(.*?)\)", line)]
    entries = {
        re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"): text
        for level, text in headings(LOG)
        if level == 2 and re.match(r"\d{4}-\d\d-\d\d ", text)
    }
    assert entries, "docs/log.md has no entries with a date"
    missing = [text for anchor, text in entries.items() if anchor not in index]
    assert not missing, f"entries that the index of docs/log.md does not have: {missing}"
    lost = [anchor for anchor in index if anchor not in anchors(LOG)]
    assert not lost, f"links of the index of docs/log.md without a heading: {lost}"


@pytest.mark.parametrize("path", PRESENT, ids=name)
def test_every_test_that_is_named_exists(path: Path) -> None:
    """`test_x.py`, with or without its folder, `test_x.py::test_name`; `::test_name` and `test_name` of the last file."""
    files: list[Path] = []
    for span in code_spans("\n".join(split(path.read_text())[0])):
        found = re.fullmatch(r"(tests/[\w/.-]*|test_\w+\.py)?(?:(?:::)?(test_\w+)(?:\[.*\])?)?", span)
        if found is None or not span:
            continue
        file, test = found.groups()
        if file is not None:
            files = [ROOT / file] if "/" in file else sorted((ROOT / "tests").rglob(file))
            assert any(map(Path.exists, files)), f"{name(path)} names {file}, which does not exist"
        if test is not None:
            assert files, f"{name(path)} names {span} before any file"
            known = {found for file in files for found in re.findall(r"^ *def (\w+)\(", file.read_text(), re.MULTILINE)}
            where = " or ".join(map(name, files))
            assert test in known, f"{name(path)} names {test}, which is not in {where}"
