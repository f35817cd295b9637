"""The lessons: executing and storing them, the student's version, and what a stored one must be.

A lesson is a pair in ``notebooks/``. ``NN_name.py`` is the source: cells in percent format, read
and reviewed as a file of Python. ``NN_name.ipynb`` holds the same cells with the outputs of one
clean run, for readers; :func:`store` makes it from the source.

    python -m ddfp_lib.lessons store            # execute all lessons and store their outputs
    python -m ddfp_lib.lessons store 02         # those whose name begins with 02
    python -m ddfp_lib.lessons texts            # store changed texts; nothing is executed
    python -m ddfp_lib.lessons student FOLDER   # versions without solutions and outputs
    python -m ddfp_lib.lessons check            # say what is wrong with the stored pairs
"""

from ddfp_lib.lessons.addresses import misaddressed, repositories
from ddfp_lib.lessons.guards import (
    GUARDS,
    MAX_BYTES,
    astray,
    bad_parameters,
    failed,
    mislocated,
    misquoted,
    misworded,
    not_one_clean_run,
    of_one_machine,
    out_of_form,
    printed_before,
    too_large,
    unanswered,
    unlike_source,
    unreferenced,
)
from ddfp_lib.lessons.pairs import (
    addressed,
    as_notebook,
    public_address,
    scripts,
    store,
    student,
    tags,
    thumbnail,
    thumbnail_path,
)
from ddfp_lib.lessons.texts import described, store_texts, undescribed, unprinted

__all__ = [
    "GUARDS",
    "MAX_BYTES",
    "addressed",
    "as_notebook",
    "astray",
    "bad_parameters",
    "described",
    "failed",
    "misaddressed",
    "mislocated",
    "misquoted",
    "misworded",
    "not_one_clean_run",
    "of_one_machine",
    "out_of_form",
    "printed_before",
    "public_address",
    "repositories",
    "scripts",
    "store",
    "store_texts",
    "student",
    "tags",
    "thumbnail",
    "thumbnail_path",
    "too_large",
    "unanswered",
    "undescribed",
    "unlike_source",
    "unprinted",
    "unreferenced",
]
