"""Prints what is installed in an image as a CycloneDX 1.6 document (JSON). docker/sbom.sh runs it inside the image.

    docker run --rm --interactive --network none --entrypoint python IMAGE - NAME VERSION <docker/sbom.py

Debian packages come from dpkg's own list, Python packages from their metadata. The same image gives the same document.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG_STATUS = Path("/var/lib/dpkg/status")
Component = dict[str, Any]


def debian_packages(status: str) -> list[Component]:
    """The packages that dpkg's status file lists as installed."""
    found = []
    for paragraph in re.split(r"\n\n+", status.strip()):
        fields = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", paragraph, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        found.append(
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={fields['Architecture']}",
                "supplier": {"name": fields.get("Maintainer", "unknown")},
            }
        )
    return found


def python_packages() -> list[Component]:
    """The distributions that Python would import, without the standard library."""
    found = []
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        component: Component = {
            "type": "library",
            "name": name,
            "version": distribution.version,
            "purl": f"pkg:pypi/{name}@{quote(distribution.version, safe='')}",
        }
        licence = distribution.metadata.get("License-Expression")
        if licence:
            component["licenses"] = [{"expression": licence}]
        found.append(component)
    return found


def document(name: str, version: str, components: list[Component]) -> dict[str, Any]:
    """The whole document. Its serial number depends only on its content."""
    unique = {component["purl"]: component for component in components}
    ordered = [{"bom-ref": purl, **unique[purl]} for purl in sorted(unique)]
    content = json.dumps([name, version, ordered], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "image", "name": name, "version": version}},
        "components": ordered,
        "dependencies": [{"ref": "image", "dependsOn": [component["bom-ref"] for component in ordered]}],
    }


if __name__ == "__main__":
    components = debian_packages(DPKG_STATUS.read_text(encoding="utf-8")) + python_packages()
    json.dump(document(sys.argv[1], sys.argv[2], components), sys.stdout, indent=2, ensure_ascii=False)
    print()
