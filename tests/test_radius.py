"""The noise of images is measured right, and the radius follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.unet import UNet
from PIL import Image
from scipy import ndimage

from monai_adv import InputError
from monai_adv.bundles.scans import of_folder, of_model
from monai_adv.cli import main
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.noise import noise_of
from monai_adv.radius import Scan, spaced, suggest, words
from tests.evaluation.models.test_bundle_evaluation import write_bundle

Array = npt.NDArray[Any]


def phantom(shape: tuple[int, ...], sigma: float = 0.0, seed: int = 0) -> Array:
    """A smooth organ with a sharp border, on a slope."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    distance = np.sqrt(sum(a**2 for a in axes))
    smooth = 100.0 * (distance < 0.6) + 20 * np.sin(3 * axes[0]) + 30 * axes[-1]
    return smooth + np.random.default_rng(seed).normal(0, 1, shape) * sigma


# -------------------------------------------------------------------- noise


@pytest.mark.parametrize("shape", [(128, 128), (24, 64, 64)])
@pytest.mark.parametrize("sigma", [2.0, 10.0, 50.0])
def test_white_noise_on_a_phantom_is_found(shape: tuple[int, ...], sigma: float) -> None:
    found = noise_of(phantom(shape, sigma))
    assert found.sigma == pytest.approx(sigma, rel=0.05)
    assert found.used == 1
    assert not found.grey_levels


@settings(max_examples=20, deadline=None)
@given(offset=st.floats(-1e4, 1e4), factor=st.floats(1e-3, 1e3))
def test_a_shift_changes_nothing_and_a_factor_comes_out(offset: float, factor: float) -> None:
    image = phantom((32, 32), 5.0)
    assert noise_of(image * factor + offset).sigma == pytest.approx(factor * noise_of(image).sigma, rel=1e-6)


def test_a_plane_and_a_flip_change_nothing() -> None:
    image = phantom((64, 64), 5.0)
    rows, columns = np.mgrid[:64, :64]
    for other in (image + 3 * rows - 7 * columns + 0.5 * rows * columns, image[::-1], image.T):
        assert noise_of(other).sigma == pytest.approx(noise_of(image).sigma)


@pytest.mark.parametrize("value", [-1024.0, 3000.0])
def test_air_padding_and_saturation_do_not_count(value: float) -> None:
    """Three quarters of the image are one value; the noise is that of the rest."""
    image = phantom((128, 128), 10.0)
    padded = np.full((256, 256), value)
    padded[64:192, 64:192] = image
    found = noise_of(padded)
    assert found.sigma == pytest.approx(10.0, rel=0.05)
    assert found.used < 0.3
    clipped = np.clip(image, 0, 90)  # cuts the organ and the background
    assert noise_of(clipped).used < 0.9
    assert noise_of(clipped).sigma == pytest.approx(10.0, rel=0.12)


def test_outliers_do_not_count() -> None:
    image = phantom((128, 128), 10.0)
    image[::16, ::16] += 5000
    assert noise_of(image).sigma == pytest.approx(10.0, rel=0.15)


def test_shared_noise_is_underestimated_as_the_page_says() -> None:
    """A Gaussian kernel of one voxel leaves 0.28 of white noise; the estimate sees far less."""
    noise = np.random.default_rng(0).normal(0, 10, (256, 256))
    smooth = ndimage.gaussian_filter(noise, 1.0)
    assert smooth.std() == pytest.approx(2.8, rel=0.05)
    assert noise_of(smooth).sigma < 0.5 * smooth.std()


