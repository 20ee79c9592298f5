"""YAML as users mean it, for everything that they write: settings, run files, criteria, model cards.

PyYAML reads YAML 1.1, in which ``2:00`` is 120, ``0100`` is 64 and ``1e-3`` is a text. Here numbers are those of YAML
1.2, and of JSON: 0100 is 100, as in Python's ``int`` and on a command line; what is no number, such as ``2:00``, is a
text, which whoever wants a number refuses.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

INT, FLOAT, MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "merge"))
WHOLE = re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
REAL = re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")


def read_yaml(text: str) -> Any:
    """What a YAML or JSON text says.

    Raises:
        yaml.YAMLError: malformed, or a key that comes twice.

    Example:
        >>> read_yaml("[0100, 1e-3, 2:00, 8/255]")
        [100, 0.001, '2:00', '8/255']
    """
    return _load(text, _Loader)


def read_words(text: str) -> Any:
    """The same with numbers and dates as they are written, for words of a command line.

    Raises:
        yaml.YAMLError: as :func:`read_yaml`.

    Example:
        >>> read_words("{cases: [007, case_8], eps: 1e-3, yes: true}")
        {'cases': ['007', 'case_8'], 'eps': '1e-3', True: True}
    """
    return _load(text, _Words)


def _load(text: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, loader)
    except ValueError as error:  # PyYAML's, of a 13th month or a number of thousands of digits
        raise yaml.YAMLError(str(error)) from error


class _Words(yaml.SafeLoader):
    """Neither numbers nor dates, and a key that comes twice is an error; PyYAML's own loader takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen |= {key} if isinstance(key, str | int | float) else set()
        return super().construct_mapping(node, deep)


class _Loader(_Words):
    """With numbers and dates."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _without(*kinds: str) -> dict[Any, Any]:
    """PyYAML's rules for the first character of a plain word, without those for some kinds."""
    dropped = {f"tag:yaml.org,2002:{kind}" for kind in kinds}
    rules = yaml.SafeLoader.yaml_implicit_resolvers
    return {first: [rule for rule in each if rule[0] not in dropped] for first, each in rules.items()}


_Words.yaml_implicit_resolvers = _without("int", "float", "timestamp")
_Loader.yaml_implicit_resolvers = _without("int", "float")
_Loader.add_implicit_resolver(INT, WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(FLOAT, REAL, list("-+0123456789."))
_Loader.add_constructor(INT, _Loader.construct_yaml_int)
