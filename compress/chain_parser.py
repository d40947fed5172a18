"""The text of chains and model names: literals, calls and arrows, and nothing that is evaluated.

chain  := call ("->" call)*
call   := NAME "(" (value | NAME "=" value), ... ")"
value  := a Python literal | chain | part | "[" part, ... "]"
part   := call | the name of a part as a string, where an option takes parts
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

from compress.compressor import Chain, Compressor
from compress.errors import IllegalChain, UserError
from compress.parts import PartKind, build, lookup, part_fields

MAX_LENGTH = 4000
MAX_DEPTH = 20
SHOWN = 200
"""Characters of a text that an error quotes."""
LINE_BREAKS = str.maketrans("\n\r\f", "   ")


def parse_chain(text: str, techniques: Mapping[str, type[Compressor]]) -> Compressor:
    """Parse the text of a chain. Raises IllegalChain with the reason and the place."""
    tree = _tree(_arrows_to_shifts(text), text)
    return _Builder(techniques, text).chain(tree)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name(option=literal, ...)` into the name and its options; the call is optional.

    The name may hold what no Python name does, such as `torchvision:resnet18`.
    """
    name, parenthesis, rest = text.partition("(")
    name = name.strip()
    if not parenthesis:
        return name, {}
    call = _tree(f"f({rest}", text)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise UserError(f"cannot read {_shown(text)}: write NAME or NAME(option=value, ...)")
    return name, {key: _literal(value, text) for key, value in _keywords(call, text)}


def _arrows_to_shifts(text: str) -> str:
    _check_length(text)
    source = text.strip().translate(LINE_BREAKS)
    pieces, depth, last = [], 0, 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            depth += (token.string in "([{") - (token.string in ")]}") if token.string else 0
            if depth > MAX_DEPTH:
                raise IllegalChain(f"the chain is nested deeper than {MAX_DEPTH}")
            if token.type == tokenize.OP and token.string == ">>":
                raise IllegalChain(f"steps are joined by '->', not '>>': {_shown(text)}")
            if token.type == tokenize.OP and token.string == "->":
                pieces += [source[last : token.start[1]], ">>"]
                last = token.end[1]
    except (tokenize.TokenError, SyntaxError, ValueError, SystemError) as error:
        # Python 3.12's tokenizer also raises UnicodeDecodeError and SystemError at control codes.
        raise _unreadable(text, error) from None
    return "".join([*pieces, source[last:]])


def _check_length(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise IllegalChain(f"the text is longer than {MAX_LENGTH} characters")


def _shown(text: str) -> str:
    """Return a text as an error quotes it."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def _source(node: ast.expr, text: str) -> str:
    """Return a part of a text as an error quotes it; the whole where it is nested too deeply."""
    try:
        return _shown(ast.unparse(node))
    except RecursionError:
        return _shown(text)


def _unreadable(text: str, error: Exception) -> IllegalChain:
    reason = error.args[0] if error.args else error
    return IllegalChain(
        f"cannot read {_shown(text)}: {reason}. A chain looks like "
        f"\"distill(student='cnn-small', epochs=3) -> quantize()\""
    )


def _tree(source: str, text: str) -> ast.expr:
    """Return the syntax tree of `source`; errors quote `text`."""
    _check_length(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes in strings, which stay as they are
            return ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text, error) from None


@dataclass(frozen=True)
class _Builder:
    """Makes a chain from the syntax tree of its text."""

    techniques: Mapping[str, type[Compressor]]
    text: str

    def chain(self, node: ast.expr) -> Compressor:
        nodes: list[ast.expr] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift):
            nodes.insert(0, node.right)
            node = node.left
        steps = [self.call(each, "technique", self.techniques) for each in [node, *nodes]]
        return steps[0] if len(steps) == 1 else Chain(*steps)

    def call(self, node: ast.expr, kind: str, known: Mapping[str, type[Any]]) -> Any:
        """Return the step, or the part inside one, that a call makes; `known` are all of a kind."""
        if isinstance(node, ast.Name):
            raise IllegalChain(f"write {node.id}() with parentheses in {_shown(self.text)}")
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            compared = isinstance(node, ast.Compare)
            raise IllegalChain(
                f"a chain holds steps such as quantize(), and {_source(node, self.text)} is none"
                + ("; steps are joined by '->'" if compared else "")
            )
        cls = lookup(kind, node.func.id, known)
        kinds = part_fields(cls)
        places = zip_longest(inspect.signature(cls).parameters, node.args)
        arguments = [self.value(item, kinds.get(key)) for key, item in places if item is not None]
        options = {
            key: self.value(item, kinds.get(key)) for key, item in _keywords(node, self.text)
        }
        return build(cls, *arguments, **cls.modernized(options))

    def value(self, node: ast.expr, kind: PartKind | None) -> Any:
        """Return an option's value: a literal or a chain, or parts where the option takes some."""
        if kind is not None and kind.several and isinstance(node, (ast.List, ast.Tuple)):
            return [self.value(item, replace(kind, several=False)) for item in node.elts]
        if kind is not None and isinstance(node, (ast.Call, ast.Name)):
            return self.call(node, kind.name, kind.table())
        shifted = isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift)
        if isinstance(node, ast.Call) or (shifted and kind is None):
            return self.chain(node)
        return _literal(node, self.text)


def _keywords(call: ast.Call, text: str) -> list[tuple[str, ast.expr]]:
    pairs = []
    for keyword in call.keywords:
        if keyword.arg is None:
            raise IllegalChain(f"'**' is not allowed in {_shown(text)}")
        pairs.append((keyword.arg, keyword.value))
    return pairs


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        name = f": a text stands in quotes, {node.id!r}" if isinstance(node, ast.Name) else ""
        raise IllegalChain(
            f"an option is a number, a text, True, False or None, or a list of such, not "
            f"{_source(node, text)}{name}"
        ) from None


class ModelName(NamedTuple):
    """A parsed model name: the source before the colon (or ''), the name, its options."""

    source: str
    name: str
    options: Mapping[str, Any]


def parse_model_name(text: str) -> ModelName:
    """Parse `resnet20`, `torchvision:resnet18(stem='small')` or `file.py:factory(width=2)`."""
    head, options = parse_call(text)
    source, colon, name = head.rpartition(":")
    if not head or (colon and not (source and name)):
        raise UserError(
            f"cannot read the model name {_shown(text)}: write NAME or SOURCE:NAME(options)"
        )
    return ModelName(source, name, options)


def model_sources(text: str) -> set[str]:
    """Return the sources (libraries, files) that a model's name refers to, members included."""
    source, name, options = parse_model_name(text)
    if source:
        return {source}
    members = options.get("of") if name == "ensemble" else None
    return model_sources(members) if isinstance(members, str) else set()
