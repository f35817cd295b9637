"""``python -m ddfp_lib.cli`` is ``ddfp``: torchrun and child processes start it so."""

from ddfp_lib.cli import main

main()
