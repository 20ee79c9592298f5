"""What CUDA does to methods that watch an attack from inside: leavers stay for some steps, indices are repeated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_adv.attacks import ascent
from tests.defense_toys import toy

SETTINGS: dict[str, dict[str, object]] = {
    "fat": {"tau": 1},
    "gairat": {},
    "dat": {"relative": True, "fosc_around": "start", "start": "ball", "c_max": 0.7},
    "ates": {"lam_first": -0.1},
}


def step(key: str, kind: str) -> tuple[float, Tensor, dict[str, float]]:
    problem = toy(kind, key, torch.float64)
    problem.network.eval()
    defense = problem.defense(key, norm="linf", eps=0.5, steps=9, relative_step=0.2, **SETTINGS[key])
    (part,) = defense.losses(problem.network, problem.batch(torch.arange(6)))
    part.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in problem.network.parameters() if p.grad is not None])
    return part.loss.item(), gradient, defense.on_epoch_end()


@pytest.mark.parametrize("kind", ["2 classes", "9 classes", "segmentation 2D"])
@pytest.mark.parametrize("key", SETTINGS)
def test_repeated_and_lingering_samples_change_nothing(key: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, gradient, figures = step(key, kind)

    def padded(index: Tensor, network: nn.Module) -> Tensor:
        return torch.cat([index, index[:2], index[:2]])

    monkeypatch.setattr(ascent, "padded", padded)
    monkeypatch.setattr(ascent, "sync_interval", lambda device: 4)
    other_loss, other_gradient, other = step(key, kind)
    assert other_loss == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(other_gradient, gradient)
    assert other["passes_per_sample"] > figures["passes_per_sample"]
    for name in ("attack_steps", "kappa"):
        assert other.get(name) == figures.get(name)


@pytest.mark.parametrize("key", ["ates", "dat", "fat"])
def test_samples_that_nothing_attacks_count_as_no_steps(key: str) -> None:
    """A batch without foreground beside one that is attacked as before: half as many steps per sample."""
    problem = toy("segmentation 2D", key, torch.float64)
    problem.network.eval()
    for labels in problem.target:
        labels[6:] = 0
    found = []
    for batches in ([range(6)], [range(6), range(6, 12)]):
        defense = problem.defense(key, norm="linf", eps=0.5, steps=9)
        defense.on_epoch_start(3, 4)  # the ramps are over
        for ids in batches:
            list(defense.losses(problem.network, problem.batch(torch.tensor(ids))))
        found.append(defense.on_epoch_end())
    assert found[1]["attacked"] == found[0]["attacked"] / 2 == 0.5
    assert found[1]["attack_steps"] == found[0]["attack_steps"] / 2 > 0
