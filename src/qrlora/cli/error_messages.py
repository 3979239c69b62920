"""An exception as the one line that a person can act on."""

OUT_OF_MEMORY = (
    "out of memory: try dtype=bfloat16, offload=true and quantize=int8 (train), "
    "--dtype bfloat16 --offload --quantize int8 (generate, grid), a smaller resolution or size, or device=cpu"
)


def error_message(error: Exception) -> str | None:
    """The message of an error that a person can do something about, in one line; None for a slip of ours, which shows
    its trace."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, ValueError | OSError) else None
