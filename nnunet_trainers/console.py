"""nnU-Net's commands end in a traceback whatever happens; ours end in the one sentence that helps."""

from __future__ import annotations

import sys
from types import TracebackType

from monai_adv.errors import InputError


def end_with_the_sentence() -> None:
    """An InputError that nobody catches is printed as one line, without the traceback; other errors as ever."""
    before = sys.excepthook
    if getattr(before, "ends_with_the_sentence", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, InputError):
            print(f"monai-adv: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    hook.ends_with_the_sentence = True  # type: ignore[attr-defined]
    sys.excepthook = hook
