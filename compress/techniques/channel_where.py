"""Which layer of a module is running."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Where:
    """Knows the path of the layer whose forward is running."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._stack, self._hooks = module, [""], list[Any]()

    @property
    def path(self) -> str:
        return self._stack[-1]

    def __enter__(self) -> Where:
        def enter(path: str) -> Any:
            return lambda *_: self._stack.append(path)

        def leave(*_: Any) -> None:
            self._stack.pop()

        for path, part in self._module.named_modules():
            if isinstance(part, torch.jit.ScriptModule):  # takes no hooks: its caller is known
                continue
            self._hooks.append(part.register_forward_pre_hook(enter(path)))
            self._hooks.append(part.register_forward_hook(leave, always_call=True))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
