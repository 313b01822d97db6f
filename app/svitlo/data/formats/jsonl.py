"""Records with one document each: `field` names the text, `title_field` names its first line.

Despite the name, this reads JSON arrays, CSV and Parquet as well as JSON lines.
"""

from __future__ import annotations

from svitlo.data.formats.text import RowText


class JsonLines(RowText):
    pass


FORMAT = JsonLines()
