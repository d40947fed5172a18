"""The proof of which groups of channels can be cut.

`channel_trace` assumes that a module's code takes sizes from shapes, or from numbers that its
layers keep. Whether it does is tried by arithmetic, on a copy with random weights: a quarter to
three quarters of the channels of every group are cut, and the outputs compared in float64 with
those of the copy in which these channels are zero. Random, because trained or freshly initialised
weights may hide an error behind zeros; of each group another share, because code that takes one
group's width for another's runs where both keep the same. Groups that fail are found by halving,
and stay whole.

What heads of attention can lose is tried first, with one layer of each kind: channels of each head,
or whole heads; alone, or in the proportion of the model's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from compress.techniques.channel_trace import Axis, Number, Vector

TRIALS = 400
"""How many cuts of a copy are tried at most; groups that come later are left whole."""
GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, without their whole parts, lie apart from one another, however many they are."""
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
    proof = found.proof(channels.plan, channels.groups)
    sound, failed = proof.sound(channels.groups)
    proof.leave_numbers(sound)
    proof.decide_in_float64()  # what failed before was found faster
    sound, more = proof.sound(sound)
    left = {**channels.left, **failed, **more}
    return replace(channels, plan=proof.plan, groups=tuple(sound), left=left)


def sound_at(
    module: nn.Module, inputs: Tensors, channels: Channels, lost: Mapping[Axis, Vector]
) -> Channels:
    """Return the groups of a module that can lose the classes `lost` at once, as tried on itself.

    Those that cannot are left, with the reason.
    """
    proof = _Proof(module, inputs, channels.plan, lambda group: lost[group.axis])
    proof.decide_in_float64()
    sound, failed = proof.sound(channels.groups)
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

    def proof(self, plan: Plan, groups: Sequence[Group]) -> _Proof:
        """Return the proof that tries some groups, each at a share of its own."""
        return _Proof(self.trial, tuple(x[:1] for x in self.inputs), plan, _unlike(groups))

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
        rescaled = plan.rescaled.difference(self.scales) | scales
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
            some = inside.get(path, [])
            if not some or (links and not any(len(g.pools) > 1 for g in some)):
                continue
            proof = self.proof(channels.plan, some)
            if proof.passes(some):
                passing.append(kind)
                changed = proof.plan.rescaled ^ channels.plan.rescaled
                mine = [one.path for one in self.layers if one.kind is kind]
                for one in mine if path in changed else ():
                    self.scales[one] = path in proof.plan.rescaled
        return passing


def _unlike(groups: Sequence[Group]) -> Callable[[Group], Vector]:
    """Return what says which classes a group loses: at random a quarter to three quarters."""
    shares = {g.axis: (1 + 2 * (n * GOLDEN % 1)) / 4 for n, g in enumerate(groups)}

    def lost(group: Group) -> Vector:
        # Seeded by its name: a group loses the same whatever others are tried along with it.
        generator = np.random.default_rng([*group.axis[0].encode(), group.axis[1]])
        order = [generator.permutation(len(pool)) for pool in group.pools]
        grains = round(shares[group.axis] * group.grains)
        return group.least(order, min(max(1, grains), group.grains - 1))

    return lost


class _Proof:
    """Tries groups in a module, each without the classes that it loses."""

    def __init__(
        self, module: nn.Module, inputs: Tensors, plan: Plan, lost: Callable[[Group], Vector]
    ) -> None:
        self.module, self.inputs, self.plan, self.lost = module, inputs, plan, lost
        self.left, self._double = TRIALS, False
        self._known: dict[tuple[frozenset[object], ...], str] = {}
        """Reasons, by what of the plan may change and which groups were tried."""

    def decide_in_float64(self) -> None:
        """Take nothing for equal that is so in float32 alone."""
        self._double = True
        self._known.clear()

    def sound(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, str]]:
        """Return the groups that pass all at once, and the others' reasons."""
        return self._beside([], list(groups))

    def _beside(self, sound: list[Group], more: list[Group]) -> tuple[list[Group], dict[str, str]]:
        """Return `sound` and what passes beside it of `more`, trying halves of what fails."""
        every = [*sound, *more]
        if not (reason := self.reason(every)):
            return every, {}
        if len(more) == 1:
            if self._other_scale(every, more) or self._other_number(every, more):
                return every, {}
            return sound, {more[0].path: reason}
        middle = len(more) // 2
        sound, failed = self._beside(sound, more[:middle])
        sound, others = self._beside(sound, more[middle:])
        return sound, failed | others

    def passes(self, groups: Sequence[Group]) -> bool:
        return not self.reason(groups) or self._other_scale(groups, groups)

    def _other_scale(self, groups: Sequence[Group], changed: Iterable[Group]) -> bool:
        """Whether groups pass if the attention of some keeps its scale in the other of two ways."""
        before = self.plan
        known = {one.path for one in before.attentions if one.queries}
        paths = {path for group in changed for path in group.attentions} & known
        if not paths:
            return False
        self.plan = replace(before, rescaled=before.rescaled ^ paths)
        if not self.reason(groups):
            return True
        self.plan = before
        return False

    def _other_number(self, groups: Sequence[Group], changed: Sequence[Group]) -> bool:
        """Whether groups pass if a number that is as large as one of some by chance stays."""
        before = self.plan
        for numbers in self._numbers_of(changed):
            self.plan = replace(before, unchanged=before.unchanged | numbers)
            if not self.reason(groups):
                return True
        self.plan = before
        return False

    def leave_numbers(self, groups: Sequence[Group]) -> None:
        """Leave numbers of layers as they are without which some groups pass as well."""
        self._leave(self._numbers_of(groups), groups)

    def _numbers_of(self, groups: Sequence[Group]) -> list[set[Number]]:
        """Return the numbers that follow groups: in sets of one name, in layers of one kind."""
        classes = [one for group in groups for one in group.classes]
        kinds: dict[tuple[type[nn.Module], str], set[Number]] = {}
        for (path, name), vectors in self.plan.numbers.items():
            if np.isin(self.plan.classes[np.concatenate(vectors)], classes).any():
                kind = type(self.module.get_submodule(path))
                kinds.setdefault((kind, name), set()).add((path, name))
        return [*kinds.values()]

    def _leave(self, kinds: Sequence[set[Number]], groups: Sequence[Group]) -> None:
        before = self.plan
        self.plan = replace(before, unchanged=before.unchanged.union(*kinds))
        if not kinds or not self.reason(groups):
            return
        self.plan = before
        middle = len(kinds) // 2
        for half in (kinds[:middle], kinds[middle:]) if middle else ():
            self._leave(half, groups)

    def reason(self, groups: Collection[Group]) -> str:
        """Return why some groups cannot be cut at once; '' if they can."""
        axes = frozenset(group.axis for group in groups)
        tried = frozenset(self.plan.rescaled), frozenset(self.plan.unchanged), axes
        if tried not in self._known:
            self._known[tried] = self._tried(groups)
        return self._known[tried]

    def _tried(self, groups: Collection[Group]) -> str:
        if not groups:
            return ""
        if not self.left:
            return f"it was not tried, after {TRIALS} cuts of a copy"
        self.left -= 1
        removed = np.concatenate([self.lost(group) for group in groups])
        try:
            pruned = cut(self.module, self.plan, removed)
        except Exception as error:
            return unable(error)
        return differs_from_zeroed(self.module, pruned, self.plan, self.inputs, self._double)


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
