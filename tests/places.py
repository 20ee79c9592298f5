"""Where things lie, for tests of any folder."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared" / "data"
"""Real patients, beside the repository; tests that need them are skipped without."""
