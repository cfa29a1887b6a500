"""How models are named: repositories of the Hub, and commits of them."""

COMMIT_LENGTH = 40  # hex digits of a Git commit, which is what a pinned revision is


def is_repository(name: str) -> bool:
    """Whether a model's name is one of the Hub, OWNER/NAME, and no path or address."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which cannot change."""
    return revision is not None and len(revision) == COMMIT_LENGTH and set(revision) <= set("0123456789abcdef")
