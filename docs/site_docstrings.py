"""Read by griffe, which makes the reference: our section is called Example, as in MONAI, and griffe's is Examples."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Name the section as griffe does, so that it shows code and not a paragraph."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for everything that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
