"""Certificates: what no attack can do, by randomized smoothing.

What is certified is the smoothed model, the majority vote of a network over noisy copies of its input
(:class:`SmoothedModel`), not the network itself.
"""

from monai_adv.certificates.classification import ClassCertificate, certify_classes
from monai_adv.certificates.segmentation import (
    MapCertificate,
    certified_dice,
    certified_region_dice,
    certified_score,
    certify_labels,
)
from monai_adv.certificates.settings import Certification, Smoothing
from monai_adv.certificates.smoothed import NO_CLASS, Noise, SmoothedModel

__all__ = [
    "NO_CLASS",
    "Certification",
    "ClassCertificate",
    "MapCertificate",
    "Noise",
    "SmoothedModel",
    "Smoothing",
    "certified_dice",
    "certified_region_dice",
    "certified_score",
    "certify_classes",
    "certify_labels",
]
