"""Words of a report, each in a sentence or two for a reader who is no engineer; docs/glossary.md says more."""

from __future__ import annotations

GLOSSARY = {
    "attack": "A search for a small change of an image that makes the model err as much as possible.",
    "radius (eps)": "How much an attack may change an image at most. Its size is counted in a norm.",
    "L-inf": "A norm: the largest change of any voxel. L-inf 0.01 means that no voxel changes by more than 0.01.",
    "L2": "A norm: the length of the whole change, all voxels together (root of the sum of squares). The same L2 means "
    "less per voxel in a larger image.",
    "RMS": "Root mean square: L2 per voxel, the typical change of a voxel. It can be compared between images of "
    "different size.",
    "worst case": "For each patient the lowest score that any attack found, and the mean of these. The truth can be "
    "lower, never higher.",
    "random noise": "A change of the same size that nobody searched for, as a poor scan has it. It says what is "
    "likely; the worst case says what is possible.",
    "white-box": "An attack that knows everything of the model, its weights included. The strictest test.",
    "black-box": "An attack that sees only the model's answers.",
    "gradient masking": "A model that hides its weakness from white-box attacks without being robust. The red flags "
    "look for it.",
    "Dice": "Overlap of a segmentation with the ground truth: 100 % is the same, 0 % is no overlap.",
    "HD95": "Distance between the two outlines in mm, of which 95 % lie closer.",
    "accuracy": "Share of the images that get the right label.",
    "95 % interval": "How well the figure is known: made like this, 95 of 100 intervals hold the figure of all "
    "patients of this kind. Few patients make it wide.",
    "p value": "How often chance alone would give a difference at least as large. Small: probably not chance.",
    "natural corruption": "What scanners and handling do to images: noise, blur, contrast. No search for the worst.",
    "certificate": "A proof that no change within a radius can alter an answer, or push a score below a bound. An "
    "attack gives an upper bound, a certificate a lower one.",
    "reliable": "No check found a sign that the attacks failed. It is said of the measurement, not of the model.",
    "robust": "The model keeps most of its score in the worst case at every radius measured.",
    "hash, digest": "A number that changes with every change of a file. It shows that a file is the one that was "
    "written, not who wrote it.",
}
"""Word -> what it means."""
