"""nncf_quantize and quark_quantize; what runs them skips where their extras are missing."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import deploy_models
import numpy as np
import onnx
import pytest
from bench_fixtures import small_digits
from onnx import numpy_helper

import compress
from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import read_metadata, stamp
from compress.deploy.session import predict, session
from compress.deploy.verify import verify
from compress.errors import IllegalChain, StepFailed
from compress.peers import extras
from compress.peers.nncf_quantize import NncfQuantize, _read_once
from compress.peers.quark_quantize import QuarkQuantize
from compress.techniques import chain

ITEMS = deploy_models.images(48, 1)
BATCHES = {
    NncfQuantize: [(ITEMS[i : i + 1],) for i in range(len(ITEMS))],
    QuarkQuantize: [(ITEMS,)],
}
MODULES = {NncfQuantize: "nncf", QuarkQuantize: "quark"}


def quantized(step: Compressor, content: bytes) -> bytes:
    if not find_spec(MODULES[type(step)]):
        pytest.skip(f"needs the extra [{MODULES[type(step)]}]")
    return step.quantized(content, BATCHES[type(step)])  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["cnn", "residual", "transformer"])
@pytest.mark.parametrize(
    "step",
    [
        *(NncfQuantize(), NncfQuantize(preset="mixed"), NncfQuantize(accurate=True)),
        *(NncfQuantize(transformer=True), QuarkQuantize(), QuarkQuantize(equalize=False)),
    ],
    ids=repr,
)
def test_their_files_run_and_are_verified(step, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = deploy_models.built(kind)
    source = stamp(deploy_models.float_file(kind), {"labels": "[]"})
    if step == NncfQuantize(accurate=True) and kind == "residual":
        with pytest.raises(StepFailed, match="NNCF fails on this model, which it can't correct"):
            quantized(step, source)
        return
    content = quantized(step, source)
    result = verify(content, model, (deploy_models.images(256, seed=9),), lowered=True)
    assert result.ok, result.reason
    assert result.top1_agreement > 0.25, "far above chance; how good they are is their own"
    assert read_metadata(content) == read_metadata(source)
    integers = [t for t in onnx.load_from_string(content).graph.initializer if len(t.dims) > 1]
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in integers)
    assert list(tmp_path.iterdir()) == [], "nothing is left where a user works"


@pytest.mark.parametrize("step", [NncfQuantize, QuarkQuantize])
def test_a_reduced_range_halves_all_weights(step):
    largest = {}
    for narrow in (False, True):
        content = quantized(step(reduce_range=narrow), deploy_models.float_file("cnn"))
        tensors = onnx.load_from_string(content).graph.initializer
        weights = [numpy_helper.to_array(t) for t in tensors if len(t.dims) > 1]
        found = [np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8]
        largest[narrow] = max(found)
    assert largest == {False: pytest.approx(127, abs=1), True: pytest.approx(64, abs=1)}


@pytest.mark.parametrize("step", [NncfQuantize, QuarkQuantize])
def test_without_its_extra_a_chain_is_refused_before_anything_runs(step, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(IllegalChain, match=rf"pip install 'compress-models\[{MODULES[step]}\]'"):
        step().check(StepContext(small_digits().task))


def test_auto_search_ends_with_its_time_and_gives_the_best_file(tmp_path, monkeypatch):
    if not find_spec("quark"):
        pytest.skip("needs the extra [quark]")
    monkeypatch.chdir(tmp_path)
    source = stamp(deploy_models.float_file("cnn"), {"labels": "[]"})
    step = QuarkQuantize(search_seconds=0.01)
    content, errors, broke = step.searched(source, BATCHES[QuarkQuantize], seed=3)
    assert not broke
    assert len(errors) == 1, "the trial that runs when the time is over is the last"
    wanted = predict(session(source), [(ITEMS,)])
    found = predict(session(content), [(ITEMS,)])
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) == pytest.approx(errors[0])
    assert read_metadata(content) == read_metadata(source)
    longer, more, _ = replace(step, search_seconds=8).searched(source, BATCHES[QuarkQuantize])
    assert more[0] == errors[0]
    assert len(more) > 2
    best = predict(session(longer), [(ITEMS,)])
    assert np.linalg.norm(best - wanted) / np.linalg.norm(wanted) == pytest.approx(min(more))
    assert list(tmp_path.iterdir()) == []


def test_what_the_search_chooses_is_not_given():
    with pytest.raises(IllegalChain, match="AutoSearchPro chooses all but calibration"):
        chain("quark_quantize(search_seconds=60, adaround=True)")
    assert chain("quark_quantize(search_seconds=60, calibration=64)").search_seconds == 60


@pytest.mark.parametrize("judged", [0, 1])
def test_a_search_that_breaks_keeps_what_it_found(judged, monkeypatch, tmp_path):
    if not find_spec("quark"):
        pytest.skip("needs the extra [quark]")
    from quark.onnx.quantization.auto_search import auto_search_pro

    def run(self):
        source = self.config["model_input"]
        evaluated = self.config["search_evaluator"]
        assert evaluated(source) == 0
        for trial in range(judged):
            Path(f"{trial}.onnx").write_bytes(Path(source).read_bytes())
            evaluated(f"{trial}.onnx")
        raise RuntimeError("cannot round this layer")

    monkeypatch.setattr(auto_search_pro.AutoSearchPro, "run", run)
    step = QuarkQuantize(search_seconds=60)
    source = deploy_models.float_file("cnn")
    if not judged:
        with pytest.raises(RuntimeError, match="cannot round"):
            step.searched(source, BATCHES[QuarkQuantize])
        return
    content, errors, broke = step.searched(source, BATCHES[QuarkQuantize])
    assert errors == [0.0]
    assert broke == "RuntimeError: cannot round this layer"
    np.testing.assert_array_equal(
        predict(session(content), [(ITEMS,)]), predict(session(source), [(ITEMS,)])
    )


def test_they_plug_in_as_others_do():
    assert chain("nncf_quantize(accurate=True)") == NncfQuantize(accurate=True)
    assert chain("quark_quantize(adaround=True)") == QuarkQuantize(adaround=True)


def test_nncf_sends_nothing():
    assert compress.__version__
    assert os.environ["NNCF_CI"]


def test_the_first_layer_alone_reads_the_input_for_nncf():
    content = deploy_models.float_file("transformer")
    proto = onnx.load_from_string(content)
    before = {node.op_type for node in proto.graph.node if "input" in node.input}
    assert before == {"Conv", "Shape"}, "else this test shows nothing"
    changed = _read_once(proto)
    onnx.checker.check_model(changed, full_check=True)
    assert {node.op_type for node in changed.graph.node if "input" in node.input} == {"Conv"}
    inputs = [(ITEMS,)]
    same = predict(session(changed.SerializeToString()), inputs)
    np.testing.assert_array_equal(same, predict(session(content), inputs))
