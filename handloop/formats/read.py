"""`read_keypoints`: any number of keypoint files and folders in, one set of hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from handloop.core.errors import FileFormatError, InputError
from handloop.formats.assemble import assemble
from handloop.formats.coco_json import is_coco
from handloop.formats.csv_table import read_csv
from handloop.formats.datasets.keypoints import take_data_sets
from handloop.formats.discover import Discovery, FoundFile, discover
from handloop.formats.file_hands import FileHands
from handloop.formats.interhand import is_interhand_companion, is_interhand_data
from handloop.formats.loading import check_file, read_json
from handloop.formats.mediapipe import read_mediapipe
from handloop.formats.mediapipe_json import mediapipe_hands
from handloop.formats.mmpose_json import is_mmpose, mmpose_hands, read_mmpose
from handloop.formats.notes import Notes
from handloop.formats.npz import read_contract
from handloop.formats.openpose import is_openpose, openpose_hands, read_openpose
from handloop.formats.options import Problem, ReadOptions, ReadResult
from handloop.formats.other_kinds import hint
from handloop.formats.sample_files import coco_hands, interhand_companion, interhand_hands, read_coco, read_interhand

Reader = Callable[[Path], FileHands]

FORMATS: dict[str, Reader] = {
    "openpose": read_openpose,
    "mediapipe": read_mediapipe,
    "npz": read_contract,
    "csv": read_csv,
    "coco": read_coco,
    "mmpose": read_mmpose,
    "interhand": read_interhand,
}
"""The reader of one file, by the name that `ReadOptions.format` takes."""

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "openpose": (".json",),
    "mediapipe": (".json", ".pbtxt", ".prototxt", ".textproto", ".npy"),
    "npz": (".npz",),
    "csv": (".csv", ".tsv"),
    "coco": (".json",),
    "mmpose": (".json",),
    "interhand": (".json",),
}
"""What is read inside a folder, by format."""

_BY_SUFFIX: dict[str, Reader] = {
    **dict.fromkeys((".pbtxt", ".prototxt", ".textproto", ".npy"), read_mediapipe),
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    ".npz": read_contract,
}


def read_keypoints(inputs: Sequence[str | Path] | str | Path, options: ReadOptions = ReadOptions()) -> ReadResult:  # noqa: B008
    """Read hands from files and folders.

    Args:
        inputs: files and folders; folders are searched to any depth for files of known kinds. A folder that is a
            picture data set (`open_pictures`) is read as such, each annotated hand once.
        options: what the files do not say.

    Returns:
        All hands, and every file that could not be used; nothing about a file raises.

    Raises:
        InputError: no input, or an unknown format or picture folder in `options`.
    """
    named = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if not named:
        raise InputError("no input was named; give keypoint files or folders.")
    _check(options)
    notes = Notes()
    problems: list[Problem] = []
    rest, files = take_data_sets(named, problems, notes) if options.format is None else (named, [])
    discovery = find_files(rest, options)
    for sentence in discovery.notes:
        notes.add(sentence)
    problems += discovery.problems
    return _read_all(discovery.files, options, notes, problems, files, discovery.skipped)


def find_files(inputs: Sequence[str | Path], options: ReadOptions = ReadOptions()) -> Discovery:  # noqa: B008
    """The files that `read_keypoints` would read; a data set of pictures is taken for any other folder.

    Raises:
        InputError: an unknown format or picture folder in `options`.
    """
    _check(options)
    formats = list(_SUFFIXES) if options.format is None else [options.format]
    return discover(inputs, frozenset(s for name in formats for s in _SUFFIXES[name]))


def read_files(files: Sequence[FoundFile], options: ReadOptions = ReadOptions()) -> ReadResult:  # noqa: B008
    """Read some of the files that `find_files` found, as `read_keypoints` reads all of them."""
    return _read_all(files, options, Notes(), [], [], ())


def _check(options: ReadOptions) -> None:
    if options.format is not None and options.format not in FORMATS:
        raise InputError(f"the format {options.format!r} was given, expected one of {', '.join(FORMATS)}.")
    if options.images is not None and not Path(options.images).is_dir():
        raise InputError(f"the pictures' folder {options.images} was given, which is not a folder.")


def _read_all(
    found_files: Sequence[FoundFile],
    options: ReadOptions,
    notes: Notes,
    problems: list[Problem],
    files: list[tuple[FoundFile, FileHands]],
    skipped: tuple[str, ...],
) -> ReadResult:
    """The hands of the files found, behind those of `files`, which were read already."""
    for found in found_files:
        hands = _read(found, options)
        if isinstance(hands, Problem):
            problems.append(hands)
        else:
            files.append((found, hands))
    done = assemble(files, options, notes)
    return ReadResult(
        done.keypoints,
        done.camera,
        done.truth,
        (*problems, *done.problems),
        skipped,
        notes.sentences(),
        len(files),
        done.files_without_hands,
        done.hands_empty,
    )


def _read(found: FoundFile, options: ReadOptions) -> FileHands | Problem:
    """The hands of one file, or why there are none."""
    try:
        if options.format is not None:
            return FORMATS[options.format](found.path)
        return _sniffed(found.path)
    except InputError as error:
        return Problem(str(found.path), str(error))
    except MemoryError:
        return Problem(str(found.path), "the file does not fit into memory; split it.")
    except Exception as error:  # A stranger's file must not end a run over 100,000 others; the kind is reported.
        return Problem(str(found.path), f"the file cannot be read ({type(error).__name__}: {error}).")


def _sniffed(path: Path) -> FileHands:
    """Read a file by its suffix, and JSON and files of unknown suffix by their content."""
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix](path)
    check_file(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if suffix != ".json":
        if start.startswith(b"PK\x03\x04"):
            return read_contract(path)
        if not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
            advice = f" ({hint(path)})" if hint(path) else ""
            raise FileFormatError(
                f"files of the kind {suffix or 'without suffix'} are not keypoints that can be read{advice}; expected "
                "JSON, pbtxt, npy, npz or CSV (or name the format with --format)."
            )
    return _json_hands(read_json(path), path)


def _json_hands(value: object, path: Path) -> FileHands:
    """The hands of a parsed JSON file, whoever wrote it; MediaPipe's dumps have the most forms and come last."""
    if is_openpose(value):
        return openpose_hands(value)
    if is_interhand_data(value):
        return interhand_hands(value, path)
    if is_interhand_companion(value):
        return interhand_companion(path)
    if is_coco(value):
        return coco_hands(value, path)
    return mmpose_hands(value) if is_mmpose(value) else mediapipe_hands(value)
