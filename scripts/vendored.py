"""Fetches the scripts of the console and of its tests from their npm packages: `make vendored`.

`vendored.json` beside this file is the lock: package, version, npm's hash of the package, and the hash of each file. A
test compares the files with it; to take a newer version, change both there and run this.
"""

import json
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from hashlib import sha256, sha512
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def fetch_all() -> None:
    """Raises SystemExit where a package or a file is another than the one that is locked."""
    for item in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")):
        with tempfile.TemporaryDirectory() as folder:
            wanted = f"{item['package']}@{item['version']}"
            # The registry is whichever npm is configured with; the hashes say whether it told the truth.
            subprocess.run(["npm", "pack", "--silent", wanted], cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S607 - of the lock
            (package,) = Path(folder).glob("*.tgz")
            found = f"sha512-{b64encode(sha512(package.read_bytes()).digest()).decode()}"
            if found != item["integrity"]:
                raise SystemExit(f"{wanted} has the hash {found}, not the one that is locked.")
            with tarfile.open(package) as archive:
                member = archive.extractfile(f"package/{item['path']}")
                content = member.read() if member is not None else b""
        if sha256(content).hexdigest() != item["sha256"]:
            raise SystemExit(f"{item['path']} of {wanted} is not the file that is locked.")
        (_ROOT / item["file"]).write_bytes(content)


if __name__ == "__main__":
    fetch_all()
