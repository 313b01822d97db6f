"""The list of what is in an image: complete, and the same for the same image."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "docker" / "sbom.py"
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Version: 2.36-9+deb12u13
Description: GNU C Library
 Package: this-is-a-description

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: tzdata
Status: install ok installed
Architecture: all
Version: 1:2025b-0+deb12u2
"""


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_debian_packages_are_those_that_are_installed(sbom: ModuleType) -> None:
    found = sbom.debian_packages(STATUS)
    assert [package["purl"] for package in found] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64",
        "pkg:deb/debian/tzdata@1%3A2025b-0%2Bdeb12u2?arch=all",
    ]


def test_every_python_package_is_named_once_with_its_version(sbom: ModuleType) -> None:
    packages = {package["name"]: package for package in sbom.python_packages()}
    assert packages["torch"]["version"] == importlib.metadata.version("torch")
    assert packages["huggingface-hub"]["purl"].startswith("pkg:pypi/huggingface-hub@")
    assert len(packages) > 50
    document = sbom.document("svitlo/trainer", "1", sbom.python_packages() * 2)
    purls = [component["purl"] for component in document["components"]]
    assert len(purls) == len(set(purls))
    assert document["dependencies"][0]["dependsOn"] == purls


def test_the_same_content_gives_the_same_document(sbom: ModuleType) -> None:
    packages = sbom.debian_packages(STATUS)
    one = sbom.document("svitlo/trainer", "1", packages)
    assert one == sbom.document("svitlo/trainer", "1", packages[::-1])
    assert one["serialNumber"] != sbom.document("svitlo/trainer", "2", packages)["serialNumber"]
    assert (one["bomFormat"], one["specVersion"]) == ("CycloneDX", "1.6")


@pytest.mark.skipif(not Path("/var/lib/dpkg/status").exists(), reason="needs a Debian system")
def test_the_script_prints_one_document(sbom: ModuleType) -> None:
    done = subprocess.run(
        [sys.executable, "-", "svitlo/x", "7"], input=SCRIPT.read_text(), capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["metadata"]["component"]["name"] == "svitlo/x"
    kinds = {component["purl"].split("/")[0] for component in document["components"]}
    assert kinds == {"pkg:deb", "pkg:pypi"}
