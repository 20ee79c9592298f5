"""What must not be read as Python: an object that runs something as it is unpickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Malicious:
    """Makes a folder, by which a test sees that it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)
