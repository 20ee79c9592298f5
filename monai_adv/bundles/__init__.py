"""What the bundles in ``bundles/`` share: their configs say ``$import monai_adv.bundles as bundles``."""

from monai_adv.errors import say_it_last
from monai_adv.optional import explained

with explained("monai_adv.bundles"):
    from monai_adv.bundles.image_index import file_cells, image_files, read_index
    from monai_adv.bundles.phantoms import write_phantom
    from monai_adv.bundles.start import check_keys, device
    from monai_adv.bundles.transforms import GreySliced, WithinRanged
    from monai_adv.evaluation.live_bundle import evaluate
    from monai_adv.weights import load_weights

say_it_last()

__all__ = [
    "GreySliced",
    "WithinRanged",
    "check_keys",
    "device",
    "evaluate",
    "file_cells",
    "image_files",
    "load_weights",
    "read_index",
    "write_phantom",
]
