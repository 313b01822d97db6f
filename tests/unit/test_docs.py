"""The documents are true: links lead somewhere, commands and tests exist, and both READMEs say the same."""

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
CODE_BLOCK = re.compile(
    r"^```[^\n]*\n(?P<fenced>(?s:.*?))^```$|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n)+)", flags=re.MULTILINE
)
CODE_SPAN = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")

SAMPLE = """# Title

Install: `sudo make
install`, not `[no](link.md)`. Make of it what you like. `make x`

    make up && make logs    # or `make down`
    # make nothing
    echo a#b

## At most 60 s, `under` 1 % of [it](x.md)

[A](a.md), [![b](i.png)](b.md#c), <a href="d.md"><img width="1" src="j.png"></a>

| a | b |
| --- | --- |
| 1 | 2 |

```sh
FOO=1 make status
```

## Title

| a |
| --- |

[e]: e.md
"""


def name(path: Path) -> str:
    """As a test's parameter shows it."""
    return str(path.relative_to(ROOT))


def split(text: str) -> tuple[str, list[list[str]]]:
    """The text without its code blocks, and the blocks, fenced or indented, each as its lines."""
    blocks = []

    def block(found: re.Match[str]) -> str:
        lines = (found["fenced"] or found["indented"] or "").splitlines()
        blocks.append([line.strip() for line in lines])
        return "\n"

    return CODE_BLOCK.sub(block, text), blocks


def headings(text: str) -> list[tuple[int, str]]:
    """Level and words."""
    return [
        (len(found[1]), found[2])
        for line in split(text)[0].splitlines()
        if (found := re.match(r"(#{1,6}) +(.*?) *$", line))
    ]


def anchors(text: str) -> dict[str, str]:
    """GitHub's anchors of the headings: lower case, no punctuation, hyphens for spaces, numbers if repeated."""
    seen: Counter[str] = Counter()
    found = {}
    for _, heading in headings(text):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found[f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor] = heading
        seen[anchor] += 1
    return found


def code_spans(text: str) -> list[str]:
    """Inline code, including that in the comments of code blocks."""
    prose, blocks = split(text)
    parts = [prose, *(line for block in blocks for line in block)]
    return [" ".join(span.split()) for part in parts for span in CODE_SPAN.findall(part)]


def commands(text: str) -> list[list[str]]:
    """The code blocks without their comments. A line that is only a comment stays, as an empty one."""
    return [[re.sub(r"(^|\s+)# .*", "", line) for line in block] for block in split(text)[1]]


def targets(text: str) -> tuple[Counter[str], Counter[str]]:
    """The targets of links and images."""
    plain = CODE_SPAN.sub("", split(text)[0])
    images = re.findall(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)", plain) + re.findall(r'\ssrc="([^"]+)"', plain)
    every = re.findall(r'\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]: +(\S+)|\s(?:src|href)="([^"]+)"', plain, flags=re.MULTILINE)
    return Counter("".join(groups) for groups in every) - Counter(images), Counter(images)


def tables(text: str) -> list[list[int]]:
    """Each table as the number of cells of its rows."""
    found: list[list[int]] = []
    before = ""
    for line in split(text)[0].splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(line.rstrip().count("|") - 1)
        before = line
    return found


def make_targets(text: str) -> set[str]:
    """The targets of `make` in inline code and in code blocks."""
    lines = [*code_spans(text), *(line for block in commands(text) for line in block)]
    return {target for line in lines for target in re.findall(r"(?<!\S)make (?:[A-Z]+=\S* )*([a-z.][\w.-]*)", line)}


def difference(english: Counter[str], ukrainian: Counter[str]) -> str:
    """For a message."""
    return (
        f"only in README.md: {sorted((english - ukrainian).elements())}; "
        f"only in README.uk.md: {sorted((ukrainian - english).elements())}"
    )


def test_both_readmes_have_the_same_headings() -> None:
    english, ukrainian = headings(ENGLISH.read_text()), headings(UKRAINIAN.read_text())
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
    wrong = []
    for target in links + images:
        if re.match(r"[a-z][a-z+.-]*:", target):  # another site
            continue
        file, _, anchor = unquote(target).partition("#")
        to = path.parent / file if file else path
        if not to.exists():
            wrong.append(f"{target} does not exist")
        elif anchor and to.suffix == ".md" and anchor not in anchors(to.read_text()):
            wrong.append(f"{target} is no heading there")
    assert not wrong, f"links of {name(path)}: {'; '.join(wrong)}"


@pytest.mark.parametrize("path", PRESENT, ids=name)
def test_every_make_target_exists(path: Path) -> None:
    known = set(re.findall(r"^([A-Za-z.][\w.-]*):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    unknown = make_targets(path.read_text()) - known
    assert not unknown, f"{name(path)} names targets that the Makefile does not have: {sorted(unknown)}"


def test_the_index_of_the_log_is_complete() -> None:
    text = LOG.read_text()
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    index = [anchor for row in rows for anchor in re.findall(r"\]\(#([^)]*)\)", row)]
    entries = {anchor: heading for anchor, heading in anchors(text).items() if re.match(r"\d{4}-\d\d-\d\d", heading)}
    assert entries, "docs/log.md has no entries with a date"
    missing = [heading for anchor, heading in entries.items() if anchor not in index]
    assert not missing, f"entries that are not in the index of docs/log.md: {missing}"
    lost = [anchor for anchor in index if anchor not in entries]
    assert not lost, f"links in the index of docs/log.md that lead to no entry: {lost}"


@pytest.mark.parametrize("path", [ENGLISH, UKRAINIAN, DURABILITY, ROOT / "docs" / "security.md"], ids=name)
def test_every_test_that_is_named_exists(path: Path) -> None:
    """Named by file (with or without folder), by file and test, or by test alone, in the file named before it."""
    files: list[Path] = []
    for span in code_spans(path.read_text()):
        found = re.fullmatch(r"(tests/[\w/.-]*|test_\w+\.py)?(?:(?:::)?(test_\w+)(?:\[.*\])?)?", span)
        if found is None:
            continue
        file, test = found.groups()
        if file is not None:
            candidates = [ROOT / file] if "/" in file else (ROOT / "tests").rglob(file)
            files = [candidate for candidate in candidates if candidate.exists()]
            assert files, f"{name(path)} names {file}, which does not exist"
        if test is not None:
            assert files, f"{name(path)} names {span}, but no file before it"
            pattern = rf"^ *def {test}\("
            assert any(re.search(pattern, file.read_text(), flags=re.MULTILINE) for file in files), (
                f"{name(path)} names {test}, which is not in {' or '.join(map(name, files))}"
            )


def test_documents_are_read_as_github_shows_them() -> None:
    """Otherwise the tests above could pass because they find nothing to compare."""
    assert headings(SAMPLE) == [(1, "Title"), (2, "At most 60 s, `under` 1 % of [it](x.md)"), (2, "Title")]
    assert list(anchors(SAMPLE)) == ["title", "at-most-60-s-under-1--of-it", "title-1"]
    assert commands(SAMPLE) == [["make up && make logs", "", "echo a#b"], ["FOO=1 make status"]]
    assert code_spans(SAMPLE) == ["sudo make install", "[no](link.md)", "make x", "under", "make down"]
    assert make_targets(SAMPLE) == {"up", "logs", "status", "install", "x", "down"}
    assert targets(SAMPLE) == (Counter(["x.md", "a.md", "b.md#c", "d.md", "e.md"]), Counter(["i.png", "j.png"]))
    assert tables(SAMPLE) == [[2, 2, 2], [1, 1]]
