"""Pickles as data. A pickle is a program; this machine runs its steps without importing or calling anything.

What it names, such as `argparse.Namespace` or a class of the library that wrote it, becomes an `Inert` record
with that name. Only containers and the given makers are called. `pickle.Unpickler` cannot be restricted to
that: it hashes and modifies whatever is on its stack, in C, so that a file of a few bytes can hang or crash
the process. The steps are parsed by the standard library's `pickletools`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pickletools import genops
from types import NoneType
from typing import IO, Any, NamedTuple

import torch

ALLOWANCE = 100_000
"""Limit on the items that calls may copy. Files written by torch need only a few."""
LONGEST_KEY, LARGEST_KEY, PRICE = 16, 2**60, 10
"""Limits on tuples as keys and on numbers in keys; the cost of a tuple, in copies."""
LONGEST_NAME = 500
KEYS = (str, int, float, bool, bytes, NoneType, torch.dtype)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Named(NamedTuple):
    """A class or function that a pickle names."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Inert:
    """An object that a pickle would create: its name and arguments."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


class Machine:
    """makers: what may be called, by name. values: what other names stand for. find: resolves a pickle's
    persistent references."""

    def __init__(
        self,
        makers: Mapping[tuple[str, str], Callable[..., Any]],
        values: Mapping[tuple[str, str], Any],
        find: Callable[[Any], Any],
    ) -> None:
        containers = {
            ("builtins", kind.__name__): self._container(kind) for kind in (list, tuple, set, frozenset)
        }
        containers["builtins", "dict"] = containers["collections", "OrderedDict"] = self._ordered
        containers["collections", "defaultdict"] = lambda *_: {}  # items are set later
        containers["torch", "Size"] = self._container(tuple)
        self._makers = {**containers, **makers}
        self._values, self._find = values, find
        self._allowance = ALLOWANCE
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Run one pickle; leaves the file at its end. Raises an error of any kind if it is damaged."""
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument, _ in genops(file):
            step = opcode.name
            if step == "STOP":
                return self._stack.pop()
            if step in CONSTANTS:
                self._stack.append(CONSTANTS[step])
            elif step in LITERALS:
                self._stack.append(argument)
            elif step in EMPTY:
                self._stack.append(EMPTY[step]())
            elif step in TUPLES:
                self._stack[-TUPLES[step] :] = [tuple(self._stack[-TUPLES[step] :])]
            elif (perform := STEPS.get(step)) is not None:
                perform(self, argument)
            else:
                raise ValueError(f"it has a step {step}, which torch does not write")
        raise ValueError("it has no end")

    def call(self, what: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise ValueError("it calls something without arguments")
        self._charge(len(args))
        if type(what) is Named:
            maker = self._makers.get(what)
            return Inert(f"{what.module}.{what.name}", args) if maker is None else maker(*args)
        if type(what) is Inert:  # calling a result has no further effect
            return Inert(what.name, args)
        raise ValueError("it calls something that is not a function")

    def _charge(self, count: int) -> None:
        self._allowance -= count
        if self._allowance < 0:
            raise ValueError("it copies too much")

    def _check_keys(self, keys: Iterable[Any]) -> None:
        """Hashing nested tuples can take for ever or overflow the stack; large numbers, and many tuples, can
        be chosen to collide."""
        for key in keys:
            parts: tuple[Any, ...] = (key,)
            if type(key) is tuple and len(key) <= LONGEST_KEY:
                self._charge(PRICE)
                parts = key
            for part in parts:
                if type(part) not in (*KEYS, Named, Inert) or (
                    type(part) is int and abs(part) >= LARGEST_KEY
                ):
                    raise ValueError("it has a key of an unknown kind")

    def _container(self, kind: Callable[[Iterable[Any]], Any]) -> Callable[..., Any]:
        def made(values: Any = ()) -> Any:
            if type(values) not in (list, tuple):
                raise ValueError("it makes a container of something else")
            self._charge(len(values))
            if kind in (set, frozenset):
                self._check_keys(values)
            return kind(values)

        return made

    def _ordered(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        kinds = (list, tuple)
        if type(pairs) not in kinds or any(type(pair) not in kinds or len(pair) != 2 for pair in pairs):
            raise ValueError("it makes a dict of something else")
        self._charge(len(pairs))
        self._check_keys(key for key, _ in pairs)
        return OrderedDict(pairs)

    def _above_mark(self) -> list[Any]:
        place = self._marks.pop()
        items = self._stack[place:]
        del self._stack[place:]
        return items

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._above_mark()

    def _again(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _global(self, argument: str | None) -> None:
        if argument is None:
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, name = argument.split(" ", 1)
        if type(module) is not str or type(name) is not str:
            raise ValueError("it names something without a name")
        if len(module) + len(name) > LONGEST_NAME:
            raise ValueError("it uses a name that is too long")
        named = Named("builtins" if module == "__builtin__" else module, name)
        self._stack.append(self._values.get(named, named))

    def _reduce(self, _: Any) -> None:
        args = self._stack.pop()
        self._stack[-1] = self.call(self._stack[-1], args)

    def _reduce_with_names(self, _: Any) -> None:
        self._stack.pop()
        self._reduce(None)

    def _build(self, _: Any) -> None:
        state, made = self._stack.pop(), self._stack[-1]
        if type(made) is Inert:
            made.state = state
        elif not isinstance(made, OrderedDict):  # whose attributes (a state dict's versions) are dropped
            raise ValueError("it modifies a function, or something that is not one of its objects")

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._above_mark()))

    def _list(self, _: Any) -> None:
        self._stack.append(self._above_mark())

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._above_mark())

    def _extend(self, items: list[Any]) -> None:
        into = self._stack[-1]
        if type(into) is list:
            into.extend(items)
        elif type(into) is not Inert:
            raise ValueError("it appends to something that is not a list")

    def _dict(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append({})
        self._set(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._above_mark())

    def _set(self, items: list[Any]) -> None:
        into = self._stack[-1]
        if isinstance(into, dict):
            self._check_keys(items[::2])
            into.update(zip(items[::2], items[1::2], strict=True))
        elif type(into) is not Inert:
            raise ValueError("it sets items of something that is not a dict")

    def _add_items(self, _: Any) -> None:
        items = self._above_mark()
        self._check_keys(items)
        if type(self._stack[-1]) is not set:
            raise ValueError("it adds to something that is not a set")
        self._stack[-1].update(items)

    def _frozen(self, _: Any) -> None:
        items = self._above_mark()
        self._check_keys(items)
        self._stack.append(frozenset(items))

    def _refer(self, _: Any) -> None:
        self._stack.append(self._find(self._stack.pop()))


STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "MARK": Machine._mark,
    "POP": Machine._pop,
    "POP_MARK": Machine._pop_mark,
    "DUP": Machine._again,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), Machine._global),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine._reduce),
    "NEWOBJ_EX": Machine._reduce_with_names,
    "BUILD": Machine._build,
    "TUPLE": Machine._tuple,
    "LIST": Machine._list,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "DICT": Machine._dict,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
    "ADDITEMS": Machine._add_items,
    "FROZENSET": Machine._frozen,
    "BINPERSID": Machine._refer,
}
