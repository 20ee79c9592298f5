"""Task: what *right* means for a network's output."""

from monai_adv.tasks.base import Output, Points, Target, Task, take, to_device
from monai_adv.tasks.classification import ClassificationTask
from monai_adv.tasks.segmentation import SegmentationSettings, SegmentationTask

__all__ = [
    "ClassificationTask",
    "Output",
    "Points",
    "SegmentationSettings",
    "SegmentationTask",
    "Target",
    "Task",
    "take",
    "to_device",
]
