"""What a certificate depends on."""

from __future__ import annotations

from dataclasses import dataclass

from monai_adv import given
from monai_adv.certificates.bounds import check_alpha, least_draws
from monai_adv.certificates.smoothed import Noise
from monai_adv.errors import InputError


@dataclass(frozen=True)
class Certification:
    """How a smoothed model is certified.

    Args:
        sigma: standard deviation of the noise in every voxel, in the unit of the network's input. The larger it is, the
            larger are the radii that can be shown, and the more the network must be able to see through.
        n0: draws that choose the answer.
        n: other draws that count how often it comes: the radius that can be shown grows with them, slowly.
        alpha: probability that what is said of an image, for a segmentation of all its voxels together, is wrong.
        tau: of a segmentation: how often a voxel's class must come at least; its radius is ``sigma * Phi^-1(tau)``.
        seed: of the draws.
        channels: that are intensities and get noise; None: all.
        inputs_per_pass: noisy copies in one pass of the network; it decides the last digits.

    Raises:
        InputError: a value that is not allowed.
    """

    sigma: float
    n0: int = 100
    n: int = 1000
    alpha: float = 0.001
    tau: float = 0.75
    seed: int = 0
    channels: tuple[int, ...] | None = None
    inputs_per_pass: int = 64

    def __post_init__(self) -> None:
        self.noise  # noqa: B018  refuses sigma
        check_alpha(self.alpha)
        for name in ("n0", "n", "inputs_per_pass"):
            object.__setattr__(self, name, given.whole(name, getattr(self, name), 1))
        if not 0.5 < self.tau < 1:  # the radius at one half is 0
            raise InputError.of("tau", self.tau, "above 0.5 and below 1", "0.75 is usual")
        object.__setattr__(self, "seed", given.whole("seed", self.seed, 0, given.LARGEST_SEED, "a whole number >= 0"))

    @property
    def noise(self) -> Noise:
        """What is added to the images."""
        return Noise(self.sigma, self.channels)

    def check_draws(self, tests: int = 1, tau: float = 0.5) -> None:
        """Refuse draws with which nothing could be shown, whatever the network says.

        Args:
            tests: statements that hold together: voxels, times regions.
            tau: see above.

        Raises:
            InputError: says how many are needed.
        """
        least = least_draws(tau, self.alpha, tests)
        if self.n < least:
            together = f" about {tests} voxels together" if tests > 1 else ""
            raise InputError.of(
                "n", self.n, f"at least {least}", f"fewer draws show nothing{together} at alpha {self.alpha:g}"
            )


@dataclass(frozen=True)
class Smoothing(Certification):
    """A smoothed model that is attacked and certified; fields as in :class:`Certification`, and:

    Args:
        draws: noisy copies of which it votes where it is deployed, and attacked; a certificate counts ``n`` others.

    Raises:
        InputError: a value that is not allowed.
    """

    draws: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "draws", given.whole("draws", self.draws, 1))
