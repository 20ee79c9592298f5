"""``python -m monai_adv.cli`` is ``monai-adv``."""

from __future__ import annotations

import sys

from monai_adv.cli import main

if __name__ == "__main__":
    sys.exit(main())
