"""What a program was before a function that it calls was updated, by its text: nothing is run."""

from __future__ import annotations

import ast
import re

__all__ = ["new_parameters", "program_before"]

_LONGEST = 100_000  # characters: no program of a benchmark is longer, and a parser's work is bounded


def new_parameters(implementation: str, old_signature: str | None = None) -> set[str]:
    """Parameters of an updated function that the old one does not have.

    Args:
        implementation: The updated function, which calls the old one as ``old_NAME``.
        old_signature: Of the old function, such as ``math.hypot(*coordinates)``; without, the parameters of the new one
            that are no part of what it gives the old one.

    Returns:
        Their names; none where that cannot be told.
    """
    tree = _parse(implementation)
    function = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None) if tree else None
    if function is None:
        return set()
    given = function.args
    names = {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self"}
    if old_signature is not None:
        return names - set(re.findall(r"\w+", old_signature.partition("(")[2]))
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and _name(node).startswith("old_")]
    passed = {
        inner.id
        for call in calls
        for part in (*call.args, *(keyword.value for keyword in call.keywords))
        for inner in ast.walk(part)
        if isinstance(inner, ast.Name)
    }
    return names - passed if calls else set()


def program_before(program: str, function: str, *, old_name: str | None = None, new: set[str]) -> str | None:
    """The program as it was written for the old function: calls without the new arguments, by the old name.

    Args:
        program: Python that calls the updated function.
        function: The last part of the updated function's name.
        old_name: What it was called before, where it was renamed.
        new: Arguments that the old one does not have.

    Returns:
        ``None`` where that changes nothing, or the program is none: what changed then is not how it is called.
    """
    tree = _parse(program)
    if tree is None:
        return None
    lines = [line.encode() for line in program.splitlines(keepends=True)]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    edits: list[tuple[int, int, bytes]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _name(node) != function:
            continue
        if old_name is not None:
            end = _end(node.func, starts)
            edits.append((end - len(function.encode()), end, old_name.encode()))
        edits += _without(node, new, starts)
    outermost = [
        edit
        for edit in edits
        if not any(other != edit and other[0] <= edit[0] and edit[1] <= other[1] for other in edits)
    ]
    content = program.encode()
    for start, end, text in sorted(set(outermost), reverse=True):
        content = content[:start] + text + content[end:]
    before = content.decode()
    return before if edits and _parse(before) is not None else None


def _without(call: ast.Call, new: set[str], starts: list[int]) -> list[tuple[int, int, bytes]]:
    """Cuts of keyword arguments, each with the comma that joins it to what stands before or behind it."""
    parts: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
    parts.sort(key=lambda part: _start(part, starts))
    cuts = []
    kept_before = False
    for index, part in enumerate(parts):
        if not isinstance(part, ast.keyword) or part.arg not in new:
            kept_before = True
        elif kept_before:
            cuts.append((_end(parts[index - 1], starts), _end(part, starts), b""))
        else:
            behind = _start(parts[index + 1], starts) if index + 1 < len(parts) else _end(part, starts)
            cuts.append((_start(part, starts), behind, b""))
    return cuts


def _start(node: ast.expr | ast.keyword, starts: list[int]) -> int:
    return starts[node.lineno - 1] + node.col_offset


def _end(node: ast.expr | ast.keyword, starts: list[int]) -> int:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return starts[node.end_lineno - 1] + node.end_col_offset


def _name(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))


def _parse(text: str) -> ast.Module | None:
    if len(text) > _LONGEST:
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
