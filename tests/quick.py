"""A plugin for pytest that makes imports quick: ``pytest -p tests.quick``.

jsonschema, which nbformat imports, imports rfc3987_syntax where that is installed. It builds the
parser of a grammar as it is imported: 2 seconds of CPU time, in each of a dozen processes, for a
format of notebook schemas that do not use it. jsonschema goes without if the import fails.
"""

import gc
import sys
from collections.abc import Iterator

import pytest

sys.modules.setdefault("rfc3987_syntax", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among half a million objects that modules keep for good."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Let modules be freed in order at the end: libraries complain about what is left then."""
    gc.unfreeze()
