"""Find the plug-ins of one folder. Adding one is adding a file: nobody edits a list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pruning.errors import OptionError, UnknownNameError, suggest

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

    def build(self, name: str, **options: Any) -> T:
        """Build the entry `name` with its options.

        Raises:
            UnknownNameError: no such entry.
            OptionError: an option that it does not take, or a required one that is missing.
        """
        factory, known = self.get(name), self.options(name)
        for option in options:
            if option not in known:
                raise OptionError(f"{self.kind} '{name}': unknown option '{option}'{suggest(option, known)}")
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:
            raise OptionError(f"{self.kind} '{name}': {error}") from None
        return factory(**options)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._loaded = True
