"""Find the plug-ins of one folder, or a function of the user's. Adding one is adding a file: nobody edits a list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pruning.errors import OptionError, PruningError, UnknownNameError, suggest

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Names → factories of `T`, found in the modules of the package that owns the registry.

    Args:
        kind: the word for one entry in messages, e.g. `criterion`.
        package: the package whose modules register themselves; they are imported on first use.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._factories: dict[str, Callable[..., T]] = {}
        self._loaded = False

    def register(self, *names: str) -> Callable[[F], F]:
        """Return a decorator that registers a factory under one or more names."""

        def decorate(factory: F) -> F:
            for name in names:
                known = self._factories.setdefault(name, factory)
                if known is not factory:
                    raise ValueError(f"{self.kind} '{name}' is registered twice: {known!r} and {factory!r}")
            return factory

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        self._load()
        return tuple(sorted(self._factories))

    def get(self, name: str) -> Callable[..., T]:
        """Return the factory of `name`.

        Raises:
            UnknownNameError: with the nearest name.
        """
        self._load()
        if name not in self._factories:
            raise UnknownNameError(self.kind, name, self._factories)
        return self._factories[name]

    def options(self, name: str) -> tuple[str, ...]:
        """Return the option names that `build(name, …)` takes."""
        parameters = inspect.signature(self.get(name)).parameters.values()
        return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))

    def build(self, name: str, /, **options: Any) -> T:
        """Build the entry `name` with its options.

        Raises:
            UnknownNameError: no such entry.
            OptionError: an option that it does not take, or a required one that is missing.
        """
        factory, known = self.get(name), self.options(name)
        for option in options:
            if option not in known:
                raise OptionError(f"{self.kind} '{name}': unknown option '{option}'{suggest(option, known)}")
        check_options(f"{self.kind} '{name}'", factory, options)
        return factory(**options)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._loaded = True


def find_function(kind: str, name: str, error: type[PruningError]) -> Callable[..., Any]:
    """Return what `package.module:function` names. This imports, that is, runs the module.

    Args:
        kind: the word for such a thing in messages, e.g. `model`.
        name: the name.
        error: raised for what is not of that form, cannot be imported or cannot be called.

    Raises:
        UnknownNameError: the module has no such function; with the nearest name.
    """
    place, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), function)):
        raise error(f"{kind} '{name}': expected package.module:function")
    try:
        module = importlib.import_module(place)
    except Exception as fault:  # whatever the module raises while it runs
        raise error(f"{kind} '{name}': cannot import '{place}': {_reason(fault)}") from fault
    if not hasattr(module, function):
        known = (f"{place}:{other}" for other, value in vars(module).items() if callable(value))
        raise UnknownNameError(kind, name, known)
    found: Callable[..., Any] = getattr(module, function)
    if not callable(found):
        raise error(f"{kind} '{name}': expected a function '{function}' in '{place}', got {found!r}")
    return found


def check_options(place: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a function does not take, or too few.

    Args:
        place: in front of the message, e.g. `model 'resnet20'`.
        function: what would be called.
        options: its arguments by name.

    Raises:
        OptionError: with what the function takes.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise OptionError(f"{place}: expected a Python function or class, got {function!r}") from None
    try:
        signature.bind(**options)
    except TypeError as error:
        raise OptionError(f"{place}: {error}; it takes {_without_types(signature)}") from None


def _reason(fault: Exception) -> str:
    line = next(iter(str(fault).strip().splitlines()), "")
    return line if isinstance(fault, ImportError) and line else f"{type(fault).__name__}: {line}"


def _without_types(signature: inspect.Signature) -> inspect.Signature:
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
