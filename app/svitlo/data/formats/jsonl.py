"""Records with a document each: `field` names the text, `title_field` what becomes its first line.

The name says JSON lines; JSON arrays, CSV and Parquet are read as well.
"""

from __future__ import annotations

from svitlo.data.formats.text import RowText


class JsonLines(RowText):
    pass


FORMAT = JsonLines()
