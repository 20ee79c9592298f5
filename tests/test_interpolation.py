"""Between two models: closed forms on linear ones, identities at the ends, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_adv import cli
from monai_adv.engines import SATTrainer
from monai_adv.errors import InputError
from monai_adv.interpolation import LEAST_COSINE, has_running_statistics, interpolated, similarity
from monai_adv.weights import load_weights, read_weights
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.export import export
from tests import monai_engine_toys as toys
from tests.tiny_nnunet import write_model

Weights = dict[str, Tensor]


def _pair(moved: float = 0.1) -> tuple[Weights, Weights]:
    """A linear network and one that lies near it."""
    torch.manual_seed(0)
    plain = {name: value.clone() for name, value in nn.Linear(5, 3).state_dict().items()}
    return plain, {name: value + moved * torch.randn_like(value) for name, value in plain.items()}


def _same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_ends_are_the_two_models_bit_for_bit() -> None:
    plain, robust = _pair()
    assert _same(interpolated(plain, robust, 0), plain)
    assert _same(interpolated(plain, robust, 1), robust)


@given(share=st.floats(0, 1))
def test_logits_of_a_linear_network_lie_on_the_line_as_well(share: float) -> None:
    plain, robust = _pair()
    x, network = torch.ones(1, 5), nn.Linear(5, 3)

    def logits(weights: Weights) -> Tensor:
        network.load_state_dict(weights)
        return network(x).detach()

    expected = (1 - share) * logits(plain) + share * logits(robust)
    torch.testing.assert_close(logits(interpolated(plain, robust, share)), expected)


def test_counters_are_those_of_the_robust_model() -> None:
    plain, robust = ({"n": torch.tensor(n), "mean": torch.tensor(float(n))} for n in (10, 20))
    found = interpolated(plain, robust, 0.5)
    assert (int(found["n"]), float(found["mean"])) == (20, 15.0)


def test_names_for_one_tensor_stay_one_tensor() -> None:
    """nnU-Net's networks list each kernel twice; a file must not grow by that."""
    (plain, robust) = ({"a": w["weight"], "b": w["weight"], "c": w["weight"].clone()} for w in _pair())
    found = interpolated(plain, robust, 0.5)
    assert found["a"].data_ptr() == found["b"].data_ptr() != found["c"].data_ptr()


def test_strangers_are_refused() -> None:
    """Kernels drawn anew have a cosine near 0; scales and shifts, alike in all networks, must not hide that."""
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Conv2d(4, 16, 3), nn.GroupNorm(4, 16)).state_dict() for _ in range(2))
    assert abs(similarity(one, other)) < 0.2 < LEAST_COSINE
    with pytest.raises(InputError, match="between models that were trained apart lies none that works"):
        interpolated(one, other, 0.5)


@pytest.mark.parametrize(
    ("change", "share", "message"),
    [
        ({}, 1.01, "share: received 1.01"),
        ({}, float("nan"), "share: received nan"),
        ({"bias": torch.zeros(4)}, 0.5, r"bias of \(3,\) and \(4,\)"),
        ({"more": torch.zeros(4)}, 0.5, "more in only one of the two models"),
    ],
)
def test_what_does_not_fit_is_refused(change: Weights, share: float, message: str) -> None:
    plain, robust = _pair()
    with pytest.raises(InputError, match=message):
        interpolated(plain, {**robust, **change}, share)


# ---------------------------------------------------------------------- the command


def _command(*words: Any) -> int:
    return cli.main(["interpolate", *map(str, words)])


def test_weights_of_a_bundle(tmp_path: Path) -> None:
    plain, robust = _pair()
    torch.save(plain, tmp_path / "plain.pt")
    torch.save({"model": {f"module.{k}": v for k, v in robust.items()}}, tmp_path / "model.pt")
    assert _command(tmp_path / "plain.pt", tmp_path / "model.pt", "--share", 0.9, 0.25) == 0
    for share in (0.9, 0.25):
        found = torch.load(tmp_path / f"model_share_{share}.pt", weights_only=True)
        assert _same(found, interpolated(plain, robust, share))


