"""Evaluation: how robust is a model, honestly?"""

import monai_adv.progress_bar  # noqa: F401 - before MONAI, which imports tqdm as well and lets its warning through
