"""The lessons: executing and storing them, the student's version, and what a stored one must be.

A lesson is a pair in ``notebooks/``. ``NN_name.py`` is the source: cells in percent format, read
and reviewed as a file of Python. ``NN_name.ipynb`` holds the same cells with the outputs of one
clean run, for readers; :func:`store` makes it from the source. These are the commands::

    python -m ddfp_lib.lessons store            # execute all lessons and store their outputs
    python -m ddfp_lib.lessons store 02         # those whose name begins with 02
    python -m ddfp_lib.lessons texts            # store changed texts; nothing is executed
    python -m ddfp_lib.lessons student FOLDER   # versions without solutions and outputs
    python -m ddfp_lib.lessons check            # say what is wrong with the stored pairs

The names below are imported when they are first used, as in :mod:`ddfp_lib`: a lesson imports
``lessons.plane`` or ``lessons.digits``, and its kernel starts without the tools for notebooks.
"""

from ddfp_lib.imports import offered

_HOMES = {
    "addresses": ("misaddressed", "repositories"),
    "guards": (
        "GUARDS",
        "MAX_BYTES",
        "astray",
        "bad_parameters",
        "failed",
        "mislocated",
        "misquoted",
        "misworded",
        "not_one_clean_run",
        "of_one_machine",
        "out_of_form",
        "printed_before",
        "too_large",
        "unanswered",
        "unlike_source",
        "unreferenced",
    ),
    "pairs": (
        "addressed",
        "as_notebook",
        "public_address",
        "scripts",
        "store",
        "student",
        "tags",
        "thumbnail",
        "thumbnail_path",
    ),
    "texts": ("described", "store_texts", "undescribed", "unprinted"),
}
"""The module of each name that this package offers."""

__all__, __getattr__ = offered(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
