from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report.layout import clean, shell_lines, width, wrap, wrap_chain
from compress.report.markup import MARKDOWN, PLAIN


def test_chains_break_before_arrows_then_after_commas_and_parentheses():
    assert wrap_chain("a(x=1) -> b(y=2) -> c()", 16) == ["a(x=1) -> b(y=2)", "-> c()"]
    assert wrap_chain("distill(student='cnn-small', epochs=10) -> quantize()", 24) == [
        "distill(",
        "  student='cnn-small',",
        "  epochs=10)",
        "-> quantize()",
    ]
    assert wrap_chain("x" * 11, 5) == ["xxxxx", "  xxx", "  xxx"]


@given(st.text(max_size=300), st.integers(8, 60))
def test_wrapping_keeps_all_but_blanks_and_the_width(text, limit):
    text = clean(text)
    for lines in (wrap(text, limit), wrap_chain(text, limit)):
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(width(line) <= limit for line in lines)


def test_clean_leaves_nothing_that_moves_a_cursor():
    assert clean("a\n\tb\x1b[31m\u202e\u2028c\xa0d") == r"a b\x1b[31m\u202e c d"


def test_a_wide_character_takes_two_columns():
    assert width("漢x") == 3


def test_escaped_markdown():
    shown = r"&lt;b&gt; \| \`x\` \[a\](b) &amp; \\ \*y\*"
    text = r"<b> | `x` [a](b) & \ *y*"
    assert MARKDOWN.escape(text) == shown
    assert PLAIN.escape(text) == text


@pytest.mark.parametrize(
    ("line", "guarded"),
    [
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("# a", r"\# a"),
        ("1.5 a", "1.5 a"),
        ("a - b", "a - b"),
    ],
)
def test_no_line_starts_a_block(line, guarded):
    assert MARKDOWN.guard(line) == guarded
    assert PLAIN.guard(line) == line


WORDS = st.lists(st.text("ab'\"$`\\! \t>é漢", max_size=60), min_size=1, max_size=5)


@given(WORDS)
def test_a_broken_command_is_the_same_command(words):
    lines = shell_lines(shlex.join(words), 40)
    assert all(width(line) <= 40 for line in lines)
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == words


def test_a_shell_agrees():
    words = ["printf", "%s|", "a b", "x" * 90, "distill(student='cnn') -> " * 5, "$HOME `ls` \\ !"]
    lines = shell_lines(shlex.join(words), 40)
    done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout == "|".join(words[2:]) + "|"
    assert re.search(r"\\$", lines[0])
