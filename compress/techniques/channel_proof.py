"""The proof of which groups of channels can be cut.

`channel_trace` assumes that a module's code takes sizes from shapes, or from numbers that its
layers keep. Whether it does is tried by arithmetic, on a copy with random weights: half of the
channels of every group are cut, and the outputs compared in float64 with those of the copy in which
these channels are zero. Random, because trained or freshly initialised weights may hide an error
behind zeros. Groups that fail are found by halving, and stay whole.

What heads of attention can lose is tried first, with one layer of each kind: channels of each head,
or whole heads; alone, or in the proportion of the model's channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import copied
from compress.tasks.base import Tensors
from compress.techniques.channel_attention import attention_layers
from compress.techniques.channel_cut import Plan, cut, differs_from_zeroed, unable
from compress.techniques.channel_groups import Channels, Group, find_groups
from compress.techniques.channel_links import inside_of, linked, with_attentions

TRIALS = 400
"""How many cuts of a copy are tried at most; groups that come later are left whole."""
NARROWER, FEWER = "narrower", "fewer"
"""What heads become: of less channels each, or less of them."""


def sound_groups(
    module: nn.Module, inputs: Tensors, ignored: Iterable[str] = (), heads: str = NARROWER
) -> Channels:
    """Return the groups that can be cut, as tried on a copy with random weights, and what not.

    `ignored` layers keep their outputs. `heads` says what those of attention become where both is
    possible.
    """
    found = _Heads(module, inputs, ignored, heads)
    channels = found.channels
    proof = found.proof(channels.plan)
    sound, failed = proof.sound(list(channels.groups))
    proof.double = True  # what failed in float32 was found faster
    if proof.reason(sound):
        sound, more = proof.one_by_one(sound)
        failed |= more
    left = {**channels.left, **failed}
    return replace(channels, plan=proof.plan, groups=tuple(sound), left=left)


class _Heads:
    """Finds what the heads of each kind of attention layer can lose."""

    def __init__(
        self, module: nn.Module, inputs: Tensors, ignored: Iterable[str], heads: str
    ) -> None:
        self.module, self.inputs, self.ignored = module, inputs, tuple(ignored)
        self.trial = randomized(module)
        self.layers = attention_layers(module)
        self.whole: set[str] = set()
        """The layers that lose whole heads."""
        self.links: set[str] = set()
        """Those that lose them, or channels of each, in the proportion of the model's channels."""
        self.scales: dict[str, bool] = {}
        """By layer, whether its queries make up for narrower heads, where that was tried."""
        self.channels = self._chosen(heads)

    def proof(self, plan: Plan) -> _Proof:
        return _Proof(self.trial, tuple(x[:1] for x in self.inputs), plan)

    def _chosen(self, heads: str) -> Channels:
        """Try every way with one layer of each kind, for all of which what works is taken."""
        # Of a layer of one head it cannot be seen whether it could lose heads.
        tried = sorted(self.layers, key=lambda one: one.heads == 1)
        left = {one.kind: one.path for one in reversed(tried)}
        for whole in (False, True) if heads == NARROWER else (True, False):
            if not left:
                break
            paths = {one.path for one in self.layers if one.kind in left}
            several = {one.path for one in self.layers if one.heads > 1}
            channels = self._found(self.whole | paths & several if whole else self.whole)
            for link in (False, True):
                for kind in self._passing(channels, left, paths if link else set()):
                    del left[kind]
                    mine = {one.path for one in self.layers if one.kind is kind}
                    self.whole |= mine & several if whole else set()
                    self.links |= mine if link else set()
        channels = self._found(self.whole)
        plan = channels.plan
        scales = {path for path, scaled in self.scales.items() if scaled}
        rescaled = (plan.rescaled - self.scales.keys()) | scales
        groups = linked(channels.groups, plan, self.links)
        return replace(channels, plan=replace(plan, rescaled=rescaled), groups=tuple(groups))

    def _found(self, whole: Collection[str]) -> Channels:
        found = find_groups(self.module, self.inputs, self.ignored, whole)
        return replace(found, groups=tuple(with_attentions(found.groups, found.plan)))

    def _passing(
        self, channels: Channels, left: dict[type[nn.Module], str], links: set[str]
    ) -> list[type[nn.Module]]:
        """Return the kinds of layers that can be cut; `links` are linked with what they read."""
        groups = linked(channels.groups, channels.plan, links | self.links)
        inside = inside_of(groups)
        passing = []
        for kind, path in left.items():
            some = [g for g in inside.get(path, []) if not links or path in g.attentions]
            if not some or (links and not any(len(g.pools) > 1 for g in some)):
                continue
            proof = self.proof(channels.plan)
            if proof.passes(some):
                passing.append(kind)
                changed = proof.plan.rescaled ^ channels.plan.rescaled
                mine = [one.path for one in self.layers if one.kind is kind]
                for one in mine if path in changed else ():
                    self.scales[one] = path in proof.plan.rescaled
        return passing


class _Proof:
    """Tries groups on a copy with random weights."""

    def __init__(self, trial: nn.Module, inputs: Tensors, plan: Plan) -> None:
        self.trial, self.inputs, self.plan, self.left = trial, inputs, plan, TRIALS
        self.double = False

    def sound(self, groups: list[Group]) -> tuple[list[Group], dict[str, str]]:
        """Return the groups that pass, and the others' reasons, trying halves of what fails."""
        reason = self.reason(groups)
        if not reason:
            return groups, {}
        if len(groups) == 1:
            if self._other_scale(groups):
                return groups, {}
            return [], {groups[0].path: reason}
        middle = len(groups) // 2
        first, failed = self.sound(groups[:middle])
        second, more = self.sound(groups[middle:])
        return first + second, failed | more

    def passes(self, groups: Sequence[Group]) -> bool:
        return not self.reason(groups) or self._other_scale(groups)

    def _other_scale(self, groups: Sequence[Group]) -> bool:
        """Whether groups pass if their attention keeps its scale in the other of two ways."""
        before = self.plan
        known = {one.path for one in before.attentions if one.queries}
        paths = {path for group in groups for path in group.attentions} & known
        if not paths:
            return False
        self.plan = replace(before, rescaled=before.rescaled ^ paths)
        if not self.reason(groups):
            return True
        self.plan = before
        return False

    def one_by_one(self, groups: list[Group]) -> tuple[list[Group], dict[str, str]]:
        """Return groups that pass together, for those that pass alone but not all at once."""
        kept: list[Group] = []
        failed: dict[str, str] = {}
        for group in groups:
            if reason := self.reason([*kept, group]):
                failed[group.path] = reason
            else:
                kept.append(group)
        return kept, failed

    def reason(self, groups: Collection[Group]) -> str:
        """Return why half of the channels of some groups cannot be cut; '' if they can."""
        if not groups:
            return ""
        if not self.left:
            return f"it was not tried, after {TRIALS} cuts of a copy"
        self.left -= 1
        generator = np.random.default_rng(0)
        removed = np.concatenate(
            [
                g.least(
                    [generator.permutation(len(pool)) for pool in g.pools], max(1, g.grains // 2)
                )
                for g in groups
            ]
        )
        try:
            pruned = cut(self.trial, self.plan, removed)
        except Exception as error:
            return unable(error)
        return differs_from_zeroed(self.trial, pruned, self.plan, self.inputs, self.double)


def randomized(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose every tensor is random, of a size that keeps activations."""
    result = copied(module).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    with torch.no_grad():
        for parameter in result.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                parameter.copy_(noise(parameter) * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(1 + 0.2 * noise(parameter))
        for name, buffer in result.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * noise(buffer).abs())
    return result
