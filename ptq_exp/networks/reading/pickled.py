"""An interpreter of pickles that executes nothing.

Python's `pickle` imports and calls whatever a file names. Here, the few names of `pickled_names.py` are interpreted by
functions of our own. Any other name becomes an `Opaque` object, which is never imported and never called. A hostile
file can therefore only give unexpected content, and `Budget` limits the work and the memory that it takes.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

LONGEST_NAME = 200  # of a module, of a class or function
LONGEST_NUMBER = 512  # bits
MOST_OPERATIONS = 500_000  # about 20 per tensor; they take about a second
PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
IGNORED = {"PROTO", "FRAME"}


@dataclass
class Budget:
    """The work that a file may cause: operations, and bytes that are copied or converted."""

    bytes: int
    operations: int = MOST_OPERATIONS

    def spend(self, size: int) -> None:
        """Count `size` bytes. Raises `ValueError` if there are too many."""
        self.bytes -= size
        if self.bytes < 0:
            raise ValueError("its content expands to many times the size of the file")


@dataclass(eq=False, repr=False, slots=True)
class Opaque:
    """An object of an unknown class, or the class or function itself. It only holds what the file says about it."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)  # if its class is a kind of dict
    elements: list[Any] = field(default_factory=list)  # if its class is a kind of list

    def set_state(self, state: Any) -> None:
        """Keep the state, which Python would pass to `__setstate__`."""
        self.state = state

    def content(self) -> dict[Any, Any]:
        """Its attributes and items by name."""
        return {key: value for part in self._parts() for key, value in part.items()}

    def size(self) -> int:
        """The number of its attributes and items."""
        return sum(len(part) for part in self._parts())

    def _parts(self) -> list[dict[Any, Any]]:
        states = self.state[:2] if isinstance(self.state, tuple) else (self.state,)  # two with __slots__
        return [part for part in (*states, self.items) if isinstance(part, dict)]


@dataclass(eq=False, repr=False, slots=True)
class Known:
    """A function or class of the short list, and what is done instead of calling it."""

    name: str
    interpret: Callable[..., Any]


class Machine:
    """Interprets one pickle. Sets become lists, because only numbers and text are hashed."""

    def __init__(
        self,
        file: BinaryIO,
        budget: Budget,
        resolve: Callable[[str], Any],
        persistent: Callable[[Any], Any],
        nested: Callable[[Any], Any],
    ):
        self.file, self.budget, self.resolve, self.persistent, self.nested = file, budget, resolve, persistent, nested
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes. Raises `ValueError` and the like if there is none."""
        for opcode, argument, _ in pickletools.genops(self.file):
            name = opcode.name
            self.budget.operations -= 1
            if self.budget.operations < 0:
                raise ValueError(f"it has more than {MOST_OPERATIONS:,} pickle operations")
            if name in PUSHED:
                if isinstance(argument, int) and argument.bit_length() > LONGEST_NUMBER:
                    raise ValueError(f"it has a number of {argument.bit_length():,} bits")
                self.stack.append(argument)
            elif name in EMPTY:
                self.stack.append(EMPTY[name]())
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name == "STOP":
                return self.stack.pop()
            elif name not in IGNORED:
                STEPS[name](self, argument)
        raise ValueError("it ends too early")

    def pop_mark(self) -> list[Any]:
        """The objects above the topmost mark, without the mark."""
        above, self.stack = self.stack, self.below.pop()
        return above

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def put(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("an object is missing")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        target = target.elements if isinstance(target, Opaque) else target
        if not isinstance(target, list):
            raise ValueError("it appends to an object that is not a list")
        target.extend(values)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Opaque) else target
        if not isinstance(target, dict) or len(flat) % 2:
            raise ValueError("it sets items of an object that is not a dictionary")
        target.update((plain_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True))

    def global_(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        self.stack.append(self.resolve(f"{module}.{attribute}"))

    def stack_global(self, _: object) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a global has no name")
        self.stack.append(self.resolve(f"{module[:LONGEST_NAME]}.{attribute[:LONGEST_NAME]}"))

    def call(self, function: Any, arguments: Any) -> None:
        """What takes the place of every call in a pickle."""
        if not isinstance(arguments, tuple) or not isinstance(function, Known | Opaque):
            raise ValueError("it calls an object that is not a function")
        if isinstance(function, Known):
            self.stack.append(function.interpret(self, *arguments))
        else:
            self.stack.append(Opaque(function.name, arguments))

    def reduce(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def new_object_with_keywords(self, _: object) -> None:
        self.stack.pop()  # keywords
        self.reduce(None)

    def instance(self, name: str) -> None:
        arguments = tuple(self.pop_mark())
        self.global_(name)
        self.call(self.stack.pop(), arguments)

    def object_(self, _: object) -> None:
        kind, *arguments = self.pop_mark()
        self.call(kind, tuple(arguments))

    def build(self, _: object) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if hasattr(target, "set_state"):  # of our own classes; a dictionary's attributes are of no use
            target.set_state(state)


def plain_key(key: Any) -> Any:
    """The key itself, or an object in its place whose hash takes no time and has no collisions."""
    whole = not isinstance(key, int) or key.bit_length() < 64
    return key if isinstance(key, str | bytes | int | float | None) and whole else Opaque("key", (key,))


def _with_mark(step: Callable[[Machine, list[Any]], None]) -> Callable[[Machine, Any], None]:
    def run(machine: Machine, _: object) -> None:
        values = machine.pop_mark()
        step(machine, values)

    return run


def _dictionary(machine: Machine, flat: list[Any]) -> None:
    machine.stack.append({})
    machine.set_items(flat)


STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": _with_mark(lambda machine, values: None),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "PUT": Machine.put, "BINPUT": Machine.put, "LONG_BINPUT": Machine.put, "MEMOIZE": Machine.put,
    "GET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "LONG_BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _with_mark(lambda machine, values: machine.stack.append(tuple(values))),
    "LIST": _with_mark(lambda machine, values: machine.stack.append(values)),
    "FROZENSET": _with_mark(lambda machine, values: machine.stack.append(values)),
    "DICT": _with_mark(_dictionary),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": _with_mark(Machine.append),
    "ADDITEMS": _with_mark(Machine.append),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": _with_mark(Machine.set_items),
    "GLOBAL": Machine.global_,
    "STACK_GLOBAL": Machine.stack_global,
    "INST": Machine.instance,
    "OBJ": Machine.object_,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.reduce,
    "NEWOBJ_EX": Machine.new_object_with_keywords,
    "BUILD": Machine.build,
    "PERSID": lambda machine, name: machine.stack.append(machine.persistent(name)),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.persistent(machine.stack.pop())),
    "EXT1": lambda machine, code: machine.stack.append(Opaque(f"extension {code}")),
    "EXT2": lambda machine, code: machine.stack.append(Opaque(f"extension {code}")),
    "EXT4": lambda machine, code: machine.stack.append(Opaque(f"extension {code}")),
}  # fmt: skip
