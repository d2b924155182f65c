from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from handloop.core.results import Status
from handloop.view.report import _choose, write_report

NASTY = ['<script>alert("1")</script>', "a'b&c", "x/../y", "</script>", "\u2028line", "x\udcff", "ok"]


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed in order."""

    EMPTY = ("meta", "input", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def _script(path, name):
    text = path.read_text(encoding="ascii")
    assert text.startswith(f"window.{name} = ") and text.endswith(";\n")
    return json.loads(text[len(f"window.{name} = ") : -2])


def _report(blob, result, folder, **options):
    page = write_report(result, blob.faces, blob.faces_left, folder, **options)
    text = page.read_text(encoding="utf-8")
    return page, text, Page(text)


def test_the_page_parses_and_all_it_names_exists(blob, make_result, picture, tmp_path):
    result = make_result(7, image=str(picture), ids=NASTY, known=False)
    notes, problems = ["left is <mirrored>"], [ValueError("bad & broken.json")]
    page, text, parsed = _report(blob, result, tmp_path / "out", notes=notes, problems=problems, title="A <b> C")
    words = " ".join(parsed.words)
    assert "A <b> C" in words and "left is <mirrored>" in words and "bad & broken.json" in words
    assert "The focal length is an assumption for all hands" in words
    assert "7 hands: 6 fitted, 1 not." in words
    names = [a.get(k) for _, a in parsed.tags for k in ("src", "href") if a.get(k)]
    assert len([n for n in names if n.endswith(".jpg")]) == 7
    for name in names:
        assert (page.parent / name).is_file(), name
    for name in ("plotly.min.js", "meshes.js"):
        assert f'"/{name}"' in text and (page.parent / "report_files" / name).is_file()


def test_nothing_is_fetched_from_elsewhere(blob, make_result, tmp_path):
    page, text, _ = _report(blob, make_result(4), tmp_path)
    own = [text, *((page.parent / "report_files" / n).read_text() for n in ("data.js", "meshes.js"))]
    for part in own:
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", part)


def test_ids_are_texts_never_markup(blob, make_result, tmp_path):
    page, text, parsed = _report(blob, make_result(7, ids=NASTY), tmp_path)
    assert text.count("<script") == 2 and "alert(" in " ".join(parsed.words)
    data = _script(page.parent / "report_files" / "data.js", "handloopReport")
    # A lone surrogate can be neither written nor shown.
    assert sorted(row[0] for row in data["rows"]) == sorted([*NASTY[:5], "x?", "ok"])
    assert "innerHTML" not in text


def test_the_table_has_all_hands_worst_first(blob, make_result, tmp_path):
    result = make_result(12)
    suspect = result.rms_px.nan_to_num(1e9).argmin()
    doubts = tuple("<x>" if i == int(suspect) else "" for i in range(12))
    plausible = result.plausible & (torch.arange(12) != suspect)
    result = replace(result, doubts=doubts, plausible=plausible)
    page, _, parsed = _report(blob, result, tmp_path, max_hands=6)
    data = _script(page.parent / "report_files" / "data.js", "handloopReport")
    labels = [c["label"] for c in data["columns"]]
    assert labels[:6] == ["id", "side", "status", "doubts", "expected error, mm", "error px"]
    assert labels[6:] == ["error %", "energy", "gap", "depth sd, mm", "points"]
    assert len(data["rows"]) == 12 and data["rows"][0][0] == "000002"
    # The best fit of all, but a doubtful one: it comes right after the hand without a fit.
    assert data["rows"][1][3] == "<x>" and data["rows"][1][0] == f"{int(suspect):06d}"
    errors = [row[6] for row in data["rows"]]
    assert errors[0] is None and errors[2:] == sorted(errors[2:], reverse=True)
    cards = [c for c in data["cards"] if c is not None]
    assert len(cards) == 6 and data["cards"][:4] == cards[:4] and data["cards"][-1] is not None
    assert {a["id"] for tag, a in parsed.tags if tag == "article"} == set(cards)
    assert "<x>" in parsed.words and "6 of 12 hands" in " ".join(parsed.words)


def test_of_many_hands_the_table_has_the_worst(blob, make_result, tmp_path, monkeypatch):
    whole, _, _ = _report(blob, make_result(12), tmp_path / "whole", max_hands=6)
    monkeypatch.setattr("handloop.view.report.MAX_TABLE", 5)
    page, _, parsed = _report(blob, make_result(12), tmp_path / "part", max_hands=6)
    data, all_data = (_script(p.parent / "report_files" / "data.js", "handloopReport") for p in (page, whole))
    assert data["rows"] == all_data["rows"][:5]
    assert "The worst 5 of 12 hands (all are in results.npz)" in parsed.words
    assert len([a for tag, a in parsed.tags if tag == "article"]) == 6


@pytest.mark.parametrize("lost", [0, 3, 9, 30, 40])
@pytest.mark.parametrize("most", [0, 1, 6, 12, 39, 40, 50])
def test_the_choice_of_cards_keeps_to_its_number(lost, most):
    chosen = _choose(range(40), lost, most)
    rows = chosen.all()
    assert len(rows) == len(set(rows)) == min(40, most)
    assert all(row < lost for row in chosen.lost) and all(row >= lost for row in [*chosen.worst, *chosen.sample])
    assert chosen.worst == list(range(lost, lost + len(chosen.worst)))
    if most == 12 and lost >= 3:
        assert len(chosen.lost) == max(3, 12 - (40 - lost))


def test_cards_say_what_numbers_mean(blob, make_result, tmp_path):
    result = make_result(4)
    result = replace(result, status=torch.tensor([0, int(Status.MAX_STEPS), int(Status.TOO_FEW_POINTS), 0]))
    words = " ".join(_report(blob, result, tmp_path)[2].words)
    for sentence in ("usable, or fit again with more steps", "Give more points", "none found", "about as well"):
        assert sentence in words


def test_meshes_are_stored_to_a_tenth_of_a_millimetre(blob, make_result, tmp_path):
    result = make_result(4)
    page, _, parsed = _report(blob, result, tmp_path)
    stored = _script(page.parent / "report_files" / "meshes.js", "handloopMeshes")
    assert set(stored["hands"]) == {"hand-0", "hand-1", "hand-3"}
    assert {a["data-hand"] for _, a in parsed.tags if "data-hand" in a} == set(stored["hands"])
    faces = np.frombuffer(base64.b64decode(stored["faces"]["left"]), "<u2").reshape(-1, 3)
    assert np.array_equal(faces, blob.faces_left)
    points = np.frombuffer(base64.b64decode(stored["hands"]["hand-1"]["points"]), "<i2").reshape(-1, 3) / 1e4
    true = result.vertices()[1].numpy()
    shift = (points - true).mean(0)
    assert np.abs(points - true - shift).max() < 1e-4


def test_no_hands_and_no_cards(blob, make_result, tmp_path):
    result = make_result(4)
    none = torch.zeros(4, dtype=torch.bool)
    empty = replace(
        result,
        params=result.params.select(none),
        joints=result.joints[none],
        keypoints=result.keypoints.select(none),
        camera=result.camera.select(none),
        **{
            k: getattr(result, k)[none]
            for k in ("keypoints_2d_fit", "energy", "rms_px", "status", "steps")
            + ("depth_sd", "expected_error_mm", "plausible")
        },
        weakest=(),
        doubts=(),
        hypothesis_gap=result.hypothesis_gap[none],
        energy_terms={k: v[none] for k, v in result.energy_terms.items()},
    )
    assert "There are no hands" in " ".join(_report(blob, empty, tmp_path / "a")[2].words)
    assert _report(blob, result, tmp_path / "b", max_hands=0)[2].words
