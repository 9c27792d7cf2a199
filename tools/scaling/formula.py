"""KEDA's `scalingModifiers.formula`: the part of its expression language (expr-lang) that formulas are made of."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serinette.errors import ConfigurationError

_TOKEN = re.compile(r"\s*(?:(\d+\.\d+|\.\d+|\d+)|([A-Za-z_]\w*)|(&&|\|\||==|!=|>=|<=|\*\*|[-+*/%<>!?:(),]))")
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "max": max,
    "min": min,
    "round": lambda value: math.copysign(math.floor(abs(value) + 0.5), value),  # halves away from zero, as Go's
}
_COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
# Binary operators, loosest first.
_LEVELS: tuple[dict[str, Callable[[float, float], float]], ...] = (
    {word: lambda left, right: float(bool(left or right)) for word in ("||", "or")},
    {word: lambda left, right: float(bool(left and right)) for word in ("&&", "and")},
    {word: lambda left, right, as_=as_: float(as_(left, right)) for word, as_ in _COMPARISONS.items()},  # type: ignore[misc]
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv, "%": math.fmod},
)

Values = Mapping[str, float]
_Node = Callable[[Values], float]


@dataclass(frozen=True)
class Formula:
    """A formula, parsed once."""

    text: str
    names: frozenset[str]  # the triggers that it reads
    _evaluate: _Node

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Read a formula. Raises ConfigurationError for what is not in the language as it is known here."""
        parser = _Parser(text)
        node = parser.ternary()
        if parser.next:
            raise parser.wrong("an end")
        return cls(text, frozenset(parser.names), node)

    def __call__(self, values: Values) -> float:
        """Its value; truths are 1 and 0. Raises ConfigurationError where KEDA's would fail too: a name without a value,
        a division by zero.
        """
        if missing := sorted(self.names - set(values)):
            raise ConfigurationError(f"the formula {self.text!r} reads {', '.join(missing)}, which no trigger is named")
        try:
            return float(self._evaluate(values))
        except ZeroDivisionError:
            raise ConfigurationError(f"the formula {self.text!r} divides by zero; KEDA then takes it as 0") from None


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.names, self._at = text, set[str](), 0
        self._tokens = self._read()

    def _read(self) -> list[str]:
        tokens, at = [], 0
        text = self.text.rstrip()
        while at < len(text):
            if (match := _TOKEN.match(text, at)) is None:
                raise ConfigurationError(f"the formula {self.text!r} cannot be read at {text[at : at + 10]!r}")
            tokens.append(match.group(match.lastindex or 0))
            at = match.end()
        return tokens

    @property
    def next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def wrong(self, wanted: str) -> ConfigurationError:
        return ConfigurationError(
            f"the formula {self.text!r} has {self.next or 'its end'!r} where {wanted} was expected"
        )

    def _take(self, *wanted: str) -> str:
        token = self.next
        if wanted and token not in wanted:
            raise self.wrong(" or ".join(wanted))
        self._at += 1
        return token

    def ternary(self) -> _Node:
        test = self._binary(0)
        if self.next != "?":
            return test
        self._take()
        then = self.ternary()
        self._take(":")
        otherwise = self.ternary()
        return lambda values: then(values) if test(values) else otherwise(values)

    def _binary(self, level: int) -> _Node:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self.next in _LEVELS[level]:
            left = _joined(_LEVELS[level][self._take()], left, self._binary(level + 1))
        return left

    def _unary(self) -> _Node:
        if self.next in {"!", "not"}:
            self._take()
            inner = self._unary()
            return lambda values: float(not inner(values))
        if self.next == "-":
            self._take()
            inner = self._unary()
            return lambda values: -inner(values)
        return self._atom()

    def _atom(self) -> _Node:
        if self.next == "(":
            self._take()
            inner = self.ternary()
            self._take(")")
            return inner
        token = self._take()
        if re.fullmatch(r"[\d.]+", token):
            value = float(token)
            return lambda _: value
        if not re.fullmatch(r"[A-Za-z_]\w*", token):
            self._at -= 1
            raise self.wrong("a number, a trigger or a function")
        if self.next == "(":
            return self._call(token)
        self.names.add(token)
        return lambda values: values[token]

    def _call(self, name: str) -> _Node:
        if name not in _FUNCTIONS:
            raise ConfigurationError(
                f"the formula {self.text!r} calls {name}, which is not known here: {', '.join(sorted(_FUNCTIONS))}"
            )
        self._take("(")
        arguments = [self.ternary()]
        while self._take(",", ")") == ",":
            arguments.append(self.ternary())
        function = _FUNCTIONS[name]
        return lambda values: float(function(*(argument(values) for argument in arguments)))


def _joined(operation: Callable[[float, float], float], left: _Node, right: _Node) -> _Node:
    return lambda values: operation(left(values), right(values))
