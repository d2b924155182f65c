"""`handloop fit` from end to end, and what the command says and returns when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import handloop.job
from handloop.cli import main
from handloop.commands import FitCommand

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"
TWO_FILES = [DATA / "openpose" / "00_spread_keypoints.json", DATA / "openpose" / "02_victory_rest_keypoints.json"]

SHAPES: dict[str, tuple[int, ...]] = {
    **{"global_orient": (3,), "hand_pose": (45,), "betas": (10,), "transl": (3,)},
    **{"is_right": (), "id": (), "source": (), "image": (), "frame": (), "camera_known": ()},
    **{"joints": (21, 3), "keypoints_3d": (21, 3), "keypoints_2d": (21, 3), "keypoints_2d_fit": (21, 2)},
    **{"focal_length": (2,), "princpt": (2,), "image_size": (2,)},
    **{"energy": (), "rms_px": (), "status": (), "steps": (), "hypothesis_gap": ()},
}
"""One row per hand, by key of results.npz."""
TEXTS = ("flat_hand_mean", "tip_set", "joint_order", "joint_definition", "left_shapedirs", "hand_model")
"""One text for all hands."""

Person = Callable[..., Path]


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MANO file of whoever runs the tests; messages on one line each."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="module")
def right_hand() -> np.ndarray:
    """(21, 3) a hand as OpenPose found it."""
    return np.load(DATA / "hands.npz")["keypoints_2d"][0].astype(np.float64)


@pytest.fixture
def openpose(tmp_path: Path) -> Person:
    """Write one OpenPose file with one right hand."""

    def write(name: str, points: np.ndarray | list[float], folder: str = "in") -> Path:
        flat = points if isinstance(points, list) else points.ravel().tolist()
        path = tmp_path / folder / f"{name}_keypoints.json"
        path.parent.mkdir(exist_ok=True)
        person = {"hand_left_keypoints_2d": [0.0] * 63, "hand_right_keypoints_2d": flat}
        path.write_text(json.dumps({"version": 1.3, "people": [person]}))
        return path

    return write


def fit(*args: object) -> int:
    """The exit status of `handloop fit ARGS`, on the CPU and without a report."""
    return main(["fit", *map(str, args), "--device", "cpu", "--report-hands", "0"])


# The whole way.


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that one run over the bundled OpenPose files writes, from the installed command."""
    out = tmp_path_factory.mktemp("demo")
    args = ["fit", str(DATA / "openpose"), "--out", str(out), "--save", "overlays", "meshes", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "handloop.cli", *args], capture_output=True, text=True, cwd=out, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "10 of 10 hands fitted" in done.stderr
    return out


def test_one_run_writes_everything(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {
        *("results.npz", "summary.json", "report.html", "report_files", "overlays", "meshes")
    }
    assert len(list((demo / "overlays").glob("*.png"))) == len(list((demo / "meshes").glob("*.obj"))) == 10
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert "02_victory_rest:left" in page and (demo / "report_files" / "data.js").is_file()


def test_keys_of_results(demo: Path) -> None:
    results = np.load(demo / "results.npz", allow_pickle=False)
    n = len(results["id"])
    assert n == 10
    for key, shape in SHAPES.items():
        assert results[key].shape == (n, *shape), key
    for key in TEXTS:
        assert results[key].shape == (), key
    terms = [key for key in results.files if key.startswith("energy_") and results[key].shape == (n,)]
    np.testing.assert_allclose(sum(results[key] for key in terms), results["energy"], rtol=1e-6)
    documented = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    undocumented = [key for key in results.files if f"`{key}`" not in documented and key not in terms]
    assert undocumented == [], "docs/outputs.md lacks keys of results.npz"
    for key in ("joints", "keypoints_2d_fit", "hand_pose", "energy", "rms_px"):
        assert np.isfinite(results[key]).all(), key
    assert not results["camera_known"].any() and (results["focal_length"] == 800).all()
    assert results["id"][0] == "00_spread:left" and not results["is_right"][0]


def test_the_fit_meets_the_points(demo: Path) -> None:
    results = np.load(demo / "results.npz")
    given, found = results["keypoints_2d"], results["keypoints_2d_fit"]
    seen = given[..., 2] > 0
    error = np.linalg.norm(found - given[..., :2], axis=-1)
    box = np.array([np.ptp(hand[s][:, :2], axis=0).max() for hand, s in zip(given, seen, strict=True)])
    assert (np.array([np.median(e[s]) for e, s in zip(error, seen, strict=True)]) < 0.03 * box).all()


def test_summary(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["hands"] == summary["fitted"] == 10 and summary["left"] == 4
    assert summary["status"]["converged"] + summary["status"]["max_steps"] == 10
    assert summary["files_read"] == 8 and summary["hands_empty"] == 6 and summary["problems"] == []
    # One picture beside each file.
    assert len(summary["skipped"]) == 8 and summary["not_fitted"] == []
    assert any("depth and size are not metric" in note for note in summary["notes"])


def test_meshes_are_the_results(demo: Path) -> None:
    lines = (demo / "meshes" / sorted(p.name for p in (demo / "meshes").iterdir())[0]).read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], dtype=float)
    assert vertices.shape == (778, 3) and sum(line.startswith("f ") for line in lines) == 1538
    joints = np.load(demo / "results.npz")["joints"][0]
    assert np.linalg.norm(vertices[:, None] - joints[None], axis=-1).min(0).max() < 0.03


