"""The one textual grammar for passes, pipelines and targets::

    list   = item ("," item)*
    item   = name ["{" option ("," option)* "}"]
    option = key "=" value
    value  = word | "quoted" | "[" [value ("," value)*] "]"

Names are kebab-case, keys snake_case; a word is anything without ``, { } [ ] = "`` and white space. White space
between tokens is ignored. Values stay text here: the pass's option types give them their meaning.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.errors import UsageError

_TOKEN = re.compile(r'\s*(?:(?P<mark>[,{}\[\]=])|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[^\s,{}\[\]="]+))')
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")

Value = str | list["Value"]


@dataclasses.dataclass(frozen=True)
class Item:
    """A name with its options, as written: ``prune-magnitude{sparsity=0.5}``."""

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        return format_item(self.name, self.options)


def parse_list(text: str) -> list[Item]:
    """Parse a pipeline. Raises `UsageError` with the place of the first mistake."""
    reader = _Reader(text)
    if reader.peek() is None:
        return []
    items = [_item(reader)]
    while reader.peek() is not None:
        reader.expect(",")
        items.append(_item(reader))
    return items


def parse_item(text: str) -> Item:
    """Parse one name with options, such as a target."""
    items = parse_list(text)
    if len(items) != 1:
        raise UsageError(f"expected one name with options, as in llvm{{mcpu=native}}, and got {text!r}.")
    return items[0]


def format_item(name: str, options: Mapping[str, Any]) -> str:
    """The text that `parse_item` reads back."""
    if not options:
        return name
    return name + "{" + ",".join(f"{key}={_format(value)}" for key, value in options.items()) + "}"


def format_list(items: Sequence[Item]) -> str:
    """The text that `parse_list` reads back."""
    return ",".join(map(str, items))


def _format(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_format(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if text and re.fullmatch(r'[^\s,{}\[\]="\\]+', text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def _match(self) -> re.Match[str] | None:
        if not self.text[self.position :].strip():
            return None
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise self.error("a quotation mark without its end")
        return match

    def peek(self) -> str | None:
        """The next mark, or "word" for a word or quoted text, or None at the end."""
        match = self._match()
        return None if match is None else match["mark"] or "word"

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.error(f"expected {mark!r}")
        self.position = self._take().end()

    def word(self, what: str) -> str:
        if self.peek() != "word":
            raise self.error(f"expected {what}")
        match = self._take()
        self.position = match.end()
        quoted = match["quoted"]
        return match["word"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)

    def _take(self) -> re.Match[str]:
        match = self._match()
        assert match is not None
        return match

    def error(self, what: str) -> UsageError:
        return UsageError(
            f"{what} at column {self.position + 1} of {self.text!r}; the form is name{{key=value,...}}, "
            'and a value with spaces or marks stands in "quotes".'
        )


def _item(reader: _Reader) -> Item:
    name = reader.word("a name")
    if not _NAME.match(name):
        raise reader.error(f"{name!r} is not a kebab-case name")
    options: dict[str, Any] = {}
    if reader.peek() == "{":
        reader.expect("{")
        while reader.peek() != "}":
            if options:
                reader.expect(",")
            key = reader.word("an option's name")
            if key in options:
                raise reader.error(f"option {key!r} is given twice")
            reader.expect("=")
            options[key] = _value(reader)
        reader.expect("}")
    return Item(name, options)


def _value(reader: _Reader) -> Value:
    if reader.peek() != "[":
        return reader.word("a value")
    reader.expect("[")
    values: list[Value] = []
    while reader.peek() != "]":
        if values:
            reader.expect(",")
        values.append(_value(reader))
    reader.expect("]")
    return values
