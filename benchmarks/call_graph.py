"""Which functions a function reaches, read from the source alone: a static call graph by `ast`.

A value is known by the classes named in its annotation, or in the expression it comes from; containers, indexing and
unpacking keep them. So `ctx.q[0](z, a)` finds `__call__` of the class that `TaskContext.q` is annotated with. Two rules
for the rest: a function that is passed on counts as called, and an overriding method counts where it lies in the same
folder as the method it overrides. Not followed: annotations, decorators, `raise` statements, and values of which
neither annotation nor assignment names a class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath

Function = ast.FunctionDef | ast.AsyncFunctionDef
_CALL = ("__call__", "forward")  # what calling an instance runs
_MAKE = ("__init__", "__post_init__", "__new__")  # what calling a class runs


@dataclass
class Definition:
    """A function, method or class."""

    key: str  # path:Class.name
    path: str
    node: Function | ast.ClassDef
    owner: Definition | None = None  # class of a method
    methods: dict[str, Definition] = field(default_factory=dict)
    annotations: dict[str, ast.expr] = field(default_factory=dict)  # of fields in a class's body
    assigned: dict[str, list[tuple[ast.expr, Definition]]] = field(default_factory=dict)  # to self, and by which method

    @property
    def is_class(self) -> bool:
        """Whether it is a class."""
        return isinstance(self.node, ast.ClassDef)


@dataclass
class Scope:
    """Where an expression stands."""

    path: str
    function: Definition | None = None
    known: dict[str, set[str]] = field(default_factory=dict)  # classes of local names, as keys of definitions


class CallGraph:
    """Definitions of a set of modules, and which of them a function reaches.

    Args:
        sources: text of each Python file by its path, relative to the folder that imports start from.
    """

    def __init__(self, sources: Mapping[str, str]):
        self.trees = {path: ast.parse(text) for path, text in sorted(sources.items()) if path.endswith(".py")}
        self.definitions: dict[str, Definition] = {}
        self._names = {path: self._read_module(path, tree) for path, tree in self.trees.items()}
        self._scopes: dict[str, Scope] = {}
        self._asked: set[tuple[str, str]] = set()
        self._children: dict[str, list[Definition]] = {}
        for one in [found for found in self.definitions.values() if found.is_class]:
            for base in self._bases(one):
                self._children.setdefault(base.key, []).append(one)

    def reached(self, *starts: str, without: Sequence[str] = ()) -> set[str]:
        """Return the keys of all definitions that these functions reach, themselves included.

        Args:
            starts: keys of functions.
            without: paths of files whose definitions are not followed.

        Raises:
            ValueError: a start is not defined.
        """
        missing = [start for start in starts if start not in self.definitions]
        if missing:
            raise ValueError(f"not defined: {', '.join(missing)}. An entry is written path/to/file.py:Class.method")
        found, waiting = set(), [self.definitions[start] for start in starts]
        while waiting:
            one = waiting.pop()
            if one.key not in found and one.path not in without:
                found.add(one.key)
                waiting += [] if one.is_class else self._calls(one)
        return found

    def _calls(self, function: Definition) -> list[Definition]:
        """Return what a function names or calls."""
        scope, found = self._scope(function), []
        for node in _body(function.node):
            if isinstance(node, ast.Name | ast.Attribute):
                found += self._named(node, scope)
            if isinstance(node, ast.Call):
                named = self._named(node.func, scope)
                found += [method for cls in named if cls.is_class for method in self._methods(cls, *_MAKE)]
                found += [] if named else self._instance_calls(self._classes(node.func, scope))
        return found

    # What the modules define.

    def _read_module(self, path: str, tree: ast.Module) -> dict[str, Definition | ast.expr | tuple[str, str]]:
        """Return what each global name stands for: a definition, a constant's value, or (module, symbol)."""
        names: dict[str, Definition | ast.expr | tuple[str, str]] = {}
        for node in ast.walk(tree):  # imports inside functions as well
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.asname: (alias.name, "") for alias in node.names if alias.asname}
        for node in tree.body:
            if isinstance(node, Function | ast.ClassDef):
                names[node.name] = self._define(path, node)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = node.value
        return names

    def _define(self, path: str, node: Function | ast.ClassDef, owner: Definition | None = None) -> Definition:
        name = f"{owner.node.name}.{node.name}" if owner else node.name
        made = self.definitions[f"{path}:{name}"] = Definition(f"{path}:{name}", path, node, owner)
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, Function):
                    made.methods[part.name] = self._define(path, part, made)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    made.annotations[part.target.id] = part.annotation
            for method in made.methods.values():
                for target, value in _assignments(method.node):
                    if isinstance(target, ast.Attribute) and _is_self(target.value):
                        made.assigned.setdefault(target.attr, []).append((value, method))
        return made

    def _resolve(self, path: str, name: str) -> Definition | ast.expr | str | None:
        """Return what a global name stands for, through imports: a definition, a constant's value, a module's path."""
        found = self._names[path].get(name)
        if not isinstance(found, tuple):
            return found
        module = self._module(found[0])
        if not found[1]:
            return module
        return self._module(".".join(found)) or (self._resolve(module, found[1]) if module else None)

    def _module(self, dotted: str) -> str | None:
        stem = dotted.replace(".", "/")
        return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in self.trees), None)

    def _bases(self, one: Definition) -> list[Definition]:
        assert isinstance(one.node, ast.ClassDef)
        found = [self._resolve(one.path, base.id) for base in one.node.bases if isinstance(base, ast.Name)]
        return [base for base in found if isinstance(base, Definition) and base.is_class]

    def _methods(self, cls: Definition, *names: str, exact: bool = False) -> list[Definition]:
        """Return the methods that an instance of a class has; unless `exact`, those of its subclasses too."""
        above, below, found = [cls], [cls], []
        for one in above:
            above += [base for base in self._bases(one) if base not in above]
        for one in below:
            below += [child for child in self._children.get(one.key, []) if child not in below]
        for name in names:
            own = next((one.methods[name] for one in above if name in one.methods), None)
            folder = PurePosixPath((own or cls).path).parent
            overriding = [one.methods[name] for one in below[1:] if name in one.methods and not exact]
            found += [own] if own else []
            found += [method for method in overriding if PurePosixPath(method.path).parent == folder]
        return found

    # What expressions are.

    def _named(self, node: ast.expr, scope: Scope) -> list[Definition]:
        """Return the functions and classes that a name or attribute stands for."""
        if isinstance(node, ast.Name):
            found = None if node.id in scope.known else self._resolve(scope.path, node.id)
            return [found] if isinstance(found, Definition) else []
        if not isinstance(node, ast.Attribute):
            return []
        if isinstance(node.value, ast.Name) and node.value.id not in scope.known:
            module = self._resolve(scope.path, node.value.id)
            if isinstance(module, str):
                return self._named(ast.Name(node.attr, ast.Load()), Scope(module))
        classes = sorted(self._classes(node.value, scope))
        exact = _is_self(node.value)
        return [found for key in classes for found in self._methods(self.definitions[key], node.attr, exact=exact)]

    def _classes(self, node: ast.expr, scope: Scope) -> set[str]:
        """Return the classes that the value of an expression, or what it holds, may be of."""
        if isinstance(node, ast.Name) and node.id in scope.known:
            return scope.known[node.id]
        named = self._named(node, scope)
        if named:
            return set().union(*({one.key} if one.is_class else self._returned(one) for one in named))
        if isinstance(node, ast.Name):
            constant = self._resolve(scope.path, node.id)
            return self._classes(constant, Scope(scope.path)) if isinstance(constant, ast.expr) else set()
        if isinstance(node, ast.Attribute):
            owners = self._classes(node.value, scope)
            return set().union(*(self._field(self.definitions[key], node.attr) for key in owners))
        if isinstance(node, ast.Call):
            return self._result(node, scope)
        if isinstance(node, ast.Compare):
            return set()
        parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else ast.iter_child_nodes(node)
        return set().union(*(self._classes(part, scope) for part in parts if isinstance(part, ast.expr)))

    def _result(self, call: ast.Call, scope: Scope) -> set[str]:
        """Return the classes of what a call gives back."""
        owner = scope.function.owner if scope.function else None
        if isinstance(call.func, ast.Name) and call.func.id == "super" and owner:
            return {base.key for base in self._bases(owner)}
        of = self._classes(call.func, scope)
        if of or self._named(call.func, scope):  # what is called is a class, or a function that returns these
            return of.union(*(self._returned(method) for method in self._instance_calls(of)))
        # Nothing of ours: `list`, `zip`, `partial`, `_replace` and their like give back what they are given.
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        given += [call.func.value] if isinstance(call.func, ast.Attribute) else []
        return set().union(*(self._classes(part, scope) for part in given))

    def _instance_calls(self, classes: set[str]) -> list[Definition]:
        return [method for key in sorted(classes) for method in self._methods(self.definitions[key], *_CALL)]

    def _returned(self, function: Definition) -> set[str]:
        return self._mentioned(getattr(function.node, "returns", None), Scope(function.path, function))

    def _mentioned(self, annotation: ast.expr | None, scope: Scope) -> set[str]:
        """Return the classes that an annotation mentions."""
        found: set[str] = set()
        for node in ast.walk(annotation) if annotation else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                with suppress(SyntaxError):  # within Literal it is any text
                    found |= self._mentioned(ast.parse(node.value, mode="eval").body, scope)
            elif isinstance(node, ast.Name) and node.id == "Self" and scope.function and scope.function.owner:
                found.add(scope.function.owner.key)
            elif isinstance(node, ast.Name | ast.Attribute):
                found |= {one.key for one in self._named(node, Scope(scope.path)) if one.is_class}
        return found

    def _field(self, cls: Definition, name: str) -> set[str]:
        """Return the classes that a field may be of, by its annotation and what is assigned to it."""
        if (cls.key, name) in self._asked:
            return set()  # its value depends on itself
        self._asked.add((cls.key, name))
        found = self._mentioned(cls.annotations.get(name), Scope(cls.path))
        for value, method in cls.assigned.get(name, []):
            found |= self._classes(value, self._scope(method))
        for base in [] if found else self._bases(cls):
            found |= self._field(base, name)
        self._asked.discard((cls.key, name))
        return found

    def _scope(self, function: Definition) -> Scope:
        """Return the scope of a function's body, with the classes of its parameters and local names."""
        if function.key in self._scopes:
            return self._scopes[function.key]
        scope = self._scopes[function.key] = Scope(function.path, function)
        for node in ast.walk(function.node):  # nested functions share the scope
            if isinstance(node, ast.arg):
                scope.known[node.arg] = self._mentioned(node.annotation, scope)
        if function.owner:
            scope.known |= {"self": {function.owner.key}, "cls": {function.owner.key}}
        for _ in range(3):  # a loop's name may depend on one that is assigned further down
            for target, value in _assignments(function.node):
                if isinstance(target, ast.Name):
                    scope.known[target.id] = scope.known.get(target.id, set()) | self._classes(value, scope)
        return scope


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _body(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what a function runs: no annotation, decorator or `raise`."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST) and not isinstance(part, ast.Raise):
                    yield part
                    yield from _body(part)


def _assignments(function: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield each target in a function with the expression it gets its value from."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _unpacked(target, node.value)
        elif isinstance(node, ast.AnnAssign):
            yield node.target, node.annotation
        elif isinstance(node, ast.NamedExpr):
            yield node.target, node.value
        elif isinstance(node, ast.For | ast.comprehension):
            yield from _unpacked(node.target, node.iter)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            yield from _unpacked(node.optional_vars, node.context_expr)


def _unpacked(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Take a tuple of targets apart, and the value too where it is a tuple of as many."""
    if not isinstance(target, ast.Tuple):
        yield target, value
        return
    parts = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts) else None
    for position, part in enumerate(target.elts):
        yield from _unpacked(part, parts[position] if parts else value)
