"""Types for numbers with a range, and config sections that check them when they are made."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Interval:
    """The numbers that a field takes. NaN and the infinities are never among them."""

    low: float
    high: float = math.inf
    ends: str = "[]"
    """Round where an end is not included."""

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (value == self.low and self.ends[0] == "[")
        below = value < self.high or (value == self.high and self.ends[1] == "]")
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "a finite number"
        if math.isfinite(self.high):
            return f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        return f"{'at least' if self.ends[0] == '[' else 'greater than'} {self.low:g}"


Count = Annotated[int, Interval(1)]
Whole = Annotated[int, Interval(0)]
Finite = Annotated[float, Interval(-math.inf)]
Positive = Annotated[float, Interval(0, ends="(]")]
NotNegative = Annotated[float, Interval(0)]
Chance = Annotated[float, Interval(0, 1)]
BelowOne = Annotated[float, Interval(0, 1, "[)")]
Rate = Annotated[float, Interval(0, 1, "(]")]


class Section:
    """A part of the config: every number in it is checked against the interval of its type."""

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str = "") -> None:
        cls.prefix = prefix

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            interval, value = interval_of(hint), getattr(self, name)
            if interval is None or value is None:
                continue
            for number in value if isinstance(value, list) else [value]:
                if number not in interval:
                    range_ = interval if math.isfinite(number) else "a finite number"
                    raise ValueError(f"{self.prefix}{name} must be {range_}, got {number}")


def interval_of(hint: Any) -> Interval | None:
    """The interval in a type such as `list[Count]` or `Count | None`."""
    if get_origin(hint) is Annotated:
        found: Interval = hint.__metadata__[0]
        return found
    return next(filter(None, map(interval_of, get_args(hint))), None)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)
