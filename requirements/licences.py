"""Writes docs/licences.md from the lock of the image, what its packages say of themselves, and the list of the
console's scripts: `make licences`.
"""

import json
import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
_VENDORED = ROOT / "scripts" / "vendored.json"
# The identifiers of SPDX for what packages wrote before there was a field for them.
_SPDX = {
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "SIL Open Font License (OFL)": "OFL-1.1",
}
# Of packages of fonts the licence says what the code is under, and the folder of each font has the font's own.
_FONTS = ("justmytype-intl-",)
# Locked for other platforms and older Pythons, so that they are not installed everywhere.
_ELSEWHERE = {"async-timeout": "Apache-2.0", "colorama": "BSD-3-Clause"}
_HEAD = """# Licences

What the image contains besides Onehop, by licence. `make licences` writes this page anew; a test fails when it is old.
None of them asks more of a product than to name it: MPL-2.0 covers its own files only, which are used
unchanged, and OFL-1.1 asks that fonts are not sold by themselves.

| licence | packages |
|---|---|
"""


def make_page() -> str:
    """The whole page."""
    lock = (ROOT / "requirements" / "production.txt").read_text(encoding="utf-8")
    packages: dict[str, list[str]] = defaultdict(list)
    for name in re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==", lock, re.MULTILINE):
        packages[_licence_of(name)].append(name)
    vendored = json.loads(_VENDORED.read_text(encoding="utf-8"))
    for name, licence in {(item["package"], item["licence"]) for item in vendored if item["file"].startswith("app/")}:
        packages[licence].append(name)
    rows = (f"| {licence} | {', '.join(sorted(names))} |\n" for licence, names in sorted(packages.items()))
    return _HEAD + "".join(rows)


def _licence_of(name: str) -> str:
    try:
        fields = metadata(name)
    except PackageNotFoundError:
        return _ELSEWHERE[name]
    expression = fields.get("License-Expression")
    if expression:
        return str(expression)
    classes = [text.rpartition(" :: ")[2] for text in fields.get_all("Classifier", []) if text.startswith("License")]
    word = str(fields.get("License") or classes[0])
    licence = _SPDX.get(word, word)
    return f"{licence} AND OFL-1.1" if name.startswith(_FONTS) else licence


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