def test_eight_bits_are_noticed() -> None:
    image = np.clip(np.rint(phantom((128, 128), 10.0) + 80), 0, 255)
    found = noise_of(image)
    assert found.grey_levels
    assert found.sigma == pytest.approx(10.0, rel=0.06)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((32, 32)), r"x: received 'an image with 0 of 900 windows in which anything varies'.*no noise can be"),
        (np.full((32, 32), np.nan), "x: received 'NaN or infinite voxels'"),
        (np.zeros(32), r"x: received 'an image of shape \(32,\)'"),
        (np.zeros((40, 2)), r"x: received 'an image of shape \(40, 2\)'"),
        (phantom((8, 8), 1.0), "with 36 of 36 windows in which anything varies"),
        (np.add.outer(np.arange(64.0), np.arange(64.0)), "x: received 'an image without any noise in most of it'"),
    ],
)
def test_images_without_noise(image: Array, error: str) -> None:
    with pytest.raises(InputError, match=error):
        noise_of(image, "x")


# -------------------------------------------------------------------- the radius


def scan(sigma: float, name: str = "a", unit: float | None = 200.0, channels: int = 1, seed: int = 0) -> Scan:
    images = np.stack([phantom((64, 64), 200 * sigma, seed + c) / 200 for c in range(channels)])
    return Scan(name, images, (unit,) * channels)


def test_the_radius_is_the_median_noise_to_two_digits() -> None:
    found = suggest(scan(sigma, str(sigma), seed=i) for i, sigma in enumerate((0.02, 0.05, 0.3)))
    sigmas = [m.rms for m in found.measured]
    assert found.eps == float(f"{sorted(sigmas)[1]:.2g}")
    assert found.eps == pytest.approx(0.05, rel=0.1)
    assert found.typical.scan.name == "0.05"
    assert found.levels == pytest.approx([found.eps / 2, found.eps, 2 * found.eps], rel=0.05)
    text = "\n".join(words(found))
    assert "One network unit is 200 of the files' intensity (the same for all scans)." in text
    assert f"eps: {found.eps:g}, unit: rms, norm: l2" in text
    assert "--norm l2 --unit rms --eps " + " ".join(f"{level:g}" for level in found.levels) in text
    assert "RMS 0.1 is " in text
    assert ", 20 of the files' intensity." in text  # 0.1 of 200
    assert "The scans differ by a factor of" in text


def test_noise_below_a_grey_level_is_no_guide() -> None:
    """Pictures that were smoothed and rounded: 0.6 of a level is left."""
    levels = np.rint(phantom((64, 64), 0.6) + 60)
    (text,) = ["\n".join(words(suggest([Scan("a", levels[None] / 255, (255.0,))])))]
    assert "The noise is below one grey level" in text
    assert "below one grey level" not in "\n".join(words(suggest([scan(0.05)])))


def test_channels_add_up_as_an_l2_radius_counts_them() -> None:
    """Noise of 3 and 4 hundredths in two channels is one of sqrt(12.5) hundredths RMS."""
    images = np.concatenate([scan(0.03).images, scan(0.04, seed=5).images])
    (found,) = suggest([Scan("a", images, (1.0, 1.0))]).measured
    assert found.sigmas == pytest.approx((0.03, 0.04), rel=0.1)
    assert found.rms == pytest.approx(np.sqrt(np.mean(np.square(found.sigmas))))


def test_what_cannot_be_used_is_named() -> None:
    found = suggest([scan(0.05), Scan("empty", np.zeros((1, 64, 64)), (None,)), scan(0.05, "b", None, seed=3)])
    assert len(found.measured) == 2
    text = "\n".join(words(found))
    assert "Not used: empty, channel 0: received" in text
    assert "is not known here" in text
    with pytest.raises(InputError, match="images: received none in which noise can be measured: empty, channel 0"):
        suggest([Scan("empty", np.zeros((1, 64, 64)), (None,))])


def test_cases_are_taken_evenly() -> None:
    names = [str(i) for i in range(100)]
    assert spaced(names, 5) == ["0", "25", "50", "74", "99"]
    assert spaced(names, 1) == ["0"]
    assert spaced(names, 200) == names


# -------------------------------------------------------------------- the command


