"""Which students tensor parallelism can cut, by their numbers alone: told before a run starts and before one is cut."""

from configs.errors import UserError


def check_heads(num_heads: int, num_key_value_heads: int, size: int) -> None:
    """Raises `UserError` when attention does not divide among ``size`` workers."""
    for number, what in ((num_heads, "attention heads"), (num_key_value_heads, "key and value heads")):
        if number % size:
            raise UserError(
                f"training.tensor_parallel_size ({size}) must divide the student's {number} {what}; set it to a divisor"
            )
