"""Options that `distill` had before losses and hints had their own: older texts still use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from compress.errors import IllegalChain
from compress.parts import Part, build, is_number, lookup
from compress.techniques.hints import hints
from compress.techniques.losses import Logits, losses

OF_LOSS = {
    **{name: name for name in ("temperature", "final_temperature", "temperature_schedule")},
    "beta": "beta",
    "standardize": "standardize",
    "soft_weight": "weight",
}
OF_HINT = {"hint_weight": "weight", "hint_layers": "layers"}


def with_parts(options: Mapping[str, Any], hard_weight: float) -> dict[str, Any]:
    """Return options of `distill`, the flat ones put into its loss and hints.

    `hard_weight` is its default. Raises IllegalChain where they fit no loss or hint.
    """
    options = dict(options)
    soft, of_hint = _taken(options, OF_LOSS), _taken(options, OF_HINT)
    squared = options.pop("logits_weight", 0)
    if soft or squared != 0:
        _put_losses(options, soft, squared, hard_weight)
    if of_hint:
        options["hints"] = _built("hint", options.get("hints"), hints(), of_hint)
    elif options.get("hints") == "none":
        del options["hints"]
    return options


def _put_losses(
    options: dict[str, Any], soft: Mapping[str, Any], squared: Any, hard_weight: float
) -> None:
    both = {name: value for name, value in soft.items() if name == "standardize" and squared != 0}
    parts = []
    if squared != 0 and not soft and not isinstance(options.get("loss", ""), str):
        raise _misplaced("loss", ["logits_weight"], f"logits(weight={squared!r})")
    if soft.get("weight", 1) != 0:
        parts = [_built("loss", options.get("loss", "kd"), losses(), soft)]
    elif idle := (soft.keys() - both.keys() - {"weight"}) | (options.keys() & {"loss"}):
        raise IllegalChain(f"distill: soft_weight is 0: leave out {', '.join(sorted(idle))}")
    if squared != 0:
        hard = options.get("hard_weight", hard_weight)
        if options.get("annealing", "constant") != "constant" and is_number(hard):
            # The hard loss did not gain what the squared difference lost.
            options["final_hard_weight"] = hard + sum(loss.weight for loss in parts)
        parts.append(Logits(weight=squared, **both))
    options["loss"] = parts


def _taken(options: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Take flat options out of others, under their present names."""
    return {names[key]: options.pop(key) for key in list(options) if key in names}


def _built(kind: str, name: object, known: Mapping[str, type[Any]], options: Any) -> Any:
    if not isinstance(name, str):
        flat = {new: old for old, new in (OF_HINT if kind == "hint" else OF_LOSS).items()}
        raise _misplaced(kind, [flat[one] for one in options], _example(name, known, options))
    return build(lookup(kind, name, known), **options)


def _misplaced(kind: str, names: Sequence[str], example: str) -> IllegalChain:
    belong = "belongs" if len(names) == 1 else "belong"
    listed = ", ".join(names)
    return IllegalChain(f"distill: {listed} {belong} inside a {kind}'s parentheses: {example}")


def _example(value: object, known: Mapping[str, type[Any]], options: Mapping[str, Any]) -> str:
    """Return a part that has the options: one of those in `value` if it can have them."""
    own = value if isinstance(value, list | tuple) else [value]
    names = [*(one.name() if isinstance(one, Part) else str(one) for one in own), *known]
    for name in names:
        if name in known and options.keys() <= {field.name for field in fields(known[name])}:
            return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    return f"{next(iter(known))}(...)"
