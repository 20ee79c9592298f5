"""Task: what *right* means for a network's output."""

from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.tasks.segmentation import SegmentationSettings, SegmentationTask

__all__ = ["Output", "SegmentationSettings", "SegmentationTask", "Target", "Task", "take"]
