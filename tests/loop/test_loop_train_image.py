"""Training the image regressor: it learns, it can be resumed exactly, and every loss has its say."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handloop.core.augmentation import AugmentOptions
from handloop.core.errors import FileFormatError, InputError
from handloop.hand.load import embedded_hand
from handloop.loop import image_measure
from handloop.loop.image_losses import ImageLoss, ImageLossWeights, errors_of
from handloop.loop.image_measure import Measured, regress
from handloop.loop.image_presets import PRESETS, with_network
from handloop.loop.picture_batches import BatchOptions, PictureBatches, TrainingBatch, looked_at_again
from handloop.loop.picture_source import MARGIN, PictureSource, open_source
from handloop.loop.train_image import ImageProgress, ImageTraining, ImageTrainOptions
from handloop.regressors.backbones import BackboneOptions
from handloop.regressors.image_heads import TAUGHT_SD
from handloop.regressors.image_network import ImageNetworkOptions, Regressed
from handloop.regressors.view import fingers_direction
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed (extra image)"
)
NETWORK = ImageNetworkOptions(BackboneOptions("small", 8), size=64, width=128)
STILL = AugmentOptions(rotation_deg=0, scale=0, shift=0, flip="to-right", colour=0)
TINY = ImageTrainOptions(4, 4, 1e-3, held_out=4, measure_every=2, precision="fp32", network=replace(NETWORK, width=16))
RESNET = BackboneOptions(
    "resnet",
    config={"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"},
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PictureSource:
    folder = tmp_path_factory.mktemp("pictures")
    produce(Order(folder, 16, PictureOptions(size=64, seed=3), "embedded", workers=1))
    return open_source(folder, embedded_hand(), "embedded", PictureOptions())


def states(training: ImageTraining) -> list[torch.Tensor]:
    return [*training.network.state_dict().values(), *training.mean.module.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("backbone", "head", "steps"),
    [
        (BackboneOptions("small", 8), "iterative", 80),
        (BackboneOptions("small", 8), "lifting", 80),
        pytest.param(RESNET, "attention", 100, marks=needs_transformers),
    ],
    ids=["iterative", "lifting", "attention"],
)
def test_eight_hands_can_be_learned_by_heart(
    source: PictureSource, backbone: BackboneOptions, head: str, steps: int
) -> None:
    network = replace(NETWORK, backbone=backbone, head=head, rounds=2)  # type: ignore[arg-type]
    options = ImageTrainOptions(steps, 8, 3e-3, held_out=8, precision="fp32", network=network, augment=STILL)
    training = ImageTraining(embedded_hand(), source, options)
    batch = training.batches[0]
    errors = []
    for step in range(steps):
        training._one_step(batch)
        if step in (0, steps - 1):
            with torch.no_grad():
                out = regress(training.network, batch)
                root = out.root(batch.camera(), 64)
                points = training.loss.kinematics.points(out.rotations, out.betas, root)
            errors.append(
                1000 * float((points - points[:, :1] - batch.joints + batch.joints[:, :1]).norm(dim=2).mean())
            )
    assert errors[0] > 60 and errors[1] < 6
    assert float((root[:, 2] / batch.root[:, 2]).log().abs().mean()) < 0.05


def test_a_seed_names_the_weights_and_bf16_trains(source: PictureSource) -> None:
    runs = []
    for options in (TINY, TINY, replace(TINY, seed=1), replace(TINY, precision="bf16")):
        training = ImageTraining(embedded_hand(), source, options)
        seen: list[ImageProgress] = []
        torch.manual_seed(len(runs))  # Nothing outside may matter.
        training.run(None, seen.append)
        runs.append(states(training))
        assert len(seen) == 4 and all(math.isfinite(p.loss) for p in seen)
        assert isinstance(seen[1].measured, Measured) and seen[1].measured.hands == 4 and seen[0].measured is None
        assert all(p.dtype == torch.float32 for p in training.network.parameters())
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2]) and not same(runs[0], runs[3])
    for plain, half in zip(runs[0], runs[3], strict=True):
        assert bool(torch.isfinite(half.nan_to_num(0.0)).all())
        torch.testing.assert_close(plain.nan_to_num(0.0), half.nan_to_num(0.0), atol=0.2, rtol=0.2)


@pytest.mark.parametrize("head", ["iterative", "attention"])
def test_components_heat_maps_and_masks_train(source: PictureSource, head: str) -> None:
    """The options of Boukhayma et al., with the biomechanical losses on top."""
    network = replace(NETWORK, width=16, rounds=1, pose="pca", heatmaps=True, head=head)  # type: ignore[arg-type]
    weights = replace(PRESETS["boukhayma"].weights, biomechanical=1.0)
    options = replace(TINY, steps=12, batch=8, held_out=0, learning_rate=3e-3, network=network, weights=weights)
    seen: list[ImageProgress] = []
    training = ImageTraining(embedded_hand(), source, options)
    before = [p.clone() for p in training.network.parameters()]
    training.run(None, seen.append)
    assert {"mask", "usual_pose", "biomechanical"} < set(seen[0].parts) and "fingers" not in seen[0].parts
    assert all(math.isfinite(value) for at in seen for value in at.parts.values())
    assert sum(at.loss for at in seen[-3:]) < sum(at.loss for at in seen[:3])
    moved = [not torch.equal(a, b) for a, b in zip(before, training.network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_the_direction_of_the_fingers_is_learned_first(source: PictureSource) -> None:
    """For its share of the steps nothing else moves; then everything does."""
    options = replace(TINY, steps=10, batch=8, held_out=0, network=replace(NETWORK, head="lifting", width=16))
    training = ImageTraining(embedded_hand(), source, options)
    start = {name: p.detach().clone() for name, p in training.network.named_parameters()}
    seen: list[ImageProgress] = []

    def moved() -> set[str]:
        now = training.network.named_parameters()
        return {name.split(".")[0] for name, p in now if not torch.equal(p, start[name])}

    def look(at: ImageProgress) -> None:
        seen.append(at)
        assert moved() == ({"upright"} if at.step <= 2 else {"upright", "backbone", "head"})

    training.run(None, look)
    assert set(seen[1].parts) == {"heading"} and {"heat", "located", "depths", "points"} < set(seen[2].parts)
    assert not any(p.requires_grad for p in training.network.upright.parameters()), "it is known by now"


def test_kernels_may_take_orthogonal_steps(source: PictureSource) -> None:
    """Those of the features do; colours, the layers of the lifter, norms and biases do not."""
    options = replace(TINY, held_out=0, kernel_rate=0.05, network=replace(NETWORK, head="lifting", width=16))
    training = ImageTraining(embedded_hand(), source, options)
    chosen = {id(p) for group in training.optimiser.param_groups if group["orthogonal"] for p in group["params"]}
    names = {name for name, p in training.network.named_parameters() if id(p) in chosen}
    assert names and all(name.startswith(("backbone.", "upright.backbone.", "head.pyramid.")) for name in names)
    colours = {name for name, p in training.network.named_parameters() if p.ndim == 4 and p.shape[1] == 3}
    assert colours and not names & colours
    everything = [p for group in training.optimiser.param_groups for p in group["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(training.network.parameters()))
    before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
    training.run()
    assert all(not torch.equal(p, before[name]) for name, p in training.network.named_parameters() if name in names)
    plain = ImageTraining(embedded_hand(), source, replace(options, kernel_rate=0.0))
    assert not any(group["orthogonal"] for group in plain.optimiser.param_groups)


def test_crops_may_be_looked_at_again(source: PictureSource, tmp_path: Path) -> None:
    """Each is in as many steps as it is given looks, in other company; what a step sees depends on its number alone."""
    pair = embedded_hand()
    options = BatchOptions(48, 2, 7, AugmentOptions(flip="to-right"), held_out=0)
    batches = PictureBatches.of(source, pair, options)
    seen = list(looked_at_again(batches, range(32), 2, 0))
    fresh = [batches[i] for i in range(16)]

    def crops(some: list[TrainingBatch]) -> list[bytes]:
        return [crop.numpy().tobytes() for batch in some for crop in batch.crops]

    assert crops(seen[:8]) == crops(fresh[:8]) and crops(seen[16:24]) == crops(fresh[8:])
    assert sorted(crops(seen[8:16])) == sorted(crops(fresh[:8])) and sorted(crops(seen[24:])) == sorted(
        crops(fresh[8:])
    )
    assert crops(seen[8:16]) != crops(fresh[:8])
    rows = {crop: points for b in fresh for crop, points in zip(crops([b]), b.points, strict=True)}
    assert all(torch.equal(rows[crop], points) for b in seen for crop, points in zip(crops([b]), b.points, strict=True))
    for start, stop in ((5, 9), (11, 20), (8, 8), (31, 32)):
        assert crops(list(looked_at_again(batches, range(start, stop), 2, 0))) == crops(seen[start:stop])
    thrice = list(looked_at_again(batches, range(24), 3, 0))
    assert sorted(crops(thrice)) == sorted(3 * crops(fresh[:8]))
    once = list(looked_at_again(batches, range(3, 5), 1, 0))
    assert crops(once) == crops(fresh[3:5])


@pytest.mark.parametrize("again", [{}, {"kernel_rate": 0.05, "looks": 2}])
def test_a_resumed_training_ends_the_same(source: PictureSource, tmp_path: Path, again: dict[str, float]) -> None:
    options = replace(TINY, **again)  # type: ignore[arg-type]
    file = tmp_path / "w.checkpoint"

    class Interrupted(Exception):
        pass

    def stop(at: ImageProgress) -> None:
        if at.step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        ImageTraining(embedded_hand(), source, options).run(file, stop)
    second = ImageTraining(embedded_hand(), source, options)
    second.resume(file)
    assert second.step == 2
    whole = ImageTraining(embedded_hand(), source, options)
    second.run()
    whole.run()
    assert same(states(second), states(whole))
    with pytest.raises(InputError, match="another model, other pictures or other options"):
        ImageTraining(embedded_hand(), source, replace(options, seed=5)).resume(file)
    file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileFormatError, match="checkpoint"):
        second.resume(file)
    torch.save({"format": "other"}, file)
    with pytest.raises(FileFormatError, match="not a checkpoint of an image"):
        second.resume(file)


def test_calibrated_deviations_hold_their_share(source: PictureSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_measure, "_LEAST_CALIBRATION", 8)
    training = ImageTraining(embedded_hand(), source, replace(TINY, held_out=12))
    network = training.averaged()
    image_measure.calibrate(network, training.batches.held_out())
    inside = []
    for batch in training.batches.held_out():
        with torch.no_grad():
            out = regress(network, batch)
            scaled = out.log_sd + network.log_sd_scale
            error = errors_of(out, out.root(batch.camera(), 64), batch)[0]
        inside.append(error.abs() < scaled[:, :16, None].exp())
    share = torch.cat(inside).double().mean((0, 2))
    # Twelve hands with three components each.
    assert float((share - math.erf(math.sqrt(0.5))).abs().max()) < 0.04
    monkeypatch.setattr(image_measure, "_LEAST_CALIBRATION", 100)
    fresh = training.averaged()
    image_measure.calibrate(fresh, training.batches.held_out())
    assert bool(fresh.log_sd_scale.isnan().all())


@pytest.fixture
def exact(source: PictureSource) -> tuple[TrainingBatch, Regressed]:
    """Labels with masks, and an answer that equals them."""
    options = replace(TINY, weights=ImageLossWeights(mask=1))
    batch = ImageTraining(embedded_hand(), source, options).batches[0]
    s = 2 * batch.focal.mean(1) / (64 * batch.root[:, 2])
    place = (batch.camera().project(batch.root[:, None].double())[:, 0] - 31.5).float() / 32 / s[:, None]
    located = (2 * batch.points + 1) / 64 - 1
    # A quarter turn, so that right becomes down.
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).repeat(4, 1, 1)
    turned = torch.stack([-located[..., 1], located[..., 0]], 2)
    cells = torch.arange(32.0)
    along = -0.5 * ((cells - (16 * (turned[..., None] + 1) - 0.5)) / TAUGHT_SD).square()
    heat = along[:, :, 1, :, None] + along[:, :, 0, None, :]
    pull = fingers_direction(located, batch.conf)
    heading = pull / pull.norm(dim=1, keepdim=True)
    depths = (batch.joints - batch.joints[:, 9:10])[..., 2] * s[:, None]
    weak = torch.cat([s[:, None], place], 1)
    return batch, Regressed(
        batch.rotations.clone(), torch.zeros(4, 2), batch.betas.clone(), heading, turn, heat, located,
        torch.zeros(4, 21), depths, weak, torch.zeros(4, 28),
    )  # fmt: skip


EVERYTHING = ImageLossWeights(vertices=1, mask=1, biomechanical=1, usual_pose=1)


def test_the_truth_costs_next_to_nothing(exact: tuple[TrainingBatch, Regressed]) -> None:
    batch, out = exact
    loss = ImageLoss.of(embedded_hand().right, EVERYTHING, torch.device("cpu"))
    parts = loss.parts(out, batch, 64, True)
    assert set(parts) == {name for name in vars(EVERYTHING) if name != "squared"}
    # The synthetic cameras have fx and fy 2 % apart, the crops' one focal length stands for both.
    for name in (
        "points",
        "fingers",
        "rotations",
        "betas",
        "log_depth",
        "reprojection",
        "vertices",
        "usual_pose",
        "located",
        "heat",
        "heading",
        "depths",
    ):
        assert float(parts[name]) < 0.03, name
    assert float(parts["mask"]) < 0.1
    wrong = replace(
        out,
        rotations=out.rotations.roll(1, 0),
        betas=out.betas + 1,
        weak=out.weak * 1.3,
        located=out.located + 0.2,
        heat=out.heat.roll(3, 3),
        depths=out.depths + 0.1,
        heading=-out.heading,
    )
    worse = loss.parts(replace(wrong, coefficients=torch.ones(4, 2)), batch, 64, True)
    for name in set(parts) - {"biomechanical", "usual_betas"}:
        assert float(worse[name]) > float(parts[name]) + 0.02, name


def test_missing_labels_cost_nothing_and_leave_gradients_finite(exact: tuple[TrainingBatch, Regressed]) -> None:
    batch, out = exact
    none = torch.zeros(4, dtype=torch.bool)
    nothing = replace(
        batch,
        conf=torch.zeros(4, 21),
        joints=torch.zeros(4, 21, 3),
        joints_weight=torch.zeros(4, 21),
        root=torch.zeros(4, 3),
        has_params=none,
        has_root=none,
        has_mask=none,
    )
    leaves = [getattr(out, name).clone().requires_grad_() for name in vars(out)]
    loss = ImageLoss.of(embedded_hand().right, EVERYTHING, torch.device("cpu"))
    parts = loss.parts(Regressed(*leaves), nothing, 64, True)
    values = {name: float(value.detach()) for name, value in parts.items()}
    for name in set(parts) - {"biomechanical", "usual_betas", "usual_pose"}:
        assert values[name] == 0, name
    torch.stack(list(parts.values())).sum().backward()
    for leaf in leaves:
        assert leaf.grad is None or bool(torch.isfinite(leaf.grad).all())
    assert values["usual_betas"] == pytest.approx(0.01 * float(out.betas.square().mean()))


def test_hands_do_not_depend_on_their_mates(exact: tuple[TrainingBatch, Regressed]) -> None:
    batch, out = exact
    loss = ImageLoss.of(embedded_hand().right, EVERYTHING, torch.device("cpu"))
    other = replace(out, betas=out.betas + 0.5, weak=out.weak * 1.1)
    whole = loss.parts(other, batch, 64, True)
    rows = [
        loss.parts(
            Regressed(*(t[i : i + 1] for t in vars(other).values())),
            TrainingBatch(*(t[i : i + 1] for t in vars(batch).values())),
            64,
            True,
        )
        for i in range(4)
    ]
    for name, value in whole.items():
        mean = sum(float(row[name]) for row in rows) / 4
        assert float(value) == pytest.approx(mean, rel=1e-4, abs=1e-6), name


def test_presets_and_refusals(source: PictureSource) -> None:
    assert set(PRESETS) == {"small", "spin", "hamer", "boukhayma"}
    changed = with_network(PRESETS["hamer"], BackboneOptions("dinov2"), 112).network
    assert changed.backbone.family == "dinov2" and changed.size == 112 and changed.head == "attention"
    with pytest.raises(InputError, match=r"16 hands, 8 of them held out, leave 8 .* batch of 9"):
        ImageTraining(embedded_hand(), source, replace(TINY, batch=9, held_out=8))
    with pytest.raises(InputError, match="at least 1 step"):
        replace(TINY, steps=0)
    with pytest.raises(InputError, match=r"learning rate -0\.1 and crops 0 looks, expected at least 0 and 1"):
        replace(TINY, kernel_rate=-0.1, looks=0)
    with pytest.raises(InputError, match="precision"):
        replace(TINY, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negative"):
        ImageLossWeights(points=-1)


def test_hands_held_out_are_as_large_as_those_learned_from(source: PictureSource) -> None:
    """Rolled crops hold their whole box and show smaller hands; still crops make up for it."""
    options = BatchOptions(
        96, 16, 0, AugmentOptions(rotation_deg=180, scale=0, shift=0, flip="to-right"), held_out=16, margin=1.5
    )
    batches = PictureBatches.of(source, embedded_hand(), options)

    def extent(batch: TrainingBatch) -> float:
        return float((batch.points.amax(1) - batch.points.amin(1)).norm(dim=1).mean())

    held_out = extent(next(iter(batches.held_out())))
    generator = torch.Generator().manual_seed(0)
    rolled = [extent(batches.augmented(range(16), options.augment, generator)[0]) for _ in range(20)]
    assert held_out == pytest.approx(sum(rolled) / len(rolled), rel=0.12)
    plain = extent(batches.augmented(range(16), STILL, generator)[0])
    assert held_out == pytest.approx(plain * MARGIN / 1.5, rel=0.02)
