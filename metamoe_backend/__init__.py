"""MetaMoE: group questions by skill, train one LoRA expert per skill, route between them, see what was forgotten."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamoe_backend.sharing import load_system as load_system

__version__ = "0.1.0"
__all__ = ["__version__", "load_system"]


def __getattr__(name: str) -> Any:
    """`load_system`, once somebody asks for it: what it needs is heavy."""
    if name == "load_system":
        from metamoe_backend.sharing import load_system

        return load_system
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
