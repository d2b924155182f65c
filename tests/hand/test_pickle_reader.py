"""The pickle reader: real files and look-alikes to the bit, and nothing in a forged file ever runs."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from handloop.core.errors import ModelError, UnsafePickleError
from handloop.hand import pickle_reader
from handloop.hand.pickle_reader import UnreadableValue, read_pickle

PROTOCOLS = range(6)


def _same(content: dict[str, object], arrays: dict[str, np.ndarray]) -> None:
    for key, expected in arrays.items():
        found = content[key]
        assert isinstance(found, np.ndarray), (key, found)
        assert found.shape == expected.shape and found.dtype == expected.dtype, key
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), key


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reads_what_chumpy_and_scipy_wrote(
    protocol: int, tmp_path: Path, make: ModuleType, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(make.mano_pickle(arrays, protocol))
    content = read_pickle(path)
    _same(content, arrays)
    assert content["bs_style"] == "lbs"


def test_reads_a_python_2_pickle(tmp_path: Path, make: ModuleType, arrays: dict[str, np.ndarray]) -> None:
    data = make.mano_pickle(arrays, python2=True)
    assert b"cscipy.sparse.csc\n" in data and b"cnumpy.core.multiarray\n" in data and b"c__builtin__\nset\n" in data
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(data)
    _same(read_pickle(path), arrays)


@pytest.mark.real
@pytest.mark.parametrize("version", ["py27", "py38"])
def test_reads_what_real_chumpy_wrote(version: str, real_data: Path) -> None:
    content = read_pickle(real_data / "mano_format" / f"{version}_MANO_RIGHT.pkl")
    with np.load(real_data / "mano_format" / f"{version}_MANO_RIGHT_truth.npz") as truth:
        for key, ours in (("shapedirs", "shapedirs"), ("v_template", "v_template"), ("J", "J_regressor")):
            found = content[ours]
            assert isinstance(found, np.ndarray)
            assert found.dtype == truth[key].dtype and found.tobytes() == truth[key].tobytes(), key


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_every_kind(protocol: int, tmp_path: Path) -> None:
    values = {
        "column_major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "flags": np.array([True, False]),
        "half": np.arange(3, dtype=np.float16),
        "empty": np.zeros((0, 3)),
        "single": np.array(2.5),
        "text": np.array(["ab", "c"]),
        "strided": np.arange(10)[::3],
        "scalar": np.float64(0.25),
        "rows": scipy.sparse.csr_matrix(np.eye(3)[:2]),
        "columns": scipy.sparse.csc_array(np.eye(3)[:2]),
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(values, protocol))
    content = read_pickle(path)
    for key, value in values.items():
        expected = value.toarray() if scipy.sparse.issparse(value) else np.asarray(value)
        found = content[key]
        assert isinstance(found, np.ndarray), (key, found)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype.isnative and found.flags.writeable and found.flags.c_contiguous


def test_what_is_not_an_array_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    structured = np.zeros(2, dtype=[("a", "f8")])
    content = {"o": np.array([{}, 1], dtype=object), "s": structured, "l": [1, 2], 3: 1, "d": {}, "n": None, "i": 7}
    path.write_bytes(pickle.dumps(content, 4))
    read = read_pickle(path)
    assert all(isinstance(read[key], UnreadableValue) for key in "osld")
    assert read["n"] is None and read["i"] == 7 and 3 not in read


# Forged files


class _Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _attacks(marker: Path) -> dict[str, tuple[Any, str]]:
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    system = _Calls(os.system, touch)
    return {
        "os.system": (system, "posix.system"),
        "eval": (_Calls(builtins.eval, code), "eval"),
        "exec": (_Calls(builtins.exec, code), "exec"),
        "open": (_Calls(builtins.open, str(marker), "w"), "open"),
        "getattr": (_Calls(builtins.getattr, "a", "upper"), "getattr"),
        "Popen": (_Calls(subprocess.Popen, ["touch", str(marker)]), "Popen"),
        "numpy.load": (_Calls(np.load, "x.npy"), "load"),
        "numpy.save": (_Calls(np.save, str(marker), 1), "save"),
        "loads": (_Calls(pickle.loads, pickle.dumps(system)), "loads"),
        "object array": (np.array([system, 1], dtype=object), "posix.system"),
        "nested": ([({"deep": {1: (system,)}},)], "posix.system"),
        "set": ({system}, "posix.system"),
        "key": ({system: 1}, "posix.system"),
        "sparse": (_Calls(scipy.sparse.load_npz, "x"), "load_npz"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("attack", list(_attacks(Path("x"))))
@pytest.mark.parametrize("inside", [True, False])
def test_nothing_runs(protocol: int, attack: str, inside: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    forged, named = _attacks(marker)[attack]
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({"v_template": forged, "a": np.zeros(3)} if inside else forged, protocol))
    with pytest.raises(UnsafePickleError, match=r"names \S+.*nothing was executed") as caught:
        read_pickle(path)
    assert named in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


HAND_MADE = {
    "global": b"cposix\nsystem\n(S'touch ran'\ntR.",
    "stack global": b"\x80\x04" + _text("posix") + _text("system") + b"\x93" + _text("touch ran") + b"\x85R.",
    "stack global from memo": b"\x80\x04" + _text("posix") + b"\x94" + _text("system") + b"h\x00\x8c\x06system\x93.",
    "inst": b"(S'touch ran'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch ran'\no.",
    "newobj": b"\x80\x02cbuiltins\neval\n)\x81.",
    "dotted name": b"\x80\x04" + _text("chumpy.ch") + _text("Ch.__init__.__globals__") + b"\x93.",
    "dotted module": b"\x80\x04" + _text("numpy") + _text("ndarray.tofile") + b"\x93.",
    "import": b"cbuiltins\n__import__\n(S'os'\ntR.",
    "numpy file": b"cnumpy\nfromfile\n(S'x'\ntR.",
    "codecs": b"c_codecs\ndecode\n(S'x'\ntR.",
    "own module": b"chandloop.hand.pickle_reader\nread_bytes\n(S'x'\ntR.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02K\x01Q.",
    "buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", list(HAND_MADE))
def test_hand_made_instructions_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pkl").write_bytes(HAND_MADE[name])
    with pytest.raises(UnsafePickleError, match="nothing was executed"):
        read_pickle("m.pkl")
    assert os.listdir() == ["m.pkl"]


ABUSES = {
    # BUILD, which sets attributes, on the stand-ins themselves rather than on what they make.
    "change a function": b"cnumpy.core.multiarray\n_reconstruct\n(NN}S'__call__'\nK\x01stb.",
    "change a function's defaults": b"c_codecs\nencode\n}S'__defaults__'\nK\x01sb.",
    "change a class": b"\x80\x02cchumpy.ch\nCh\n}S'__setstate__'\nK\x01sb.",
    "change a class by slots": b"\x80\x02cchumpy.ch\nCh\nN}S'get'\nK\x01s\x86b.",
    "another codec": b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.",
    "rot13": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    "array of another class": b"cnumpy.core.multiarray\n_reconstruct\n(cchumpy.ch\nCh\n(K\x00tS'b'\ntR.",
    "object from a function": b"ccopy_reg\n_reconstructor\n(c_codecs\nencode\nc__builtin__\nobject\nNtR.",
    "object with a base": b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\ncnumpy\nndarray\nNtR.",
    "bytes of a length": b"cbuiltins\nbytes\n(I9999999999\ntR.",
    "append to a class": b"\x80\x02cchumpy.ch\nCh\nK\x01a.",
    "items of a class": b"\x80\x02cchumpy.ch\nCh\nK\x01K\x01s.",
}


@pytest.mark.parametrize("name", list(ABUSES))
def test_allowed_names_cannot_be_abused(
    name: str, tmp_path: Path, make: ModuleType, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(ABUSES[name])
    with pytest.raises(ModelError):
        read_pickle(path)
    path.write_bytes(make.mano_pickle(arrays, 2))
    _same(read_pickle(path), arrays)


def _array_bytes(shape: bytes, code: bytes, raw: bytes) -> bytes:
    """A protocol 2 pickle of {"a": array} with whatever shape, type code and contents are given."""
    dtype = b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR"
    start = b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tbs."


RAW_8 = b"U\x08" + bytes(8)
BOMBS = {
    "huge shape": (_array_bytes(b"\x8a\x05\x00\x00\x00\x00\x10K\x01\x86", b"f8", RAW_8), "bytes"),
    "negative shape": (_array_bytes(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", b"f8", RAW_8), "bytes"),
    "object type": (_array_bytes(b"K\x01\x85", b"O8", b"]K\x01a"), "type"),
    "pointers as objects": (_array_bytes(b"K\x01\x85", b"O8", RAW_8), "type"),
    "comma type": (_array_bytes(b"K\x01\x85", b"f8,O", RAW_8), "type"),
    "wide text": (_array_bytes(b"K\x01\x85", b"S999999999", RAW_8), "type"),
    "sparse": (
        b"\x80\x02}U\x01acscipy.sparse.csc\ncsc_matrix\n)\x81}(U\x06_shapeJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
        + b"".join(
            b"U" + bytes([len(key)]) + key + _array_bytes(b"K\x01\x85", b"f8", RAW_8)[6:-2]
            for key in (b"data", b"indices", b"indptr")
        )
        + b"ubs.",
        "something other than numbers",
    ),
    "sparse size": (
        b"\x80\x02}U\x01acscipy.sparse.csc\ncsc_matrix\n)\x81}(U\x06_shapeJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
        + b"".join(
            b"U" + bytes([len(key)]) + key + _array_bytes(b"K\x01\x85", b"i8", RAW_8)[6:-2]
            for key in (b"data", b"indices", b"indptr")
        )
        + b"ubs.",
        "sparse matrix of shape",
    ),
    "contains itself": (b"\x80\x02}U\x01acchumpy.ch\nCh\n)\x81q\x01}U\x01xh\x01sbs.", "nested"),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_false_sizes_and_types_stay_unread(name: str, tmp_path: Path) -> None:
    data, reason = BOMBS[name]
    path = tmp_path / "m.pkl"
    path.write_bytes(data)
    value = read_pickle(path)["a"]
    assert isinstance(value, UnreadableValue)
    assert reason in value.reason


def test_an_honest_array_of_that_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(_array_bytes(b"K\x01\x85", b"f8", b"U\x08" + struct.pack("<d", 2.5)))
    np.testing.assert_array_equal(read_pickle(path)["a"], [2.5])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # A memo of two thousand million entries.
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",  # A bytearray of a terabyte.
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        b"\x80\x02\x8b\xff\xff\xff\x7fx.",
        b"(" * 100000 + b"t" * 100000 + b".",
    ],
)
def test_false_lengths_cost_no_memory_and_no_time(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(ModelError):
        read_pickle(path)
    assert time.perf_counter() - start < 2


def test_one_array_under_many_keys_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_BYTES", 2**20)
    shared = np.zeros(10000)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({f"k{i}": shared for i in range(100)}, 4))
    with pytest.raises(ModelError, match="more than 1 MB"):
        read_pickle(path)
    path.write_bytes(bytes(2**20 + 1))
    with pytest.raises(ModelError, match="larger than 1 MB"):
        read_pickle(path)


def test_truncated_and_damaged_files_are_model_errors(
    tmp_path: Path, make: ModuleType, arrays: dict[str, np.ndarray]
) -> None:
    small = {key: arrays[key] for key in ("J", "kintree_table", "hands_mean")}
    data = pickle.dumps({**small, "J_regressor": scipy.sparse.csc_matrix(np.eye(4))}, 2)
    path = tmp_path / "m.pkl"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            read_pickle(path)
    rng = np.random.default_rng(0)
    for _ in range(600):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_pickle(path)
        except ModelError:
            continue


def test_messages(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    with pytest.raises(ModelError, match="no such file"):
        read_pickle(path)
    with pytest.raises(ModelError, match="a folder"):
        read_pickle(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="the file is empty"):
        read_pickle(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ModelError, match="holds a list, expected a dictionary"):
        read_pickle(path)
    path.write_bytes(pickle.dumps({"a": np.zeros(100)})[:300])
    with pytest.raises(ModelError, match="ends too early, after 300 bytes"):
        read_pickle(path)
    path.write_bytes(pickle.dumps(_Calls(os.system, "true")))
    with pytest.raises(UnsafePickleError) as caught:
        read_pickle(path)
    assert str(caught.value) == (
        f"{path}: the pickle names posix.system, which a MANO file never does. It was refused and nothing was "
        "executed: get the file again from mano.is.tue.mpg.de."
    )
