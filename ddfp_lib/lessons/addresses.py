"""Check the repository addresses in a lesson: pyproject.toml or ``CITED`` must contain each."""

import re
from collections.abc import Iterator
from pathlib import Path

from ddfp_lib.lessons.pairs import addressed, pair, public_address, without_pictures

CITED = frozenset({"gavinwxy/ddfp"})
"""Repositories of others that lessons link, in lower case."""


# both alternatives begin where a word does: else the time grows with the square of a picture's text
REPOSITORY = re.compile(
    r"(?<![\w.])(?:www\.|raw\.)?(?:github(?:usercontent)?|gitlab|codeberg|bitbucket)(?:\.\w+)?[/:]"
    r"(\w[\w.-]*/\w[\w.-]*)"
    r"|(?<![\w-])(\w[\w-]*)\.(?:github|gitlab|codeberg)\.(?:io|page)/(\w[\w.-]*)"
)


def misaddressed(script: Path) -> Iterator[str]:
    """Yield badges and a Colab cell without pyproject.toml's address, and repositories of others.

    A reader who follows another address would install what somebody else put there.
    """
    source, ours = script.read_text(encoding="utf-8"), public_address()
    if addressed(source, script.stem, ours) != source:
        yield "badges or Colab cell are not those of [project.urls]: store the lesson again"
    named = {name for path in pair(script) for name in repositories(without_pictures(path))}
    for name in sorted(named - CITED - repositories(ours)):
        yield f"it names the repository {name}, which is neither [project.urls] nor in CITED"


def repositories(text: str) -> set[str]:
    """Return the repositories that a text names by an address, each as ``owner/name``.

    Args:
        text: addresses of GitHub, GitLab, Codeberg and Bitbucket are found in it, and of the pages
            that they serve, such as ``owner.github.io/name``.

    Returns:
        Names in lower case, as these sites compare them, without ``.git``.
    """
    found = (either or f"{owner}/{name}" for either, owner, name in REPOSITORY.findall(text))
    return {name.lower().rstrip(".").removesuffix(".git") for name in found}
