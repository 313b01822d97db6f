"""Whatever stands in a configuration file, it is accepted or refused in one message, and nothing is written.

`pytest tests/unit/test_fuzz_configuration.py --hypothesis-profile hunt --timeout 0` looks longer.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from svitlo.config import DATA_FILE, load_data_config, load_phase_config
from svitlo.config.reading import Section
from svitlo.data.formats import all_formats
from svitlo.data.plan import preparation_key
from svitlo.errors import ConfigError
from svitlo.phases import PHASES
from svitlo.volumes import Volumes
from tests.conftest import ROOT, environment
from tests.support import contents, run_main

FILES = [
    ROOT / folder / name
    for folder in ("config", "config/offline", "config/demo")
    for name in (DATA_FILE, *(phase.config_file for phase in PHASES))
]
PHASE_OF = {phase.config_file: phase for phase in PHASES}
FEWEST, MOST = -(10**12), 10**12
"""What no key of a usable configuration goes beyond: the program computes with these numbers."""

WORDS = st.sampled_from([
    "", " ", "-", "no", "010", "1e400", "9" * 5_000, "null", "Україна", "🕯", "a\nb", "a\tb", "\x00", "\x1b[31m", "\x85",
    "\ud800", "\u202e", "x" * 9_000, "**", "../..", "/", "a.zip::", "::", "utf-16", "rot13", "unpinned", "text", "<<",
])  # fmt: skip
NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 10**9, 10**30, -(10**400), 0.0, 0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan]
)
SCALARS = (
    st.none()
    | st.booleans()
    | NUMBERS
    | WORDS
    | st.text(max_size=20)
    | st.integers()
    | st.floats(allow_subnormal=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(SCALARS.filter(lambda key: key == key), inner, max_size=3)
    ),
)
SNIPPETS = st.sampled_from([
    b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\n---\n", b"...\n", b"&a ", b"*a", b"<<: *a\n",
    b"<<: {a: 1}\n", b"%YAML 9.9\n", b"`", b"#", b"0x_",
    b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!set ", b"!!omap ", b"!!pairs ", b"!x ", b"[",
    b"!!python/name:os.system ", b"]", b"{", b"}", b"? ", b": ", b"- ", b"'", b'"', b"|", b">", b"%", b"@",
    b"9" * 5_000, b'"\\ud800"', b'"\\x1b"', b"[" * 3_000, b"- " * 3_000, b"{a: " * 3_000, b"_", b"=",
    b"~", b"\xe2\x80\xa8",
])  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below this one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def another_structure(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file with values, keys or whole sections replaced, renamed, dropped or put elsewhere."""
    file = draw(st.sampled_from(FILES))
    content = yaml.safe_load(file.read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(content))
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        holder: Any = content
        for key in above:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "drop", "rename", "wrap", "add", "move"])):
            case "replace":
                holder[last] = draw(VALUES)
            case "drop":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[draw(SCALARS | st.just(f"{last}s"))] = holder.pop(last)
            case "wrap":
                holder[last] = draw(st.sampled_from([[holder[last]], {"a": holder[last]}, [holder[last]] * 2]))
            case "add" if isinstance(holder, dict):
                holder[draw(SCALARS)] = draw(VALUES)
            case "move":
                content[last if isinstance(last, str) else "sources"] = holder[last]
    return file.name, yaml.safe_dump(content, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def other_bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file that was cut short, or in which bytes are others."""
    file = draw(st.sampled_from(FILES))
    content = file.read_bytes()
    if draw(st.booleans()):  # without comments, most places count
        content = yaml.safe_dump(yaml.safe_load(content), default_flow_style=draw(st.booleans())).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 0, 1, 5, 10**6]))
        content = content[:at] + draw(SNIPPETS | st.just(b"") | st.binary(max_size=3)) + content[at + length :]
    return file.name, content


CHANGED = another_structure() | other_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    Volumes(folder / "volumes").set_up()
    (folder / "config").mkdir()
    for file in FILES[:3]:
        (folder / "config" / file.name).write_bytes(file.read_bytes())
    return folder


def refusal(folder: Path, name: str) -> str | None:
    """The message with which a configuration is refused. None where it is accepted, and can be used."""
    try:
        if name == DATA_FILE:
            require_usable(load_data_config(folder, all_formats()))
        else:
            require_usable(load_phase_config(folder, PHASE_OF[name]))
    except ConfigError as error:
        return str(error)
    return None


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, (int, float)):
        yield value


def require_usable(config: Section) -> None:
    """Everything that the program does with any value: it is written as JSON, as text, and computed with."""
    content = config.model_dump(mode="json")
    json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    assert all(FEWEST <= number <= MOST for number in numbers_in(content)), content
    for phase in PHASES:
        if hasattr(config, phase.name):
            preparation_key(getattr(config, phase.name), "")


def require_one_message(message: str, path: Path) -> None:
    """It can be read, names the file, and has a line for each mistake."""
    first, *rest = message.split("\n")
    assert first.startswith(f"{path}: ")
    assert all(line.isprintable() for line in (first, *rest)), ascii(message)
    assert max(map(len, (first, *rest))) < 1_000, message
    assert not rest or first == f"{path}: {len(rest)} mistake" + ("s" if len(rest) > 1 else "")
    assert "Traceback" not in message
    assert "<unicode string>" not in message


@given(CHANGED)
def test_any_file_is_accepted_or_refused_in_one_message(folder: Path, changed: tuple[str, bytes]) -> None:
    name, content = changed
    path = folder / name
    path.write_bytes(content)
    if (message := refusal(folder, name)) is not None:
        require_one_message(message, path)


@given(CHANGED)
def test_the_commands_end_with_this_message_and_write_nothing(folder: Path, changed: tuple[str, bytes]) -> None:
    name, content = changed
    path = folder / "config" / name
    before = path.read_bytes()
    path.write_bytes(content)
    if (message := refusal(path.parent, name)) is not None:
        there = contents(folder / "volumes")
        code, said = run_main(command(name), "--config", str(path.parent), "--volumes", str(folder / "volumes"))
        assert (code, said) == (2, f"error: {message}\n")
        assert contents(folder / "volumes") == there
    path.write_bytes(before)


def command(name: str) -> str:
    return "prepare" if name == DATA_FILE else "train"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (DATA_FILE, b"phase1: {sources: [{name: \"\\ud800\"}]}"),
        (PHASES[0].config_file, b"\xff\xfet\x00r\x00"),
        (PHASES[1].config_file, b"[" * 3_000),
    ],
)  # fmt: skip
def test_as_a_process_of_its_own(folder: Path, name: str, content: bytes) -> None:
    path = folder / "config" / name
    before = path.read_bytes()
    path.write_bytes(content)
    there = contents(folder / "volumes")
    arguments = [command(name), "--config", path.parent, "--volumes", folder / "volumes"]
    done = subprocess.run(
        [sys.executable, "-m", "svitlo", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**environment(), "LANG": "C", "PYTHONUTF8": "0"},
        check=False,
    )
    path.write_bytes(before)
    assert done.returncode == 2
    require_one_message(done.stderr.removeprefix("error: ").rstrip("\n"), path)
    assert contents(folder / "volumes") == there
