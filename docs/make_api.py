# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""docs/api.md, made from the public docstrings.

    python docs/make_api.py           fails where the page is not what the docstrings say
    python docs/make_api.py --write   writes it

A docstring is prose with indented formulas, then Google's sections (Args, Returns, Raises, Source, ...): what
`sections_of` parses, the tests read as well.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_name("api.md")
sys.path.insert(0, str(ROOT))

import sparsekernels  # noqa: E402
from sparsekernels import formats, nn, pruning, testing, training  # noqa: E402

MODULES: tuple[tuple[ModuleType, str], ...] = (
    (sparsekernels, "sk"),
    (nn, "sk.nn"),
    (formats, "sparsekernels.formats"),
    (pruning, "sparsekernels.pruning"),
    (training, "sparsekernels.training"),
    (testing, "sparsekernels.testing"),
)
"""The modules whose public names are the interface, and how the page writes them."""

ENTRIES = ("Args", "Attributes", "Raises")
"""Sections that are a list of names; all others are prose."""
SECTIONS = (*ENTRIES, "Returns", "Yields", "Note", "Notes", "Example", "Examples", "Source", "References", "Shape")

HEADER = """\
# API reference

Made from the docstrings by `python docs/make_api.py --write`; `sk` is `import sparsekernels as sk`.
Introductions: [convert](convert.md), [sparse layers](sparse_layers.md), [RMSNorm](rms_norm.md).
"""


@dataclass
class Docstring:
    """A docstring taken apart. `entries` has the items of Args, Attributes and Raises, `prose` all other sections."""

    summary: str = ""
    body: str = ""
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    prose: dict[str, str] = field(default_factory=dict)

    def has(self, section: str) -> bool:
        return section in self.entries or section in self.prose


@dataclass(frozen=True)
class Entry:
    """A public name; `names` are its public members, with their owner's name in front."""

    name: str
    value: Any
    members: tuple[Entry, ...] = ()


def sections_of(text: str) -> Docstring:
    text = inspect.cleandoc(text)
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):[ ]*", text, flags=re.MULTILINE)
    summary, _, body = pieces[0].strip().partition("\n\n")
    found = Docstring(" ".join(summary.split()), body.strip("\n"))
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        if name in ENTRIES:
            found.entries[name] = dict(_items(textwrap.dedent(content.strip("\n"))))
        else:
            first, _, rest = content.partition("\n")
            found.prose[name] = "\n".join(one for one in (first, textwrap.dedent(rest).strip("\n")) if one.strip())
    return found


def _items(content: str) -> Iterator[tuple[str, str]]:
    """`name (type): text`, continued on indented lines."""
    for item in re.split(r"\n(?=\S)", content):
        name, _, text = item.partition(":")
        yield name.strip(), " ".join(text.split())


def public_names(modules: tuple[tuple[ModuleType, str], ...] = MODULES) -> Iterator[tuple[str, Entry]]:
    """Each module's entries, with how the page writes the module; a name is shown where it stands first."""
    shown: set[int] = set()
    for module, prefix in modules:
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items() if _is_own(module, name, value)
        ]
        for name in names:
            value = getattr(module, name)
            if not callable(value) or id(value) in shown:  # modules and constants are not described one by one
                continue
            shown.add(id(value))
            members = tuple(_members(f"{prefix}.{name}", value)) if inspect.isclass(value) else ()
            yield prefix, Entry(f"{prefix}.{name}", value, members)


def _is_own(module: ModuleType, name: str, value: Any) -> bool:
    """Whether a module without __all__ defines it, for others."""
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)


def _members(owner: str, value: type) -> Iterator[Entry]:
    """What our own classes define, own bases included; not what torch's or Python's do, nor overrides of them."""
    if issubclass(value, enum.Enum):
        return
    own = [base for base in value.__mro__ if base.__module__.startswith("sparsekernels")]
    for name in sorted({name for base in own for name in vars(base) if not name.startswith("_")}):
        definition = next(vars(base)[name] for base in own if name in vars(base))
        function = getattr(definition, "__func__", definition)
        is_documented = isinstance(definition, property) or callable(function)
        is_override = any(hasattr(base, name) for base in value.__mro__ if base not in own)
        if is_documented and not is_override and inspect.getdoc(definition):
            yield Entry(f"{owner}.{name}", definition)


def signature_of(entry: Entry) -> str:
    """As it is called, without self."""
    value = entry.value
    if isinstance(value, property):
        return entry.name
    function = getattr(value, "__func__", value)
    try:
        signature = inspect.signature(function)
    except ValueError:
        return entry.name
    parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    result = signature.return_annotation
    returns = "" if inspect.isclass(value) or result is inspect.Signature.empty else f" -> {result}"
    written = list(_written(parameters))
    line = f"{entry.name}({', '.join(written)}){returns}"
    if len(line) <= 100:
        return line
    lines = "".join(f"    {one},\n" for one in written)
    return f"{entry.name}(\n{lines}){returns}"


def _written(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    for one in parameters:
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield re.sub(r"^(\W*\w+): '(.*?)'", r"\1: \2", str(one))  # annotations are strings in our modules


def rendered(entry: Entry, level: int) -> str:
    """Markdown of one name and its members."""
    docstring = sections_of(inspect.getdoc(entry.value) or "")
    text = f"{'#' * level} {entry.name}\n\n```\n{signature_of(entry)}\n```\n\n{_escaped(docstring.summary)}\n"
    if docstring.body:
        text += f"\n{_escaped(docstring.body)}\n"
    for section, items in docstring.entries.items():
        lines = "\n".join(f"- `{name}`: {_escaped(content)}" for name, content in items.items())
        text += f"\n**{section}**\n\n{lines}\n"
    for section, content in docstring.prose.items():
        text += f"\n**{section}:** {_escaped(content)}\n"
    return "\n".join([text, *(rendered(member, level + 1) for member in entry.members)])


def _escaped(text: str) -> str:
    """Prose as markdown: formulas, which are indented, stay as they are."""
    return "\n".join(
        line if line.startswith("    ") else re.sub(r"(?<!`)\*(?![`\w ]*`)", r"\\*", line) for line in text.split("\n")
    )


def page() -> str:
    text, last = HEADER, ""
    for prefix, entry in public_names():
        if prefix != last:
            module = next(module for module, name in MODULES if name == prefix)
            text += f"\n## {module.__name__}\n\n{_escaped(inspect.getdoc(module) or '')}\n"
            last = prefix
        text += "\n" + rendered(entry, 3)
    return text


def main(write: bool) -> int:
    made = page()
    if write:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
        print("docs/api.md is not what the docstrings say: run python docs/make_api.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
