"""The command line keeps its promises: each option does something, and each option that a message names exists."""

from __future__ import annotations

import ast
import gc
import inspect
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from svitlo import cli as module
from svitlo.cli import cli
from tests.support import run_main

SOURCES = Path(module.__file__).parent
COMMANDS = sorted(cli.commands)
OTHER_PROGRAMS = {"--data-root", "--version"}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_an_option_that_it_ignores(name: str) -> None:
    command = cli.commands[name]
    assert command.callback is not None
    (function,) = ast.parse(inspect.getsource(inspect.unwrap(command.callback))).body
    assert isinstance(function, ast.FunctionDef)
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    assert {parameter.name for parameter in command.params} <= used


def test_every_option_that_the_program_names_exists() -> None:
    known = {option for command in cli.commands.values() for param in command.params for option in param.opts}
    known |= {"--help", "--version"}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value))
                assert named - OTHER_PROGRAMS <= known, f"{path}: {named - known}"


def test_many_commands_in_one_process_leave_no_file_open(tmp_path: Path) -> None:
    """As in this suite: most systems allow 1,024 open files."""
    run_main("prepare", "--config", str(tmp_path), "--volumes", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert run_main("prepare", "--config", str(tmp_path), "--volumes", str(tmp_path))[0] == 2
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["generate", "Hello", "--temperature", "-1"], ["--temperature", "-1"]),
        (["generate", "Hello", "--max-tokens", "0"], ["--max-tokens", "0"]),
        (["train", "--phase", "3"], ["--phase", "3"]),
        (["status", "--config", "config"], ["--config"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value(arguments: list[str], parts: list[str]) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit | click.ClickException)
    for part in parts:
        assert part in done.output
