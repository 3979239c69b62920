"""The code that a result depends on: modules of this package and all of it that they import, as the sources say."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def digest(*modules: str) -> str:
    """SHA-256 (hex) of the code of a closure, without comments and docstrings: in development a version says little.

    Args: modules: dotted names inside the package, such as "training" or "comparison.run_job".
    """
    state = hashlib.sha256()
    for path in closure(*modules):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                said = [x for x in body if isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant)]
                node.body = [x for x in body if x not in said]  # pyright: ignore[reportAttributeAccessIssue]
        state.update(f"{path.relative_to(PACKAGE).as_posix()} {ast.dump(tree)}".encode())
    return state.hexdigest()


def closure(*modules: str) -> list[Path]:
    """The files of modules and of whatever of the package is imported when they work, inside functions, too; sorted.

    Raises: ValueError: no such module.
    """
    found: set[Path] = set()
    waiting = [tuple(module.split(".")) for module in modules]
    for name in waiting:
        if _file(name) is None:
            raise ValueError(f"no module {'.'.join(name)} in {PACKAGE}")
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is not None and path not in found:
            found.add(path)
            waiting += [name[:k] for k in range(len(name))]  # Python runs the __init__ of every package on the way
            waiting += _imported(path)
    return sorted(found)


def _imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The parts of the dotted names, inside the package, that a file imports; some are not of modules but of what is in
    them. What is imported for type checkers alone is left out."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == PACKAGE.name:
                    yield tuple(rest)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = [*folder[: len(folder) - node.level + 1], *module]
            elif module[:1] == [PACKAGE.name]:
                module = module[1:]
            else:
                continue
            yield tuple(module)
            yield from ((*module, alias.name) for alias in node.names)


def _file(name: tuple[str, ...]) -> Path | None:
    """The file of a module; None: it is no module."""
    place = PACKAGE.joinpath(*name)
    files = (place / "__init__.py", place.with_suffix(".py")) if name else (place / "__init__.py",)
    return next((path for path in files if path.is_file()), None)
