"""The kinds of settings: how a value of each is read from TOML or from text, checked, shown and explained."""

from __future__ import annotations

from hako.errors import ConfigError
from hako.units import format_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Prefix of hako's own annotations.
ANNOTATION_PREFIX = "dev.hako."
#: Prefix of the annotations of Kata Containers that hako understands too, so that people can switch.
KATA_PREFIX = "io.katacontainers.config."


class Setting:
    """One row of the table: how its value is read, checked and explained."""

    kind = ""  #: the type, as a person would say it
    example = ""  #: a right value, as TOML

    def __init__(self, default: object, help: str, *, annotation: str = "", kata: str = "", unit: str = "") -> None:
        self.default = default
        self.help = help
        self.annotation = ANNOTATION_PREFIX + annotation if annotation else ""
        self.kata = KATA_PREFIX + kata if kata else ""
        self.kata_unit = unit  #: what Kata's bare number is counted in

    def check(self, value: object, what: str) -> object:
        """The value for ``value`` as TOML gives it. Raises ConfigError that names ``what``."""
        raise self._refuse(value, what)

    def parse(self, text: str, what: str) -> object:
        """The value for ``text`` from an annotation or a flag. Raises ConfigError that names ``what``."""
        return self.check(text, what)

    def show(self, value: object) -> str:
        """``value`` as one would write it in TOML."""
        import json

        return json.dumps(value, ensure_ascii=False)

    def limits(self) -> str:
        """What values are accepted, in words; empty when any value of the type is."""
        return ""

    def _refuse(self, value: object, what: str) -> ConfigError:
        return ConfigError(f"{what} cannot be {value!r}: it must be {self.kind}, for example {self.example}.")


class _Text(Setting):
    kind = "text in quotes"
    example = '"abc"'

    def check(self, value: object, what: str) -> object:
        if not isinstance(value, str):
            raise self._refuse(value, what)
        if "\0" in value or "\n" in value:
            raise ConfigError(f"{what} cannot be {value!r}: it must be one line of text.")
        return value


class _Path(_Text):
    kind = "an absolute path in quotes, or empty"
    example = '"/srv/vmlinuz"'

    def check(self, value: object, what: str) -> object:
        text = super().check(value, what)
        assert isinstance(text, str)
        if text and not text.startswith("/"):
            raise self._refuse(value, what)
        return text

    def limits(self) -> str:
        return "an absolute path, or empty"


class _Choice(_Text):
    def __init__(self, default: str, help: str, choices: tuple[str, ...], **more: str) -> None:
        super().__init__(default, help, **more)
        self.choices = choices

    def check(self, value: object, what: str) -> object:
        if value not in self.choices:
            raise ConfigError(f"{what} cannot be {value!r}: it must be {self.limits()}.")
        return value

    def limits(self) -> str:
        return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)


class _Number(Setting):
    def __init__(self, default: float, help: str, minimum: float, maximum: float, **more: str) -> None:
        super().__init__(default, help, **more)
        self.minimum = minimum
        self.maximum = maximum

    def _in_range(self, number: float, what: str, shown: object) -> float:
        if not self.minimum <= number <= self.maximum:
            raise ConfigError(f"{what} cannot be {shown!r}: it must be {self.limits()}.")
        return number

    def limits(self) -> str:
        return f"{self.minimum:g} to {self.maximum:g}"


class _Integer(_Number):
    kind = "a whole number"
    example = "2"

    def check(self, value: object, what: str) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._refuse(value, what)
        return self._in_range(value, what, value)

    def parse(self, text: str, what: str) -> object:
        # ASCII digits only: int() would also take underscores, signs and the digits of other scripts.
        if not (text.isascii() and text.isdigit()):
            raise self._refuse(text, what)
        return self.check(int(text[:20]), what)


class _Seconds(_Number):
    kind = "a number of seconds"
    example = "2.5"

    def check(self, value: object, what: str) -> object:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._refuse(value, what)
        return float(self._in_range(value, what, value))

    def parse(self, text: str, what: str) -> object:
        try:
            return self.check(float(text), what)
        except ValueError:
            raise self._refuse(text, what) from None

    def limits(self) -> str:
        return f"{self.minimum:g} to {self.maximum:g} seconds"


class _Size(_Number):
    kind = "a size"
    example = '"512m"'

    def __init__(self, default: str, help: str, minimum: str, maximum: str, **more: str) -> None:
        low, high = parse_size(minimum, "minimum"), parse_size(maximum, "maximum")
        super().__init__(parse_size(default, "default"), help, low, high, **more)

    def check(self, value: object, what: str) -> object:
        if isinstance(value, str):
            size = parse_size(value, what)
        elif isinstance(value, int) and not isinstance(value, bool):
            size = value
        else:
            raise self._refuse(value, what)
        return self._in_range(size, what, value)

    def show(self, value: object) -> str:
        assert isinstance(value, int)
        for unit, factor in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
            if value and value % factor == 0:
                return f'"{value // factor}{unit}"'
        return str(value)

    def limits(self) -> str:
        return f"{format_size(self.minimum)} to {format_size(self.maximum)}"


class _Flag(Setting):
    kind = "true or false"
    example = "true"

    def check(self, value: object, what: str) -> object:
        if not isinstance(value, bool):
            raise self._refuse(value, what)
        return value

    def parse(self, text: str, what: str) -> object:
        if text not in ("true", "false"):
            raise self._refuse(text, what)
        return text == "true"


class _List(Setting):
    kind = "a list of texts"
    example = '["one", "two"]'

    def check(self, value: object, what: str) -> object:
        if isinstance(value, tuple):
            value = list(value)
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self._refuse(value, what)
        return tuple(value)

    def parse(self, text: str, what: str) -> object:
        return self.check([item.strip() for item in text.split(",")] if text.strip() else [], what)


# A row is a call of one of these. They are typed as returning Any so that `memory: int = size(...)` gives the
# attribute the type that its values have.
def text(default: str, help: str, **more: str) -> Any:
    """A row whose value is one line of text."""
    return _Text(default, help, **more)


def path(default: str, help: str, **more: str) -> Any:
    """A row whose value is an absolute path, or empty."""
    return _Path(default, help, **more)


def choice(default: str, help: str, choices: tuple[str, ...], **more: str) -> Any:
    """A row whose value is one of ``choices``."""
    return _Choice(default, help, choices, **more)


def integer(default: int, help: str, minimum: int, maximum: int, **more: str) -> Any:
    """A row whose value is a whole number within limits."""
    return _Integer(default, help, minimum, maximum, **more)


def seconds(default: float, help: str, minimum: float, maximum: float, **more: str) -> Any:
    """A row whose value is a duration in seconds within limits."""
    return _Seconds(default, help, minimum, maximum, **more)


def size(default: str, help: str, minimum: str, maximum: str, **more: str) -> Any:
    """A row whose value is a size in bytes within limits, written like ``512m``."""
    return _Size(default, help, minimum, maximum, **more)


def flag(default: bool, help: str, **more: str) -> Any:
    """A row whose value is true or false."""
    return _Flag(default, help, **more)


def strings(default: tuple[str, ...], help: str, **more: str) -> Any:
    """A row whose value is a list of texts."""
    return _List(default, help, **more)