# The same again.


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert fit(*TWO_FILES, "--out", tmp_path / name) == 0
    assert (tmp_path / "one/results.npz").read_bytes() == (tmp_path / "two/results.npz").read_bytes()


def test_a_normalised_camera_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = np.random.default_rng(0).uniform(100, 300, (2, 21, 2))
    np.savez(tmp_path / "hands.npz", keypoints_2d=points, K=np.array([[1.1, 0, 0.5], [0, 1.4, 0.5], [0, 0, 1.0]]))
    assert fit(tmp_path / "hands.npz", "--out", tmp_path / "out") == 2
    assert "is K normalised?" in " ".join(capsys.readouterr().err.split())


def test_resume_gives_the_bytes_of_a_run_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [*TWO_FILES, "--out"]
    # Not in parts at all, so that parts are shown not to matter either.
    assert fit(*inputs, tmp_path / "whole") == 0
    monkeypatch.setattr(handloop.job, "PART", 1)
    original, calls = handloop.job.fit_keypoints, []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(handloop.job, "fit_keypoints", interrupted)
    out = tmp_path / "broken"
    assert fit(*inputs, out) == 130
    assert not (out / "results.npz").exists() and len(list((out / "parts").glob("*.npz"))) == 2
    assert fit(*inputs, out, "--resume") == 0
    assert len(calls) == 4, "only the hand that was missing was to be fitted"
    assert not (out / "parts").exists()
    assert (out / "results.npz").read_bytes() == (tmp_path / "whole/results.npz").read_bytes()


def test_resume_with_other_settings_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fit(TWO_FILES[0], "--out", out, "--noise", 3) == 0
    kept = (out / "results.npz").read_bytes()
    # As if the run had ended before its parts were merged.
    monkeypatch.setattr(handloop.job.shutil, "rmtree", lambda *args, **kwargs: None)
    assert fit(TWO_FILES[0], "--out", out, "--noise", 3) == 0
    monkeypatch.undo()
    assert fit(TWO_FILES[0], "--out", out, "--noise", 6, "--resume") == 0
    assert "starting afresh" in capsys.readouterr().err
    assert (out / "results.npz").read_bytes() != kept


def test_joint_noise_by_name(tmp_path: Path) -> None:
    outs = {name: tmp_path / name for name in ("plain", "uniform", "coco_wholebody")}
    assert fit(TWO_FILES[0], "--out", outs["plain"]) == 0
    for name in ("uniform", "coco_wholebody"):
        assert fit(TWO_FILES[0], "--out", outs[name], "--joint-noise", name) == 0
    plain, uniform, coco = (np.load(out / "results.npz")["hand_pose"] for out in outs.values())
    assert (plain == uniform).all() and np.abs(coco - plain).max() > 1e-4


# What the files may be.


