"""The settings of a config with their defaults and meanings, as its source has them."""

import ast
import dataclasses
import inspect
from typing import Any


def settings_rows(kind: type) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every setting of a config, from the docstring under each field."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    docs = {
        field.target.id: inspect.cleandoc(doc.value.value)
        for field, doc in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }
    return [
        (f.name, "" if f.default in (None, "", ()) else _default_text(f.default), " ".join(docs[f.name].split()))
        for f in dataclasses.fields(kind)
    ]


def _default_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
