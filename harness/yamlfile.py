"""YAML that people write, read so that whatever is wrong with it is YAML's own error, with its place and no value."""

from __future__ import annotations

from typing import Any

import yaml


class Unreadable(yaml.MarkedYAMLError):
    """A value that can't be made of what is written; `problem` does not repeat it, for it may be a secret."""


class Loader(yaml.SafeLoader):
    """Raises Unreadable where PyYAML lets the errors of Python's own conversions and of its recursion pass."""

    def get_single_node(self) -> Any:
        try:
            return super().get_single_node()
        except RecursionError:
            raise Unreadable(problem="is nested too deeply") from None

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            raise Unreadable(problem="a value has a form that YAML can't read; quote it",
                             problem_mark=node.start_mark) from None
