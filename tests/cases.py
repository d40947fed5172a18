"""The one table of configured techniques. A row here puts a technique under every contract."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A technique as chain text; `neutral` is a setting that must change nothing."""

    text: str
    neutral: str | None = None


CASES = [
    Case("train(epochs=1)"),
    Case("train(student='mlp', epochs=1, optimizer='sgd', learning_rate=0.05)"),
    Case("untrained(student='mlp')"),
    Case("finetune(epochs=1)"),
    Case("finetune(epochs=2, keep='best')"),
    Case("distill(epochs=1)"),
    Case("distill(student='mlp', epochs=1)"),
    Case("distill(student='mlp', epochs=1, teacher='input', loss='logits', hard_weight=1.0)"),
    Case("distill(student='same', epochs=1, loss=dkd(standardize=True), views=1)"),
    Case("distill(epochs=2, loss=dist(final_temperature=1.0), annealing='linear')"),
    Case("distill(epochs=1, loss=[kd(weight=0.5), logits(weight=0.1)], hard_weight=0.0)"),
    Case("distill(epochs=2, quantization_aware=quantize(calibration=64))"),
    Case("distill(student='cnn-small', epochs=1, hints='attention')"),
    Case("distill(epochs=2, loss=[], hints=fitnets(weight=2.0), keep='best', patience=1)"),
    Case("repeat(2, distill(student='same', teacher='input', epochs=1), result='ensemble')"),
    Case("carve(ratio=0.5)", neutral="carve(ratio=1.0)"),
    Case("carve(ratio=0.5, by='effect', width=0.5)", neutral="carve(width=1.0)"),
    Case("prune_weights(sparsity=0.5)", neutral="prune_weights(sparsity=0.0)"),
    Case("prune_weights(sparsity=0.5, scope='layer')", neutral="prune_weights(sparsity=0)"),
    Case("prune_weights(sparsity=0.7, score='lamp')"),
    Case("prune_weights(pattern='2:4')", neutral="prune_weights(pattern='4:4')"),
    Case("prune_channels(macs=0.5)", neutral="prune_channels(macs=1.0)"),
    Case("prune_channels(channels=0.5, round_to=1)", neutral="prune_channels(channels=1.0)"),
    Case("prune_channels(params=0.6, criterion=taylor(count=32), scope='global')"),
    Case("prune_channels(macs=0.6, criterion=fisher(count=16), calibration=64)"),
    Case("sparsify(epochs=1)"),
    Case("repeat(2, sparsify(epochs=1) -> prune_channels(channels=0.5), schedule='cubic')"),
    Case("search(macs=0.5, candidates=4)", neutral="search(macs=1.0)"),
    Case("search(params=0.5, epochs=1, candidates=4)", neutral="search(latency=1.0, epochs=1)"),
    Case("search(macs=0.9, family='mlp', epochs=2, candidates=3)"),
    Case("factorize(rank=0.3)", neutral="factorize(rank=1.0)"),
    Case("factorize(energy=0.8)", neutral="factorize(energy=1.0)"),
    Case("factorize(macs=0.6)", neutral="factorize(macs=1.0)"),
    Case("factorize(rank=0.3, form='spatial', calibration=0)", neutral="factorize(latency=1.0)"),
    Case("quantize(calibration=64)"),
    Case("quantize(calibration=64, method='percentile')"),
    Case("quantize(weight_only=True, bits=4)"),
    Case("cast('float16')"),
    Case("repeat(2, prune_weights(sparsity=0.5) -> finetune(epochs=1), schedule='cubic')"),
    Case("repeat(2, prune_channels(macs=0.5))", neutral="repeat(2, prune_channels(macs=1.0))"),
]

TEXTS = [case.text for case in CASES]
NEUTRAL = sorted({case.neutral for case in CASES if case.neutral})
