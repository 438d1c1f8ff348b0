"""Makes `app/identity/common_passwords.bin` from a list of passwords, one a line, the most frequent first.

    python scripts/common_passwords.py 10_million_password_list_top_1M.txt

Kept are the first 100,000 that are long enough to be chosen at all, without regard to case, as sorted SHA-256
prefixes of five bytes: half a megabyte, searched in place, with one false alarm in ten million.
"""

import sys
from hashlib import sha256
from pathlib import Path

COUNT = 100_000
PREFIX_BYTES = 5
MIN_LENGTH = 8
TARGET = Path(__file__).resolve().parents[1] / "app" / "identity" / "common_passwords.bin"


def main() -> None:
    source = Path(sys.argv[1])
    kept: dict[bytes, None] = {}
    with source.open(encoding="utf-8", errors="ignore") as lines:
        for line in lines:
            password = line.rstrip("\r\n").casefold()
            if len(password) >= MIN_LENGTH:
                kept[sha256(password.encode()).digest()[:PREFIX_BYTES]] = None
            if len(kept) == COUNT:
                break
    TARGET.write_bytes(b"".join(sorted(kept)))


if __name__ == "__main__":
    main()
