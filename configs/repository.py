"""How sources are named: repositories of the Hub, commits of them, and addresses without what is secret in them."""

import re
from typing import Annotated

from pydantic import AfterValidator

COMMIT_LENGTH = 40  # hex digits of a Git commit, which is what a pinned revision is
# A login before the host; a query or fragment, such as the signature of a link, up to the next address of a chain.
_ADDRESS = re.compile(r"://(?:[^/?#\s]*@)?([^?#\s]*?)(?:[?#]\S*?)?(?=::|\s|$)")


def is_repository(name: str) -> bool:
    """Whether a model's name is one of the Hub, OWNER/NAME, and no path or address."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which cannot change."""
    return revision is not None and len(revision) == COMMIT_LENGTH and set(revision) <= set("0123456789abcdef")


def public_address(text: str) -> str:
    """A name or text whose addresses have no login, query and fragment: what gives access to a source is not its name.

    >>> public_address("zip://a.jsonl::https://me:password@host/data.zip?sig=1"), public_address("owner/name")
    ('zip://a.jsonl::https://host/data.zip', 'owner/name')
    """
    return _ADDRESS.sub(r"://\1", text)


PublicName = Annotated[str, AfterValidator(public_address)]
"""A source's name, as everybody may read it."""
