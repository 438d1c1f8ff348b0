"""Which OS user a server runs as, and how a child process becomes it.

PostgreSQL refuses to run as root. Started by root it runs as the owner of its data, else as the
existing user `nobody`. That user often cannot walk through the folders above a clone (`/root` has mode 700),
and opening them would change permissions that are not ours. So the child keeps one capability instead:
passing closed folders.
"""

import ctypes
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
# Without this bit the kernel takes all capabilities away at setuid, and again inside access(2),
# with which PostgreSQL checks its own binaries (credentials(7), capabilities(7)).
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The user that a server runs as. `capability` is the one it keeps to pass folders closed to it, or None."""

    uid: int
    gid: int
    capability: int | None


def server_user(data_dir: Path, programs: Iterable[Path]) -> ServerUser | None:
    """The user for a server that owns `data_dir` and runs `programs`; None means: as this process."""
    if os.geteuid() != 0:
        return None
    uid, gid = _nobody()
    if data_dir.exists():
        owner = data_dir.stat()
        if owner.st_uid != 0:
            uid, gid = owner.st_uid, owner.st_gid
    return ServerUser(uid, gid, _capability_needed(uid, gid, data_dir, list(programs)))


def make_private_dir(path: Path, user: ServerUser | None) -> None:
    """Create a folder of mode 700 for the server, or check that an existing one belongs to no other user.

    Raises PermissionError if the folder is a link or belongs to another user: below a shared temporary folder
    it could be a trap for our sockets.
    """
    uid = os.geteuid() if user is None else user.uid
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {uid, os.geteuid()}:
            raise PermissionError(f"{path} exists and belongs to another user") from None
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)
    if user is not None:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def become(user: ServerUser | None, *, death_signal: int | None = None) -> Callable[[], None] | None:
    """What the child does between fork and exec: drop root for good and, if wished, die with its parent
    thread.
    """
    if user is None and death_signal is None:
        return None
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def check(result: int) -> None:  # pragma: no cover - as `prepare`.
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def prepare() -> None:  # pragma: no cover - runs in a child that becomes another program before it can report.
        capability = None if user is None or libc is None else user.capability
        if libc is not None and capability is not None:
            check(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        if user is not None:
            os.setgroups([])
            os.setgid(user.gid)
            os.setuid(user.uid)
        if libc is not None and capability is not None:
            header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
            only = 1 << capability
            # Effective, permitted and inheritable of the low 32 capabilities, then of the high ones.
            check(libc.capset(header, (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0)))
            check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0))
        if libc is not None and user is not None:
            check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        # Last, because a change of credentials clears it.
        if libc is not None and death_signal is not None:
            check(libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0))

    return prepare


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return entry.pw_uid, entry.pw_gid


def _capability_needed(uid: int, gid: int, data_dir: Path, programs: list[Path]) -> int | None:
    if any(not _permits(program, uid, gid, 0o5) for program in programs):
        # A umask of 077 at installation leaves binaries that only their owner may execute.
        return _CAP_DAC_OVERRIDE
    folders = {parent for path in (data_dir, *programs) for parent in path.absolute().parents}
    if all(_permits(folder, uid, gid, 0o1) for folder in folders if folder.exists()):
        return None
    # The weaker of the two lets the server read but not write what is not its own; containers often lack it.
    return _CAP_DAC_READ_SEARCH if _is_permitted(_CAP_DAC_READ_SEARCH) else _CAP_DAC_OVERRIDE


def _permits(path: Path, uid: int, gid: int, wanted: int) -> bool:
    found = path.stat()
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return (found.st_mode >> shift) & wanted == wanted


def _is_permitted(capability: int) -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    permitted = next((line for line in status.splitlines() if line.startswith("CapPrm:")), "CapPrm: 0")
    return bool(int(permitted.split()[1], 16) >> capability & 1)
