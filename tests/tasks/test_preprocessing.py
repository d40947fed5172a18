"""The spec of preprocessing against torchvision's and timm's own transforms, and its script."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from compress.tasks.preprocessing import (
    COLORS,
    INTERPOLATIONS,
    PLAIN,
    Fit,
    Preprocessing,
    Settings,
    script,
)
from compress.zoo.image_files import decode

SIDES = st.integers(1, 90)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@given(
    width=SIDES, height=SIDES, to=SIDES, crop=SIDES, kind=st.sampled_from(["BILINEAR", "BICUBIC"])
)
@settings(max_examples=150)
def test_a_shorter_side_and_a_crop_are_torchvisions(
    width: int, height: int, to: int, crop: int, kind: str
) -> None:
    image = noise(width, height)
    expected = tv.center_crop(tv.resize(image, [to], InterpolationMode[kind]), [crop])
    fit = Fit((crop, crop), (to, to), "shorter", kind.lower())  # type: ignore[arg-type]
    np.testing.assert_array_equal(fit(image), np.asarray(expected))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(24, 24), (20, 31)])
def test_every_crop_mode_is_timms(mode: str, size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("timm.data", reason="needs timm")
    modes: dict[str, Any] = {"center": "shorter", "squash": "exact", "border": "longer"}
    mean = (0.485, 0.456, 0.406)
    for share in (0.875, 0.9, 1.0, 1.3):
        own = transforms.create_transform(
            (3, *size), crop_pct=share, crop_mode=mode, interpolation="bicubic", normalize=False
        )
        chosen = Settings(mean=mean, crop_pct=share, resize=modes[mode], interpolation="bicubic")
        fit = chosen.fit(size)
        for seed, shape in enumerate([(40, 30), (31, 64), (20, 20), (90, 11)]):
            image = noise(*shape, seed)
            expected = own(image).numpy().transpose(1, 2, 0)
            np.testing.assert_array_equal(fit(image), expected, err_msg=f"{share} {shape}")


def test_without_antialiasing_pixels_are_interpolated_where_they_lie() -> None:
    levels = np.arange(0, 160, 20, dtype=np.uint8)[None].repeat(4, 0)
    half = Fit((2, 4), (2, 4), "exact", antialias=False)(Image.fromarray(levels))
    np.testing.assert_array_equal(half, [[10, 50, 90, 130]] * 2)  # between each two


def test_what_is_not_to_be_resized_must_have_its_size() -> None:
    fit = Settings(size=(8, 9), resize="none").fit((1, 1))
    assert fit(noise(9, 8)).shape == (8, 9, 3)
    with pytest.raises(ValueError, match="9x8 pixels, not 8x9, and resize is 'none'"):
        fit(noise(8, 9))


@st.composite
def specs(draw: st.DrawFn) -> Preprocessing:
    size = (draw(SIDES), draw(SIDES))
    colors: Any = draw(st.sampled_from(COLORS))
    channels = 1 if colors == "L" else 3
    fit = Fit(
        size,
        draw(
            st.one_of(st.just(size), st.tuples(SIDES, SIDES), SIDES.map(lambda side: (side, side)))
        ),
        draw(st.sampled_from(["shorter", "longer", "exact"])),
        draw(st.sampled_from(INTERPOLATIONS if (smooth := draw(st.booleans())) else PLAIN)),
        smooth,
        draw(st.booleans()),
        draw(st.one_of(st.just(()), st.tuples(*[st.integers(0, 255)] * channels))),
    )
    values = st.floats(0.1, 0.9)
    mean, std = (tuple(draw(values) for _ in range(channels)) for _ in range(2))
    return Preprocessing(
        channels, size, mean, std, fit, draw(st.sampled_from([1 / 255, 1.0])), colors
    )


@given(spec=specs(), width=SIDES, height=SIDES)
@settings(max_examples=150)
def test_the_script_gives_the_same_inputs(
    tmp_path_factory: pytest.TempPathFactory, spec: Preprocessing, width: int, height: int
) -> None:
    assert spec.fit is not None
    path = tmp_path_factory.mktemp("script") / "image.png"
    image = noise(width, height)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(path, exif=exif)
    made: dict[str, Any] = {}
    exec(compile(script(spec), "preprocess.py", "exec"), made)
    pixels = torch.tensor(decode(path, spec.fit, spec.channels)).permute(2, 0, 1)
    expected = spec.normalize(pixels[None])
    np.testing.assert_array_equal(made["preprocess"](path), expected.numpy())
    assert (made["preprocess"](path).shape) == (1, spec.channels, *spec.size)


def test_the_script_answers_images_by_the_file_beside_it(tmp_path: Path) -> None:
    """The file here takes the channel with the largest mean."""
    spec = Preprocessing(3, (4, 6), (0.0,) * 3, (1.0,) * 3, Fit((4, 6), (8, 8)))
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    options = {"keepdims": 0}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["input", "axes"], ["logits"], **options)],
        "means",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 4, 6])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 3])],
        [axes],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.helper.set_model_props(model, {"labels": json.dumps(["red", "green", "blue"])})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "preprocess.py").write_text(script(spec))
    colours = {"green.png": (10, 200, 30), "blue.png": (10, 20, 130)}
    for name, colour in colours.items():
        Image.new("RGB", (30, 20), colour).save(tmp_path / name)
    command = [sys.executable, str(tmp_path / "preprocess.py"), *colours]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["green.png green", "blue.png blue"]


def test_a_sliver_keeps_a_pixel() -> None:
    assert Fit((8, 8), (8, 8), "longer")(noise(1, 90)).shape == (8, 8, 3)
    assert Fit((8, 9), (8, 9), "shorter")(noise(90, 1)).shape == (8, 9, 3)


def test_blue_is_the_first_of_bgr() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    spec = Preprocessing(3, (4, 5), (0.1, 0.5, 0.3), (0.2, 0.3, 0.4), colors="BGR")
    torch.testing.assert_close(spec.normalize(images)[:, 0], (images[:, 2] / 255 - 0.1) / 0.2)


@pytest.mark.parametrize("kind", ["share", "float", "deep", "wide", "plain"])
def test_the_script_reads_levels_of_every_kind(tmp_path: Path, kind: str) -> None:
    shades = np.random.default_rng(0).integers(0, 256, (9, 9))
    levels, suffix = {
        "share": ((shades / 255).astype(np.float32), "tif"),
        "float": (shades.astype(np.float32), "tif"),
        "deep": ((shades * 257).astype(np.uint16), "png"),
        "wide": ((shades * 257).astype(np.int32), "tif"),
        "plain": (shades.astype(np.int32), "tif"),
    }[kind]
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(levels).save(path)
    spec = Preprocessing(3, (9, 9), (0.5,) * 3, (0.25,) * 3, Fit((9, 9), (9, 9)))
    made: dict[str, Any] = {}
    exec(compile(script(spec), "preprocess.py", "exec"), made)
    pixels = torch.tensor(decode(path, Fit((9, 9), (9, 9)))).permute(2, 0, 1)
    np.testing.assert_array_equal(made["preprocess"](path), spec.normalize(pixels[None]).numpy())
    np.testing.assert_array_equal(pixels[0].numpy(), shades)


def test_what_is_said_first_counts() -> None:
    weights = Settings(mean=(0.5,) * 3, size=(224, 224), to=(232, 232), interpolation="bicubic")
    assert Settings().over(weights) == weights
    assert Settings().over(weights).fit((9, 9)).to == (232, 232)
    own = Settings(size=(160, 160), crop_pct=0.8).over(weights)
    assert own.fit((9, 9)) == Fit((160, 160), (200, 200), "shorter", "bicubic")
    assert own.mean == (0.5,) * 3
    assert own.levels().fit((9, 9)) == Fit((9, 9), (9, 9))
    assert math.isclose(own.crop_pct or 0, 0.8)


def test_the_mean_of_others_comes_to_the_order_of_the_colors() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    blue = Settings(colors="BGR")
    for known in (Settings(mean=mean, std=std), Settings(mean=mean, std=std, colors="RGB")):
        assert blue.over(known) == Settings(mean=mean[::-1], std=std[::-1], colors="BGR")
        given = Settings(mean=(0.7, 0.8, 0.9), colors="BGR").over(known)
        assert (given.mean, given.std) == ((0.7, 0.8, 0.9), std[::-1]), "what is given has it"
        assert Settings().over(known) == known
    recorded = Settings(mean=mean, std=std, colors="BGR")
    assert Settings(colors="RGB").over(recorded).mean == mean[::-1]
    assert Settings().over(recorded) == blue.over(recorded) == recorded
    assert recorded.over(Settings(mean=(0.0,) * 3)).mean == mean
    assert Settings(colors="L").over(Settings(mean=(0.5,))).mean == (0.5,)


def test_a_spec_under_other_colors_sees_the_same_levels_in_another_order() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    spec = Preprocessing(3, (4, 5), (0.1, 0.5, 0.3), (0.2, 0.3, 0.4))
    blue = spec.under(Settings(colors="BGR"), None)
    torch.testing.assert_close(blue.normalize(images), spec.normalize(images).flip(1))
    assert blue.under(Settings(colors="RGB"), None) == spec


@pytest.mark.parametrize("colors", COLORS)
@pytest.mark.parametrize("scale", [1 / 255, 1.0])
def test_what_is_missing_is_filled_with_the_mean_of_its_own_channel(
    colors: Any, scale: float, tmp_path: Path
) -> None:
    shares = (0.5,) if colors == "L" else (0.1, 0.5, 0.9)
    mean, std = (tuple(255 * scale * share for share in by) for by in (shares, shares[::-1]))
    chosen = Settings(mean, std, (8, 8), resize="longer", colors=colors, scale=scale)
    spec = Preprocessing(len(mean), (8, 8), mean, std, chosen.fit((1, 1)), scale, colors)
    Image.new("RGB", (8, 4), "white").save(tmp_path / "wide.png")
    made: dict[str, Any] = {}
    exec(compile(script(spec), "preprocess.py", "exec"), made)
    assert spec.fit is not None
    pixels = torch.tensor(decode(tmp_path / "wide.png", spec.fit, spec.channels)).permute(2, 0, 1)
    [by_script] = made["preprocess"](tmp_path / "wide.png")
    for inputs in (spec.normalize(pixels[None])[0].numpy(), by_script):
        half_a_level = 0.5 * scale / np.array(std)[:, None, None] + 1e-6
        assert (abs(inputs[:, [0, 1, 6, 7]]) <= half_a_level).all()
        assert (inputs[:, 2:6] > half_a_level).all()


def test_a_mean_above_the_highest_level_is_none() -> None:
    for mean, scale in ((1.0, 1 / 255), (1.0, 0.00392), (255.0, 1.0), (1.0, 2 / 255), (-1.0, 1.0)):
        Preprocessing(1, (2, 2), (mean,), (0.5,), scale=scale)
    for mean, scale in ((1.1, 1 / 255), (128.0, 1 / 255), (2.5, 2 / 255), (300.0, 1.0)):
        with pytest.raises(ValueError, match="give mean and std in levels times scale, or the sca"):
            Preprocessing(3, (2, 2), (0.0, 0.0, mean), (0.5,) * 3, scale=scale)


def test_it_is_described_in_words_and_json(tmp_path: Path) -> None:
    chosen = Settings(mean=(0.5,) * 3, std=(0.25,) * 3, size=(224, 224), crop_pct=0.875)
    spec = Preprocessing(3, (224, 224), (0.5,) * 3, (0.25,) * 3, chosen.fit((1, 1)))
    assert spec.words() == "shorter side to 256, bilinear, centre 224x224, mean 0.5, std 0.25"
    assert spec.to_json()["resize"]["to"] == [256, 256]
    with pytest.raises(ValueError, match="colors is BGR"):
        Preprocessing(1, (2, 2), (0.5,), (0.5,), colors="BGR")
