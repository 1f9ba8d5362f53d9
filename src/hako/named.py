"""NamedTuple, made quickly: for type checkers it is typing's, and it does what typing's does.

typing's takes up to 0.2 ms for each class, most of it to compile annotations that nobody ever evaluates, and a sandbox
process has thirty classes before it can start a VM. To load typing itself takes as long as all of these.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    # collections brings more modules than this needs.
    from _collections import _tuplegetter

    def _new(cls, *values, **named):
        fields = cls._fields
        if named or len(values) != len(fields):
            values = _complete(cls, values, named)
        return tuple.__new__(cls, values)

    def _complete(cls, values, named):
        """Values of all fields: those without names first, then the named ones, defaults for the rest."""
        fields, defaults = cls._fields, cls._field_defaults
        if len(values) > len(fields):
            raise TypeError(f"{cls.__name__} has {len(fields)} fields, not {len(values)}")
        rest = fields[len(values) :]
        if not named.keys() <= set(rest):
            unknown = ", ".join(sorted(named.keys() - set(rest)))
            raise TypeError(f"{cls.__name__} has no further field {unknown}")
        missing = [name for name in rest if name not in named and name not in defaults]
        if missing:
            raise TypeError(f"{cls.__name__} needs a value for {', '.join(missing)}")
        return (*values, *(named[name] if name in named else defaults[name] for name in rest))

    def _make(cls, iterable):
        return cls(*iterable)

    def _replace(self, /, **changes):
        values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
        if changes:
            raise ValueError(f"{type(self).__name__} has no field {', '.join(sorted(changes))}")
        return tuple.__new__(type(self), values)

    def _asdict(self):
        return dict(zip(self._fields, self, strict=True))

    def _repr(self):
        pairs = zip(self._fields, self, strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def _getnewargs(self):
        return tuple(self)

    _METHODS = {
        "_make": classmethod(_make),
        "_replace": _replace,
        "_asdict": _asdict,
        "__repr__": _repr,
        "__getnewargs__": _getnewargs,
    }

    class _Meta(type):
        """Turns the body of a class, with annotated fields and maybe their defaults, into a kind of tuple."""

        def __new__(mcs, name, _bases, body):
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body.pop(field) for field in fields if field in body}
            if fields[len(fields) - len(defaults) :] != tuple(defaults):
                raise TypeError(f"{name}: a field without a default follows one that has one")
            body |= {field: _tuplegetter(at, f"Field number {at}") for at, field in enumerate(fields)}
            shape = {"_fields": fields, "_field_defaults": defaults, "__match_args__": fields, "__slots__": ()}
            return type(name, (tuple,), _METHODS | {"__new__": _new} | body | shape)

    class _Fields:
        """What is written as the base of such a class; it is none."""

        def __mro_entries__(self, _bases):
            return (_BASE,)

    _BASE = type.__new__(_Meta, "NamedTuple", (), {})
    NamedTuple = _Fields()
