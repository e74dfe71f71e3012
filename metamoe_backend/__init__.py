"""MetaMoE: group questions by skill, train one LoRA expert per skill, route between them, see what was forgotten."""

__version__ = "0.1.0"
