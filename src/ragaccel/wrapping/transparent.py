"""Transparent subclasses: an object cloned into a subclass of its own class.

The clone passes every `isinstance` test that the original passes, keeps its name, fields, dumps and
native methods, and differs only in the seam methods of a mixin. Framework-free: the adapters bring
the mixins.
"""

from __future__ import annotations

import copy
import functools
import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from ragaccel.cache import Uncacheable
from ragaccel.errors import ConfigurationError, UnsupportedComponentError
from ragaccel.wrapping.seam import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    Adapter = Callable[[Any, Options], Any]

T = TypeVar("T")

_STATE: Final = "ragaccel_state_"


class State:
    """The one thing that a transparent object carries besides its original's attributes."""

    __slots__ = ("known", "options", "original")

    def __init__(self, options: Options, original: object) -> None:
        """Keep the options, the object that was wrapped, and what adapters find out of it."""
        self.options = options
        self.original = original
        self.known: dict[Any, Any] = {}

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


def wrap(obj: T, mixin: type, options: Options, identity: Callable[[], object]) -> T:
    """Return a clone of an object whose class has the mixin's methods before its own.

    Args:
        obj: The object.
        mixin: The seam methods.
        options: What `accelerate` was asked for.
        identity: Gives what tells the object apart from others; raises `Uncacheable`.

    Raises:
        ConfigurationError: It is to be cached and cannot be told apart.
        UnsupportedComponentError: The object keeps attributes outside its `__dict__`.
    """
    if options.cache is not None:
        try:
            identity()
        except Uncacheable as error:
            name = plain_class(type(obj)).__name__
            raise ConfigurationError(
                f"{name} has settings that ragaccel cannot see, so two of them could share cached "
                "answers; name what decides its answers: accelerate(…, cache=cache, "
                'identity="...").'
            ) from error
    return _wrap(obj, mixin, options)


def _wrap(obj: T, mixin: type, options: Options) -> T:
    state = State(options, unwrap(obj))
    base = plain_class(type(obj))
    clone = _clone(obj, _transparent_class(base, mixin))
    clone.__dict__[_STATE] = state
    finish = getattr(mixin, "finish_clone", None)
    if finish is not None:
        finish(clone)
    return cast("T", clone)


def unwrap(obj: T) -> T:
    """Return the object that `accelerate` was given; another object comes back as it is."""
    state = state_of(obj)
    return obj if state is None else cast("T", state.original)


def state_of(obj: object) -> State | None:
    """Return the state of a transparent object, or None."""
    return getattr(obj, "__dict__", {}).get(_STATE)


def options_of(obj: object) -> Options:
    """Return what `accelerate` was asked for, for this object."""
    state = state_of(obj)
    return Options() if state is None else state.options


class Around:
    """Carries something of the user's in a clone; where the clone is pickled, that alone goes.

    Args:
        inner: The user's own.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.inner, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.inner,)


def _itself(inner: Any) -> Any:
    return inner


def put_around(clone: Any, name: str, cls: type[Around]) -> None:
    """Put an object of a class around an attribute of a clone, if there is one, and once."""
    inner = getattr(clone, name)
    if inner is not None and not isinstance(inner, Around):
        clone.__dict__[name] = cls(inner)


def adapter_of(obj: object, adapters: Mapping[type, str], package: str) -> Adapter | None:
    """Return what wraps an object, or None.

    Args:
        obj: The object.
        adapters: By base class the module whose `accelerated` wraps; it is imported here.
        package: Of the modules.
    """
    name = next((name for base, name in adapters.items() if isinstance(obj, base)), None)
    if name is None:
        return None
    return cast("Adapter", import_module(f"{package}.{name}").accelerated)


def keep_defaults(made: Any, base: Any, root: Any, *names: str) -> None:
    """Let a transparent class keep those methods that its base has from its framework's root.

    Frameworks ask whether a class has methods of its own, and their defaults call the others.
    """
    for name in names:
        default = inspect.getattr_static(root, name)
        if inspect.getattr_static(base, name) is default:
            setattr(made, name, default)


def plain_class(cls: type) -> type:
    """Return the class that a transparent class was made from; another class as it is."""
    return getattr(cls, "__ragaccel_base__", cls)


@functools.cache
def _transparent_class(base: type, mixin: type) -> type:
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
    }
    if _is_pydantic(base):
        from pydantic import Field

        body["__annotations__"] = {_STATE: Any}
        body[_STATE] = Field(default=None, exclude=True, repr=False)
    made = type(base)(base.__name__, (mixin, base), body)
    # After creation: metaclasses and __init_subclass__ of the base have had their say.
    made.__ragaccel_base__ = base  # type: ignore[attr-defined]
    finish = getattr(mixin, "finish_class", None)
    if finish is not None:
        finish(made, base)
    return made


def _clone(obj: Any, cls: type) -> Any:
    if _is_pydantic(cls):
        clone = copy.copy(obj)
        object.__setattr__(clone, "__class__", cls)
        return clone
    if not hasattr(obj, "__dict__") or any(vars(c).get("__slots__") for c in cls.__mro__):
        raise UnsupportedComponentError(
            f"{type(obj).__name__} keeps attributes in __slots__ and cannot be cloned."
        )
    clone = object.__new__(cls)
    clone.__dict__.update(obj.__dict__)
    return clone


def _is_pydantic(cls: type) -> bool:
    return hasattr(cls, "__pydantic_fields__")


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle the plain object and the options; the class is made again on the other side."""
    del protocol
    state = state_of(self)
    bare = _clone(self, plain_class(type(self)))
    bare.__dict__.pop(_STATE, None)
    mixin = type(self).__mro__[1]
    return _restore, (bare, mixin, state.options if state is not None else Options())


def _restore(bare: Any, mixin: type, options: Options) -> Any:
    return _wrap(bare, mixin, options)
