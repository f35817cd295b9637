"""A plugin for pytest that makes ``import nbformat`` quick: ``pytest -p tests.quick``.

jsonschema, which nbformat imports, imports rfc3987_syntax where that is installed. It builds the
parser of a grammar as it is imported: 2 seconds of CPU time, in each of a dozen processes, for a
format of notebook schemas that do not use it. jsonschema goes without if the import fails.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)
