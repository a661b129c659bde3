"""What a method's class says of itself, before any of it is called: the same check when a run loads
the class and when the harness tries it."""

from collections.abc import Iterator
from types import FunctionType

from fedlora.errors import MethodError
from fedlora.settings import nearest
from fedlora.strategy import Strategy
from fedlora.tensors import TRAINABLE


def declared(method: type[Strategy]) -> None:
    """Raises MethodError for parts that no adapter has, and for a public method that the contract
    does not know: most likely a hook whose name is misspelt, so that nobody would ever call it."""
    for field in Strategy.__class_vars__ & method.model_fields.keys():
        raise MethodError(
            f"{method.__name__}.{field} has a type beside it, which makes a setting of it that "
            f"nobody reads: write {field} = … alone"
        )
    for field in ("trained", "shared"):
        parts = getattr(method, field)
        if not isinstance(parts, set | frozenset):
            raise MethodError(f'{method.__name__}.{field} is no set of parts, as {{"A", "B"}} is')
        if odd := sorted(str(x) for x in parts - TRAINABLE):
            raise MethodError(
                f"{method.__name__}.{field} names {', '.join(odd)}, a part that no adapter trains "
                f"(known: {', '.join(sorted(TRAINABLE))})"
            )
    for name in _added(method):
        hooks = [
            k for k, f in vars(Strategy).items() if isinstance(f, FunctionType) and k[0] != "_"
        ]
        raise MethodError(
            f"{method.__name__}.{name} is no hook of a method{nearest(name, hooks)} (hooks: "
            f"{', '.join(hooks)}; a helper's name begins with _)"
        )


def _added(method: type[Strategy]) -> Iterator[str]:
    """Public functions that the class, or one that it extends, adds to the contract."""
    decorators = method.__pydantic_decorators__
    pydantics = {
        name
        for kind in (
            decorators.validators,
            decorators.field_validators,
            decorators.root_validators,
            decorators.field_serializers,
            decorators.model_serializers,
            decorators.model_validators,
            decorators.computed_fields,
        )
        for name in kind
    }
    for one in method.__mro__[: method.__mro__.index(Strategy)]:
        for name, value in vars(one).items():
            function = isinstance(value, FunctionType | staticmethod | classmethod)
            known = name.startswith("_") or name in pydantics or hasattr(Strategy, name)
            if function and not known:
                yield name