def test_bad_files_are_named_and_the_rest_is_fitted(
    openpose: Person, right_hand: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = openpose("good", right_hand)
    folder = good.parent
    (folder / "truncated_keypoints.json").write_text(good.read_text()[:300])
    openpose("short", right_hand.ravel().tolist()[:59])
    (folder / "binary.json").write_bytes(bytes(range(256)))
    (folder / "nothing.json").write_bytes(b"")
    (folder / "else.json").write_text('{"weather": "fine"}')
    np.savez(folder / "transposed.npz", keypoints_2d=np.zeros((3, 2, 21)))
    openpose("huge", np.where([True, True, False], right_hand * 1e9, right_hand))
    openpose("one_place", np.where([True, True, False], 100.0, right_hand))
    openpose("one_point", right_hand * (np.arange(21) == 8)[:, None])
    (folder / "readme.txt").write_text("of another kind")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert fit(folder, tmp_path / "empty", tmp_path / "missing", "--out", out, "--image-size", 640, 480) == 1

    summary = json.loads((out / "summary.json").read_text())
    said = {Path(problem["path"]).name: problem["message"] for problem in summary["problems"]}
    expected = {
        "truncated_keypoints.json": "the file is truncated",
        "short_keypoints.json": "59 numbers, expected 63",
        "binary.json": "not valid JSON",
        "nothing.json": "the file is empty",
        "else.json": "expected OpenPose's 'people'",
        "transposed.npz": "expected (N, 21, 2) or (N, 21, 3)",
        "huge_keypoints.json": "beyond 1e6",
        "empty": "the folder is empty",
        "missing": "no such file or folder",
    }
    assert set(said) == set(expected)
    for name, words in expected.items():
        assert words in said[name] and said[name].endswith(".") and "\n" not in said[name]
    assert summary["not_fitted"] == [
        {"id": "one_place:right", "status": "too_few_points"},
        {"id": "one_point:right", "status": "too_few_points"},
    ]
    assert len(summary["skipped"]) == 1
    results = np.load(out / "results.npz")
    assert results["id"].tolist() == ["good:right", "one_place:right", "one_point:right"]
    assert np.isfinite(results["hand_pose"]).all(1).tolist() == [True, False, False]
    err = capsys.readouterr().err
    assert "Traceback" not in err
    for name, message in said.items():
        assert any(name in line and message in line for line in err.splitlines()), name
    assert "one_place:right" in err and "one_point:right" in err


def test_points_that_are_no_numbers_count_as_missing(
    openpose: Person, right_hand: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = right_hand.copy()
    points[3, 0], points[7, 1], points[20, 0] = np.nan, np.inf, -np.inf
    assert fit(openpose("a", points), openpose("b", right_hand), "--out", tmp_path / "out") == 0
    results = np.load(tmp_path / "out/results.npz")
    assert np.isfinite(results["hand_pose"]).all() and np.isfinite(results["keypoints_2d_fit"]).all()
    assert (results["keypoints_2d"][0, [3, 7, 20], 2] == 0).all()
    assert "not finite (NaN, null) count as missing. [" in capsys.readouterr().err


def test_an_unknown_kind_is_a_problem_where_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert fit(tmp_path / "notes.txt", "--out", tmp_path / "out") == 1
    assert "files of the kind .txt are not keypoints" in capsys.readouterr().err


def test_valid_files_without_hands_are_counted(
    openpose: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = openpose("zeros", [0.0] * 63)
    (zeros.parent / "nobody_keypoints.json").write_text('{"version": 1.3, "people": []}')
    out = tmp_path / "out"
    status = main(["fit", str(zeros.parent), "--out", str(out), "--save", "meshes", "overlays"])
    assert status == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["hands"], summary["files_without_hands"], summary["hands_empty"]) == (0, 2, 2)
    assert "2 files without hands" in capsys.readouterr().err
    assert np.load(out / "results.npz")["hand_pose"].shape == (0, 45)


# How it is called.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--focal", "500", "--fov", "60"], "--focal and --fov both say what the camera is"),
        (["--camera", "K.json", "--focal", "500"], "--camera and --focal both"),
        (["--camera", "K.json", "--fov", "60"], "--camera and --fov both"),
        (["--camera", "missing.json"], "missing.json"),
        (["--focal", "0"], "expected 1 to 1,000,000 px"),
        (["--fov", "200"], "expected 1 to 179"),
        (["--free-focal", "9"], "--free-focal is 9"),
        (["--noise", "-1"], "expected a positive number"),
        (["--hand-length", "18"], "expected mm"),
        (["--image-size", "0", "480"], "expected a width and a height"),
        (["--min-conf", "2"], "expected 0 to 1"),
        (["--device", "abacus"], "expected auto, cpu or cuda"),
        (["--images", "missing"], "not a folder"),
        (["--mano", "MANO_RIGHT.pkl"], "mano.is.tue.mpg.de"),
    ],
)
def test_wrong_usage_is_said_in_a_sentence(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", str(TWO_FILES[0]), "--out", "out", *options]) == 2
    err = capsys.readouterr().err
    assert words in err.splitlines()[-1] or "MANO" in words or words in err
    assert "handloop: " in err and "Traceback" not in err
    assert not (tmp_path / "out/results.npz").exists()


def test_no_input_and_no_place_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--out", str(tmp_path)]) == 2
    assert "no input was given" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert fit(TWO_FILES[0], "--out", tmp_path / "file") == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["fit", "x.json"], ["fit", "x.json", "--out", "o", "--nonsense"], ["fly"]])
def test_what_the_parser_refuses_is_status_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 2
    assert capsys.readouterr().err.strip()


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


HELP = """
import sys
from handloop.cli import main
try:
    main({args!r})
except SystemExit as left:
    assert left.code == 0, left.code
print("heavy:", [name for name in ("torch", "numpy", "scipy", "trimesh") if name in sys.modules])
"""


def test_help_names_every_option_and_waits_for_nothing() -> None:
    shown = run(HELP.format(args=["--help"]))
    assert all(verb in shown for verb in ("fit", "doctor", "version")) and "heavy: []" in shown
    shown = run(HELP.format(args=["fit", "--help"]))
    flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(FitCommand) if field.name != "inputs"]
    assert [flag for flag in flags if f"{flag} " not in shown and f"{flag}," not in shown] == []
    assert "heavy: []" in shown


def test_importing_handloop_is_cheap() -> None:
    assert run("import handloop, sys; print('torch' in sys.modules, handloop.__version__)").startswith("False ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"handloop {handloop.__version__}\n"


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "embedded" in out and "device: " in out and "manopth" in out


def test_doctor_says_where_mano_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--mano", str(tmp_path / "MANO_RIGHT.pkl")]) == 1
    assert "does not exist" in (out := capsys.readouterr().out) and "mano.is.tue.mpg.de" in out
