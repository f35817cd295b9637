"""The commit of this checkout."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Return the short hash of the checkout's commit, with ``+`` if files differ from it.

    ``unknown`` if the package is not in a git checkout.
    """

    def git(*words: str) -> str:
        call = ["git", "-C", str(Path(__file__).parents[1]), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=8", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
