"""`compress-models check`: what a file holds, and whether reading it could do harm."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fixtures import build, fresh_model, small_digits
from safetensors.torch import save_file

from compress.benchmark.portable.check import check_file
from compress.deploy.export import export, stamp
from compress.errors import UserError
from compress.model import save
from compress.zoo.arrays import read_arrays
from compress.zoo.weights import read_state


class Payload:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return (Path.write_text, (self.trace, "it ran"))


def test_a_payload_in_a_pickle_leaves_no_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    payload = Payload(trace)
    torch.save({"weight": torch.ones(2), "more": payload}, tmp_path / "zip.pt")
    torch.save(payload, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(payload))
    (tmp_path / "bare.bin").write_bytes(pickle.dumps({"weight": payload}, protocol=0))
    for path in tmp_path.glob("*.*"):
        with pytest.raises(UserError, match=r"refused|damaged"):
            check_file(path)
    assert not trace.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert trace.exists(), "the payload itself works"


def test_older_torch_reads_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt").keys() == {"weight"}
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(UserError, match=r"install torch 2\.11"):
        read_state(tmp_path / "x.pt")


def test_sound_files_are_described(tmp_path: Path) -> None:
    data = small_digits()
    model = fresh_model(data, "mlp(width=8)")
    save_file({"a": torch.ones(3, 4)}, tmp_path / "a.safetensors")
    assert "1 tensor, 12 values" in check_file(tmp_path / "a.safetensors")[0]
    raw = {"w": torch.ones(2), "b": torch.ones(1)}
    torch.save({"model": raw, "state": {"ema": {"w": torch.ones(2)}}}, tmp_path / "two.pt")
    assert check_file(tmp_path / "two.pt")[1:] == [
        "  two.pt:model: 2 tensors",
        "  two.pt:state.ema: 1 tensor",
    ]
    (tmp_path / "m.onnx").write_bytes(stamp(export(model), {"labels": '["a"]'}))
    told = "\n".join(check_file(tmp_path / "m.onnx"))
    assert "input input: " in told
    assert 'labels: ["a"]' in told
    save(model, tmp_path / "saved", build)
    assert "built by mlp(width=8)" in check_file(tmp_path / "saved")[1]
    blueprint = json.loads((tmp_path / "saved" / "blueprint.json").read_text())
    blueprint["factory"] = "evil.py:make"
    (tmp_path / "saved" / "blueprint.json").write_text(json.dumps(blueprint))
    assert "only with --allow-code evil.py" in check_file(tmp_path / "saved")[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.safetensors", b"\xff" * 8 + b"{}", "damaged"),
        ("x.safetensors", (10**9).to_bytes(8, "little"), "damaged"),
        ("x.pt", b"", "damaged"),
        ("x.onnx", b"no", "is refused"),
        ("x.exe", b"MZ", "cannot tell"),
    ],
)
def test_others_are_refused_with_a_reason(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        check_file(tmp_path / name)
    with pytest.raises(UserError, match="no saved model"):
        check_file(tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        check_file(tmp_path / "gone")


def header(shape: str, kind: str = "|u1") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(2,)", "(4, 4)"])
def test_arrays_that_claim_other_sizes_are_refused(tmp_path: Path, shape: str) -> None:
    import zipfile

    np.savez(tmp_path / "x.npz", **dict.fromkeys(("y_train", "x_test", "y_test"), np.zeros(3)))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("x_train.npy", header(shape) + b"123")
    with pytest.raises(UserError, match=r"claims|expected|allocate"):
        read_arrays(tmp_path / "x.npz")
