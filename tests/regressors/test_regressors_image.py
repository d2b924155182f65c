"""The image regressor: every architecture, its camera, mirroring, files, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.camera import Camera
from handloop.core.crop import affine_crop, look_at_crop
from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.core.proposal import Proposal
from handloop.hand.load import embedded_hand
from handloop.regressors.backbones import BackboneOptions, build_backbone, load_pretrained, pretrained_backbone
from handloop.regressors.base import CropBatch
from handloop.regressors.image import ImageRegressor
from handloop.regressors.image_heads import TAUGHT_SD, moments
from handloop.regressors.image_network import ImageNetwork, ImageNetworkOptions, heatmaps_of
from handloop.regressors.lifter import Lifter
from handloop.regressors.lifting_head import LiftingHead

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed (extra image)"
)
TINY = ImageNetworkOptions(BackboneOptions("small", 4), size=64, width=16, rounds=2, components=6)
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
FAMILIES = {
    "resnet": BackboneOptions("resnet", config=_STAGES),
    "convnext": BackboneOptions("convnext", config={"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    "vit": BackboneOptions("vit", config={**_TOKENS, "intermediate_size": 32}),
    "dinov2": BackboneOptions("dinov2", config={**_TOKENS, "mlp_ratio": 2}),
}
HEADS = [
    replace(TINY, head=head, pose=pose, heatmaps=maps)
    for head, pose, maps in (
        ("iterative", "6d", False),
        ("attention", "6d", False),
        ("iterative", "pca", True),
        ("lifting", "6d", False),
        ("lifting", "6d", True),
        ("attention", "pca", False),
    )
]


def regressor_of(options: ImageNetworkOptions, seed: int = 0) -> ImageRegressor:
    """Random weights large enough that the answer depends on the picture."""
    hand = embedded_hand().right
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ImageNetwork(options, hand)
        for name, p in network.head.named_parameters():
            if p.ndim == 2 and any(key in name for key in ("step", "wrist", "fingers", "shape", "camera", "enter")):
                torch.nn.init.normal_(p, std=0.1)
        network.log_sd_scale.normal_()
    return ImageRegressor.of(network, hand)


def crops_of(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def cameras(n: int) -> Camera:
    return Camera(torch.full((n, 2), 512.0).double(), torch.tensor([[319.5, 239.5]]).double().repeat(n, 1))


def batch_of(n: int, size: int, is_right: bool = True, mirrored: bool = False) -> CropBatch:
    """Crops of boxes about the picture; `mirrored` puts the boxes where a mirror shows them."""
    g = torch.Generator().manual_seed(4)
    middle = torch.tensor([320.0, 240.0]) + 128 * (torch.rand(n, 2, generator=g) - 0.5).mul(64).round().div(64)
    if mirrored:
        middle[:, 0] = 639 - middle[:, 0]
    box = torch.cat([middle - 64, middle + 64], 1).double()
    sides = torch.full((n,), is_right)
    view = look_at_crop(cameras(n), box, size, torch.tensor([[640.0, 480.0]]).repeat(n, 1), flip=~sides)
    points = np.random.default_rng(0).uniform(100, 400, (n, 21, 2))
    if mirrored:
        points[..., 0] = 639 - points[..., 0]
    return CropBatch(crops_of(n, size), view, sides, Keypoints.from_arrays(points, sides))


def tensors(p: Proposal) -> list[torch.Tensor]:
    return [*p.params.tensors(), p.rotations_sd, p.betas_sd, p.bearing_sd, p.log_depth_sd]


@pytest.mark.parametrize("options", HEADS, ids=lambda o: f"{o.head}-{o.pose}")
def test_every_head_gives_one_hand_per_crop(options: ImageNetworkOptions) -> None:
    regressor = regressor_of(options)
    for n in (0, 1, 3):
        found = regressor.propose(batch_of(n, 64))
        assert len(found) == n and found.camera is not None
        assert all(bool(t.isfinite().all()) and t.dtype == torch.float64 for t in tensors(found))
    pictures = found.params.hand_pose
    assert float((pictures[0] - pictures[1]).abs().max()) > 1e-4


@needs_transformers
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inputs", [3, 24])
def test_every_family_gives_a_map_of_features(family: str, inputs: int) -> None:
    backbone = build_backbone(FAMILIES[family], inputs, 64).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, inputs, 64, 64))
    assert features.shape[:2] == (2, backbone.channels) == (2, 16)
    assert features.shape[2] == features.shape[3] == {"resnet": 2, "convnext": 2, "vit": 4, "dinov2": 4}[family]
    x = torch.randn(1, inputs, 64, 64)
    with torch.no_grad():
        maps = backbone.pyramid(x)
        torch.testing.assert_close(maps[-1], backbone(x))
    sides = {"resnet": [16, 8, 4, 2], "convnext": [16, 8, 4, 2], "vit": [4], "dinov2": [4]}[family]
    assert [tuple(each.shape[1:]) for each in maps] == [
        (width, side, side) for width, side in zip(backbone.widths, sides, strict=True)
    ]


@pytest.mark.parametrize("stages", [1, 3, 4])
def test_the_built_in_family_has_as_many_stages_as_asked_for(stages: int) -> None:
    backbone = build_backbone(BackboneOptions("small", 8, stages), 3, 64).eval()
    with torch.no_grad():
        maps = backbone.pyramid(torch.zeros(2, 3, 64, 64))
    shapes = [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2)]
    assert [tuple(each.shape) for each in maps] == shapes[:stages]
    assert backbone.widths == (8, 16, 32, 64)[:stages] and backbone.channels == backbone.widths[-1]
    for wrong in (0, 7):
        with pytest.raises(InputError, match=f"of {wrong} stages was asked for, expected 1 to 6"):
            BackboneOptions("small", 8, wrong)


@needs_transformers
def test_tokens_lie_where_their_patches_do() -> None:
    """A change in the lower left patch changes the lower left feature most."""
    for family in ("vit", "dinov2"):
        backbone = build_backbone(FAMILIES[family], 3, 64).eval()
        x = torch.zeros(1, 3, 64, 64)
        y = x.clone()
        y[:, :, 48:, :16] = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 5
        with torch.no_grad():
            change = (backbone(y) - backbone(x)).norm(dim=1)[0]
        assert int(change.argmax()) == 12


@needs_transformers
def test_weights_of_a_local_folder_are_taken_over(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_config(AutoConfig.for_model("resnet", **_STAGES)).eval()
    model.save_pretrained(tmp_path)
    options, weights = pretrained_backbone(tmp_path)
    assert options.family == "resnet" and json.dumps(dict(options.config))
    plain, wider = (build_backbone(options, inputs, 64).eval() for inputs in (3, 24))
    x = torch.randn(2, 24, 64, 64)
    for backbone in (plain, wider):
        load_pretrained(backbone, weights)
    with torch.no_grad():
        expected = model(x[:, :3]).last_hidden_state
        torch.testing.assert_close(plain(x[:, :3]), expected)
        # Heat-maps start without influence.
        torch.testing.assert_close(wider(x), expected)
    with pytest.raises(InputError, match=r"holds no backbone's config\.json"):
        pretrained_backbone(tmp_path / "nothing")
    with pytest.raises(InputError, match="lack"):
        load_pretrained(plain, {})
    with pytest.raises(InputError, match="refuses this configuration"):
        build_backbone(BackboneOptions("resnet", config={"depths": "x"}), 3, 64)


def test_torchvision_and_timm_are_never_imported() -> None:
    code = (
        "import sys\n"
        "sys.modules['torchvision'] = sys.modules['timm'] = None\n"
        "from handloop.regressors.backbones import *\n"
        "build_backbone(BackboneOptions('small', 4), 3, 64)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    if importlib.util.find_spec("transformers") is not None:
        code += f"build_backbone(BackboneOptions('resnet', config={_STAGES!r}), 3, 64)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install transformers"):
        build_backbone(FAMILIES["vit"], 3, 64)


def test_the_wrist_appears_where_the_network_says() -> None:
    """u = s (tx, ty) in units of half the crop, at a depth of 2 f / (S s); both kinds of crops."""
    regressor = regressor_of(TINY)
    for make in (look_at_crop, affine_crop):
        batch = batch_of(5, 64)
        box = torch.tensor([[100.0, 80.0, 228.0, 208.0]]).double().repeat(5, 1)
        view = make(cameras(5), box, 64, torch.tensor([[640.0, 480.0]]).repeat(5, 1))
        batch = replace(batch, view=view)
        found = regressor.propose(batch)
        with torch.no_grad():
            out = regressor.network(batch.crops, view.camera_out)
        wrist = found.params.transl + regressor.kinematics.root_offset(found.params.betas)
        crop_px = view.pixels(cameras(5).project(wrist[:, None]))[:, 0]
        expected = 31.5 + 32 * (out.weak[:, :1] * out.weak[:, 1:]).double()
        torch.testing.assert_close(crop_px, expected, atol=1e-3, rtol=0)
        depth = view.points(wrist[:, None])[:, 0, 2]
        torch.testing.assert_close(
            depth, 2 * view.camera_out.focal[:, 0] / (64 * out.weak[:, 0].double()), rtol=1e-5, atol=0
        )


def test_the_points_are_said_in_the_picture() -> None:
    """Where the network sees them in the crop, through the crop's own change of view, on both sides."""
    regressor = regressor_of(HEADS[3])
    right, left = batch_of(4, 64), batch_of(4, 64, is_right=False, mirrored=True)
    found = regressor.look(right).keypoints
    with torch.no_grad():
        out = regressor.network(right.crops, right.view.camera_out)
    crop_px = right.view.pixels(found.xy)
    torch.testing.assert_close(crop_px, 31.5 + 32 * out.located.double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.conf, (1 + (out.located_sd.double() / 0.05) ** 2) ** -0.5, atol=1e-6, rtol=0)
    mirrored = regressor.look(left).keypoints
    torch.testing.assert_close(639 - mirrored.xy[..., 0], found.xy[..., 0], atol=1e-3, rtol=0)
    torch.testing.assert_close(mirrored.xy[..., 1], found.xy[..., 1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", HEADS[:5], ids=lambda o: f"{o.head}-{o.pose}")
def test_a_left_hand_is_the_mirror_of_its_right_one(options: ImageNetworkOptions) -> None:
    """The same crops, from the mirrored picture."""
    regressor = regressor_of(options)
    right = regressor.propose(batch_of(4, 64))
    left = regressor.propose(batch_of(4, 64, is_right=False, mirrored=True))
    for name, a, b in zip("opbt", right.params.mirrored().tensors(), left.params.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)
    assert not left.is_right.any()
    torch.testing.assert_close(right.rotations_sd, left.rotations_sd, rtol=1e-4, atol=0)
    with pytest.raises(InputError, match="a crop shows a left hand"):
        regressor.propose(replace(batch_of(4, 64), is_right=torch.zeros(4, dtype=torch.bool)))


@pytest.mark.parametrize("options", HEADS[:5], ids=lambda o: f"{o.head}-{o.pose}")
def test_saved_and_loaded_answers_are_equal_to_the_bit(options: ImageNetworkOptions, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    first = regressor_of(options)
    first.save(path)
    second = ImageRegressor.load(path, embedded_hand())
    assert second.network.options == options
    for a, b in zip(tensors(first.propose(batch_of(3, 64))), tensors(second.propose(batch_of(3, 64))), strict=True):
        assert torch.equal(a, b)
    # Nothing of the hand model itself lies in the file.
    assert not {"components", "pose_mean"} & set(second.network.state_dict())


@needs_transformers
def test_a_transformers_network_is_saved_and_loaded(tmp_path: Path) -> None:
    options = replace(TINY, backbone=FAMILIES["dinov2"], head="attention")
    first = regressor_of(options)
    first.save(tmp_path / "w.safetensors")
    second = ImageRegressor.load(tmp_path / "w.safetensors", embedded_hand())
    for a, b in zip(tensors(first.propose(batch_of(2, 64))), tensors(second.propose(batch_of(2, 64))), strict=True):
        assert torch.equal(a, b)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path, pair = tmp_path / "w.safetensors", embedded_hand()
    with pytest.raises(InputError, match=r"does not end in .safetensors"):
        ImageRegressor.load(tmp_path / "w.pt", pair)
    with pytest.raises(FileFormatError, match="description cannot be read"):
        ImageRegressor.load(path, pair)
    regressor_of(TINY).save(path)
    about = path.with_suffix(".json")
    text = about.read_text(encoding="utf-8")
    about.write_text(text.replace(pair.right.digest, "0123abcd"), encoding="utf-8")
    with pytest.raises(InputError, match=r"trained with the hand model .* \(0123abcd\), not with"):
        ImageRegressor.load(path, pair)
    about.write_text(text.replace('"width": 16', '"width": 32'), encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"not the weights that w\.json describes"):
        ImageRegressor.load(path, pair)
    about.write_text(text.replace("handloop image regressor 1", "handloop lifter 1"), encoding="utf-8")
    with pytest.raises(FileFormatError, match="no image regressor"):
        ImageRegressor.load(path, pair)
    about.write_text("[]", encoding="utf-8")
    with pytest.raises(FileFormatError, match="no table"):
        ImageRegressor.load(path, pair)


def test_wrong_crops_and_options_are_named() -> None:
    network = regressor_of(TINY).network
    with pytest.raises(InputError, match=r"expects \(N, 3, 64, 64\) without"):
        network(crops_of(1, 32), cameras(1))
    with pytest.raises(InputError, match="with heat-maps"):
        network(crops_of(1, 64), cameras(1), torch.zeros(1, 21, 64, 64))
    with pytest.raises(InputError, match="keypoints"):
        regressor_of(HEADS[2]).propose(replace(batch_of(1, 64), keypoints=None))
    with pytest.raises(InputError, match="expected at least 32"):
        replace(TINY, size=8)
    with pytest.raises(InputError, match="choose the pose 6d"):
        replace(TINY, head="lifting", pose="pca")
    with pytest.raises(InputError, match="the backbone 'vgg' is unknown"):
        BackboneOptions("vgg")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 crops but keypoints of 1"):
        batch = batch_of(2, 64)
        assert batch.keypoints is not None
        replace(batch, keypoints=batch.keypoints.select([0]))


def test_the_answer_depends_on_the_heat_maps() -> None:
    regressor = regressor_of(HEADS[2])
    batch = batch_of(2, 64)
    elsewhere = replace(batch, keypoints=Keypoints.from_arrays(np.full((2, 21, 2), 310.0)))
    a, b = regressor.propose(batch), regressor.propose(elsewhere)
    assert float((a.params.hand_pose - b.params.hand_pose).abs().max()) > 1e-4


@needs_transformers
def test_embeddings_of_another_size_are_interpolated(tmp_path: Path) -> None:
    """A network trained at ViT's default of 224 px, used at 64."""
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model("vit", **FAMILIES["vit"].config)).save_pretrained(tmp_path)
    options, weights = pretrained_backbone(tmp_path)
    backbone = build_backbone(options, 3, 64).eval()
    load_pretrained(backbone, weights)
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 4, 4)


def test_heat_maps_peak_at_their_points() -> None:
    points = torch.tensor([[10.0, 20.0]]).repeat(21, 1)[None]
    conf = torch.ones(1, 21)
    conf[0, 3] = 0
    maps = heatmaps_of(points, conf, 64)
    assert float(maps[0, 0, 20, 10]) == 1 and not maps[0, 3].any()
    assert float(maps[0, 0, 20, 11]) == pytest.approx(float(np.exp(-0.5 / 1.6**2)), rel=1e-5)


def test_maps_of_likelihood_say_where_and_how_surely() -> None:
    """A Gaussian of the width that is taught means certainty; two equal peaks lie half their distance from the mean."""
    x = torch.arange(24.0)
    along = lambda at: -0.5 * ((x - at) / TAUGHT_SD).square()  # noqa: E731
    sharp = along(9.0)[:, None] + along(14.0)
    both = torch.logaddexp(along(4.5)[:, None] + along(11.5), along(18.5)[:, None] + along(11.5))
    mean, sd = moments(torch.stack([sharp, both])[None])
    torch.testing.assert_close(mean[0], torch.tensor([[2 * 14.5 / 24 - 1, 2 * 9.5 / 24 - 1], [0.0, 0.0]]))
    assert float(sd[0, 0]) < 0.02
    # 7 cells of 1/12 along y, none along x.
    assert float(sd[0, 1]) == pytest.approx(7 / 12 / 2**0.5, rel=1e-3)


@needs_transformers
@pytest.mark.parametrize("family", ["resnet", "dinov2"])
def test_the_lifting_head_takes_any_backbone(family: str) -> None:
    network = ImageNetwork(replace(TINY, backbone=FAMILIES[family], head="lifting"), embedded_hand().right).eval()
    with torch.no_grad():
        out = network(crops_of(2, 64), cameras(2))
    assert out.heat.shape == (2, 21, 16, 16) and out.depths.shape == (2, 21)


def test_an_untrained_lifting_head_says_what_the_lifter_says() -> None:
    """Of the points where the network sees them, whatever else is in the picture."""
    hand = embedded_hand().right
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = ImageNetwork(replace(TINY, head="lifting"), hand).eval()
    head = network.head
    assert isinstance(head, LiftingHead)
    shipped = Lifter.shipped()
    head.lifter.load_state_dict(shipped.network.state_dict())
    batch = batch_of(3, 64)
    camera = batch.view.camera_out
    with torch.no_grad():
        out = network(batch.crops, camera)
        px = (64 * (out.located + 1) - 1) / 2
        rays = ((px - camera.princpt[:, None]) / camera.focal[:, None]).float()
        conf = (1 + (out.located_sd / 0.05).square()).rsqrt()
        expected = shipped.network(rays, conf, torch.zeros(3, 21, 3), torch.zeros(3, 10))
    torch.testing.assert_close(out.rotations, expected.rotations)
    torch.testing.assert_close(out.betas, expected.betas)
    torch.testing.assert_close(out.root(camera, 64), expected.root, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.log_sd, expected.log_sd)


def test_uncalibrated_deviations_are_no_opinion() -> None:
    with torch.random.fork_rng(devices=[]):
        network = ImageNetwork(TINY, embedded_hand().right)
    found = ImageRegressor.of(network, embedded_hand().right).propose(batch_of(1, 64))
    assert bool(found.rotations_sd.isnan().all()) and bool(found.log_depth_sd.isnan().all())
    assert bool(found.params.hand_pose.isfinite().all())
