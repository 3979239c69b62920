"""A digest of the source code that a result depends on: modules of this package and all that they import."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def digest_of_code(*modules: str) -> str:
    """SHA-256 (hex) of the code of `imported_files`, without comments and docstrings: finer than a version number.

    Args: modules: dotted names inside the package, such as "training" or "comparison.run_job".
    """
    state = hashlib.sha256()
    for path in imported_files(*modules):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                docstrings = [x for x in body if isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant)]
                node.body = [x for x in body if x not in docstrings]  # pyright: ignore[reportAttributeAccessIssue]
        state.update(f"{path.relative_to(PACKAGE).as_posix()} {ast.dump(tree)}".encode())
    return state.hexdigest()


def imported_files(*modules: str) -> list[Path]:
    """The files of modules and of all modules of this package that they import, in functions, too; sorted.

    Raises: ValueError: no such module.
    """
    found: set[Path] = set()
    waiting = [tuple(module.split(".")) for module in modules]
    for name in waiting:
        if _module_file(name) is None:
            raise ValueError(f"no module {'.'.join(name)} in {PACKAGE}")
    while waiting:
        name = waiting.pop()
        path = _module_file(name)
        if path is not None and path not in found:
            found.add(path)
            waiting += [name[:k] for k in range(len(name))]  # Python runs the __init__ of every package on the way
            waiting += _imported_names(path)
    return sorted(found)


def _imported_names(path: Path) -> Iterator[tuple[str, ...]]:
    """The dotted names that a file imports, whose code its digest covers, inside the package and split at the dots:
    modules and objects in them. Imports for type checkers alone are left out."""
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


def _module_file(name: tuple[str, ...]) -> Path | None:
    """The file of a module whose code a digest covers; None if the name is no module's."""
    path = PACKAGE.joinpath(*name)
    files = (path / "__init__.py", path.with_suffix(".py")) if name else (path / "__init__.py",)
    return next((path for path in files if path.is_file()), None)