def test_weights_of_a_bundle_the_wrong_way_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The state beside them knows which weights a defence has trained."""
    network = toys.Classifier()
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    settings = {"eps": 0.1, "steps": 1}
    toys.trainer(SATTrainer, toys.class_list(), network, settings=settings, state=tmp_path / "robust_state.pt").run()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert _command(tmp_path / "model.pt", tmp_path / "plain.pt", "--share", 0.9) == 2
    refusal = "trained against l2 0.1 (rms)', allowed is a model that no defence has trained; it comes first"
    assert refusal in capsys.readouterr().err
    assert _command(tmp_path / "plain.pt", tmp_path / "model.pt", "--share", 0.9) == 0


def _fine_tuned(folder: Path, name: str = "SATTrainer", **extra: Any) -> tuple[Path, Path]:
    """A model of nnU-Net and what a defence made of it, each twice the other."""
    plain = write_model(folder / "plain") / "fold_0" / "checkpoint_final.pth"
    section = {"threat": {"norm": "l2", "eps": 0.1, "unit": "rms"}, "settings": {}}
    robust = write_model(folder / "robust", trainer=name, monai_adv=section, **extra) / "fold_0" / plain.name
    checkpoint = torch.load(robust, weights_only=False)
    checkpoint["network_weights"] = {k: 2 * v for k, v in checkpoint["network_weights"].items()}
    torch.save(checkpoint, robust)
    return plain, robust


def test_a_checkpoint_of_nnunet(tmp_path: Path) -> None:
    """nnU-Net's own predictor opens it by its name; the radius of the training stays known, its history does not."""
    plain, robust = _fine_tuned(tmp_path)
    assert _command(plain, robust, "--share", 0.5) == 0
    model = DeployedModel.from_folder(robust.parent.parent, 0, "checkpoint_final_share_0.5.pth")
    weights = torch.load(plain, weights_only=False)["network_weights"]
    assert _same({k: 1.5 * v for k, v in weights.items()}, dict(model.network.state_dict()))
    written = torch.load(robust.with_name("checkpoint_final_share_0.5.pth"), weights_only=True)
    assert written["monai_adv"] == {
        "threat": {"norm": "l2", "eps": 0.1, "unit": "rms"},
        "interpolated": {"plain": "checkpoint_final.pth", "robust": "checkpoint_final.pth", "share": 0.5},
    }
    assert "logging" not in written


@pytest.mark.parametrize("words", [("--share", 0), ("--share", 1), ("--share", "nan"), ("--share", 0.5, "-o", "none")])
def test_bad_words_write_nothing(tmp_path: Path, words: tuple[Any, ...], capsys: pytest.CaptureFixture[str]) -> None:
    plain, robust = _fine_tuned(tmp_path)
    assert _command(plain, robust, *words) == 2
    assert f"{words[-2]}: received" in capsys.readouterr().err
    assert [p.name for p in robust.parent.iterdir()] == [robust.name]


def test_wrong_files_are_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, robust = _fine_tuned(tmp_path)
    torch.save(_pair()[0], tmp_path / "model.pt")
    folds = torch.load(plain, weights_only=False)
    folds["init_args"] = {**folds["init_args"], "fold": 1}
    torch.save(folds, tmp_path / "fold_1.pth")
    (robust.with_name("checkpoint_final_share_0.5.pth")).write_text("mine")
    folder, _ = export(robust.parent.parent, tmp_path / "exported")
    exported, bare = folder / "fold_0" / robust.name, tmp_path / "bare.pth"
    content = torch.load(robust, weights_only=False)
    torch.save({name: content[name] for name in content if name != "monai_adv"}, bare)
    for pair, share, told in (
        ((robust, plain), 0.9, "PLAIN: received"),
        ((tmp_path / "fold_1.pth", robust), 0.9, f"fold: received '1 in {tmp_path}"),
        ((plain, tmp_path / "model.pt"), 0.9, "two of the same host"),
        ((tmp_path / "none.pt", tmp_path / "model.pt"), 0.9, "PLAIN: received"),
        ((plain, robust), 0.5, "a file that is not there yet"),
        ((exported, robust), 0.9, "PLAIN: received"),
        ((bare, robust), 0.9, f"PLAIN: received '{bare} of SATTrainer'"),
    ):
        assert _command(*pair, "--share", share) == 2
        assert told in capsys.readouterr().err
    assert robust.with_name("checkpoint_final_share_0.5.pth").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("unexpected pos")  # torch's word for a full disk

    pair = _fine_tuned(tmp_path)
    monkeypatch.setattr(torch, "save", full)
    assert _command(*pair, "--share", 0.5) == 2
    assert "free space or fix the permissions, then give the command again." in capsys.readouterr().err
    assert [p.name for p in pair[1].parent.iterdir()] == [pair[1].name]


def test_what_a_network_keeps_beside_its_tensors_is_loaded_but_has_no_share(tmp_path: Path) -> None:
    class Keeps(nn.Linear):
        said = "nothing"

        def get_extra_state(self) -> dict[str, str]:
            return {"said": self.said}

        def set_extra_state(self, state: dict[str, str]) -> None:
            self.said = state["said"]

    network = Keeps(2, 2)
    network.said = "this"
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert load_weights(Keeps(2, 2), tmp_path / "model.pt").said == "this"
    with pytest.raises(InputError, match="a state dict, whose values are tensors"):
        read_weights(tmp_path / "model.pt")


def test_batchnorm_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()
    assert has_running_statistics(weights)
    for name in ("plain.pt", "model.pt"):
        torch.save(weights, tmp_path / name)
    assert _command(tmp_path / "plain.pt", tmp_path / "model.pt", "--share", 0.5) == 0
    assert "BatchNorm" in capsys.readouterr().out
