"""Conditional requests (RFC 9110, section 13), and the entity tags that they name.

Nothing of ours has a date of modification, so that `If-Modified-Since` and `If-Unmodified-Since` are ignored, as
sections 13.1.3 and 13.1.4 demand. Only the files of the documentation have one, which Starlette looks after.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from app.kernel.database.versions import ANY_VERSION, NO_VERSION, Versions
from app.kernel.errors import PreconditionFailed
from app.kernel.headers.codings import gzip_etag
from app.kernel.request.state import RequestState

_ETAG_BYTES = 12
_ANY = b"*"


def etag_of(*parts: object) -> str:
    """A strong entity tag of what identifies a representation, such as an id and its version."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=_ETAG_BYTES).hexdigest()
    return f'"{digest}"'


def body_etag(body: bytes) -> bytes:
    """A strong entity tag of an answer's bytes."""
    return b'"' + blake2b(body, digest_size=_ETAG_BYTES).hexdigest().encode() + b'"'


def version_etag(owner: str, version: int, life: bytes) -> str:
    """A strong entity tag of a row that counts its versions.

    It says whose version it is, because one browser may know several users' `/v1/users/me`, and in which `life` of the
    database (its incarnation): after a restore the same number stands for something else.
    """
    return f'"{owner}-{version}{_life(life)}"'


def _life(life: bytes) -> str:
    return f"-{life.hex()[:16]}" if life else ""


def matches_any(if_none_match: bytes, etag: bytes) -> bool:
    """Whether `If-None-Match` names `etag`, by the weak comparison of section 13.1.2."""
    if if_none_match == etag:
        return True
    return any(tag.removeprefix(b"W/") == etag or tag == _ANY for tag in _tags(if_none_match))


def excludes_any(if_none_match: bytes) -> bool:
    """Whether `If-None-Match` is `*`, beside tags too: on lines of their own they come joined."""
    return _ANY in _tags(if_none_match)


def matches_strongly(if_match: bytes, etag: bytes) -> bool:
    """Whether `If-Match` names `etag` or its compressed form, by the strong comparison of section 13.1.1."""
    return if_match.strip() == _ANY or not {etag, gzip_etag(etag)}.isdisjoint(_tags(if_match))


def _tags(field: bytes) -> Iterable[bytes]:
    return (tag.strip() for tag in field.split(b","))


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What a request that changes something demands of its target, in the order of section 13.2.2."""

    if_match: bytes | None
    if_none_match: bytes | None

    @classmethod
    def of(cls, state: RequestState) -> "Preconditions":
        return cls(state.headers.get(b"if-match"), state.headers.get(b"if-none-match"))

    def __bool__(self) -> bool:
        """Whether there is anything to look at before the change."""
        return self.if_match is not None or self.if_none_match is not None

    def check(self, etag: bytes) -> None:
        """Lets a target pass that has this tag now; to be called where it can no longer change.

        Raises:
            PreconditionFailed
        """
        if self.if_match is not None and not matches_strongly(self.if_match, etag):
            raise PreconditionFailed
        if self.if_none_match is not None and any(
            matches_any(self.if_none_match, tag) for tag in (etag, gzip_etag(etag))
        ):
            raise PreconditionFailed("The resource is what `If-None-Match` says it must not be.")

    def versions(self, owner: str, life: bytes) -> Versions:
        """Those of a row with the tags of `version_etag` that may be changed."""
        if not self:
            return ANY_VERSION
        refused = frozenset[int]()
        if self.if_none_match is not None:
            if excludes_any(self.if_none_match):
                return NO_VERSION
            weak = (tag.removeprefix(b"W/") for tag in _tags(self.if_none_match))
            refused = _versions_of(weak, owner, life)
        if self.if_match is None or self.if_match.strip() == _ANY:
            return Versions(tuple(refused), excluded=True)
        # Weak tags name none here.
        return Versions(tuple(_versions_of(_tags(self.if_match), owner, life) - refused), excluded=False)


def _versions_of(tags: Iterable[bytes], owner: str, life: bytes) -> frozenset[int]:
    """Those that tags of `version_etag` name, in their compressed form too; other tags are left out."""
    pattern = re.compile(rf'"{re.escape(owner)}-(\d{{1,18}}){_life(life)}(?:-gzip)?"'.encode())
    return frozenset(int(found[1]) for tag in tags if (found := pattern.fullmatch(tag)))