def test_a_folder_of_volumes_in_hu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise of 12 HU, under a window of 400: 0.03 of a unit."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        volume = phantom((40, 40, 12), 12.0, i).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"case_{i}.nii.gz")
    picture = tmp_path / "radius.png"
    assert main(["radius", "--images", str(folder), "--scale", "400", "-o", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "One network unit is 400 of the files' intensity (the same for all scans)." in said
    eps = float(said.split("  eps: ")[1].split(",")[0])
    assert eps == pytest.approx(0.03, rel=0.05)
    assert Image.open(picture).size[0] > 500
    assert picture.with_suffix(".txt").read_text() in said


def volume_bundle(folder: Path, images: Path, dims: int) -> BundleSource:
    """Scans of which 400 HU are one unit, as MONAI reads them; each is its own label, which nobody looks at."""
    network = UNet(dims, 1, 2, (4, 8), (2,))
    settings = {"spatial_dims": dims, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    keys = ["image", "label"]
    transforms = [
        {"_target_": "LoadImaged", "keys": keys, "ensure_channel_first": True},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 400},
        {"_target_": "Lambdad", "keys": "label", "func": "$lambda label: label > 50"},
    ]
    train = {
        "images": f"$sorted(glob.glob('{images}/*'))", "network_def": {"_target_": "UNet", **settings},
        "dataset": {
            "_target_": "Dataset", "data": "$[{'image': i, 'label': i} for i in @images]",
            "transform": {"_target_": "Compose", "transforms": transforms},
        },
    }  # fmt: skip
    return BundleSource(str(write_bundle(folder, train, {}, network)))


def test_thick_slices_of_a_bundle_are_looked_at_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stripes along x, of a strength that jumps from slice to slice: across slices they look like noise."""
    folder = tmp_path / "scans"
    folder.mkdir()
    stripes = (
        100 * np.cos(30 * np.linspace(-1, 1, 56))[None, :, None] * np.random.default_rng(9).normal(0, 1, (1, 1, 12))
    )
    volumes = [np.random.default_rng(i).normal(0, 12, (64, 56, 12)) + stripes for i in range(2)]
    for i, volume in enumerate(volumes):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([1.0, 1, 5, 1])), folder / f"case_{i}.nii.gz")
    assert noise_of(volumes[0]).sigma > 2 * 12
    source = volume_bundle(tmp_path / "b", folder, 3)
    for found, file in zip(of_model(source, 2), of_folder(folder, 2, 400), strict=True):
        np.testing.assert_allclose(found.images, file.images, atol=1e-6)
    # What the picture shows: the slice in the middle, with x from left to right.
    (shown,) = suggest(of_model(source, 1)).typical.scan.images
    np.testing.assert_allclose(shown, volumes[0][:, :, 6].T / 400, atol=1e-6)
    assert main(["radius", "--bundle", source.folder, "-o", str(tmp_path / "radius.png")]) == 0
    eps = float(capsys.readouterr().out.split("  eps: ")[1].split(",")[0])
    assert eps == pytest.approx(0.03, rel=0.05)


def test_pictures_of_a_bundle_are_upright(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (40, 48)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    (found,) = of_model(volume_bundle(tmp_path / "b", folder, 2), 1)
    np.testing.assert_allclose(found.images, picture[None] / 400, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "images: received None, allowed is one of -d DATASET, --bundle FOLDER, --images FOLDER"),
        (["-d", "4", "--images", "x"], "images: received 'd, images', allowed is one of"),
        (["-d", "4"], "-c: received None, allowed is a configuration such as 2d"),
        (["--images", "x"], "--scale: received None, allowed is the intensity that is one unit"),
        (["--images", "x", "--scale", "0"], "--scale: received 0.0, allowed is a number > 0"),
        (["--images", "x", "--scale", "1", "-c", "2d"], "-c: received '2d', allowed is an addition to -d"),
        (["--images", "nowhere", "--scale", "1"], "--images: received 'nowhere', allowed is an existing folder"),
        (["--images", ".", "--scale", "1", "-o", "a.jpg"], "-o: received 'a.jpg', allowed is a file that ends in .png"),
        (["--images", ".", "--scale", "1", "--cases", "0"], "--cases: received 0, allowed is a whole number >= 1"),
    ],
)
def test_bad_commands(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["radius", *words]) == 2
    assert error in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("taken", "error"), [("r.png", "a file that ends in .png"), ("r.txt", "can be written")])
def test_a_folder_in_the_place_of_a_file_is_named(
    taken: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / taken).mkdir()
    Image.fromarray(np.random.default_rng(0).normal(100, 10, (40, 40)).astype(np.uint8)).save(tmp_path / "a.png")
    words = ["--images", str(tmp_path), "--scale", "255", "-o", str(tmp_path / "r.png")]
    assert main(["radius", *words]) == 2
    assert error in capsys.readouterr().err.splitlines()[-1]


def test_constant_images_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(folder / "a.png")
    assert main(["radius", "--images", str(folder), "--scale", "255", "-o", str(tmp_path / "r.png")]) == 2
    assert "it is constant, empty or tiny" in capsys.readouterr().err.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["scans"]


# -------------------------------------------------------------------- nnU-Net


def nnunet_folders(folder: Path) -> dict[str, str]:
    """Three scans with a noise of 12 HU, and a plan that keeps their grid."""
    raw, pre = folder / "raw" / "Dataset900_CT", folder / "pre" / "Dataset900_CT"
    for part in (raw / "imagesTr", raw / "labelsTr", pre):
        part.mkdir(parents=True)
    for i in range(3):
        volume = phantom((32, 32, 32), 12.0, i).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), raw / "imagesTr" / f"case{i}_0000.nii.gz")
        nib.save(nib.Nifti1Image(np.zeros((32, 32, 32), np.uint8), np.eye(4)), raw / "labelsTr" / f"case{i}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 3,
                   "file_ending": ".nii.gz"}  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description))
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    part = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "spacing": [1.0] * 3,
        "patch_size": [32] * 3, "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True}, "architecture": {},
    }  # fmt: skip
    intensities = {"mean": 50.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
    plans = {
        "dataset_name": "Dataset900_CT", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "configurations": {"3d_fullres": part},
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }  # fmt: skip
    (pre / "nnUNetPlans.json").write_text(json.dumps(plans))
    return {"nnUNet_raw": str(folder / "raw"), "nnUNet_preprocessed": str(folder / "pre"),
            "nnUNet_results": str(folder / "results")}  # fmt: skip


def test_nnunet_by_its_own_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CT normalisation divides by 100 HU: 12 HU are 0.12."""
    for name, value in nnunet_folders(tmp_path).items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[int, str]:
        code = main(["radius", *words, "-o", str(tmp_path / "radius.png")])
        out, err = capsys.readouterr()
        return code, out + err

    code, said = run("-d", "900", "-c", "3d_fullres")
    assert code == 0, said
    assert "One network unit is 100 of the files' intensity (the same for all scans)." in said
    assert float(said.split("  eps: ")[1].split(",")[0]) == pytest.approx(0.12, rel=0.1)
    assert "resamples" not in said
    code, said = run("-d", "900", "-c", "2d")
    assert code == 2
    assert "-c: received '2d', allowed is one of 3d_fullres" in said
    assert "-d: received '901', allowed is a data set in nnUNet_raw" in run("-d", "901", "-c", "2d")[1]
    (tmp_path / "pre" / "Dataset900_CT" / "nnUNetPlans.json").unlink()
    assert "has none; run nnUNetv2_plan_and_preprocess -d 900" in run("-d", "900", "-c", "3d_fullres")[1]
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw: received None" in run("-d", "900", "-c", "3d_fullres")[1]
