"""An exception as the one line that a person can act on."""


def error_message(error: Exception, out_of_memory: str) -> str | None:
    """The message of an error that a person can do something about, in one line; None for a slip of ours.

    Args: out_of_memory: what helps where memory has run out.
    """
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory: {out_of_memory}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, ValueError | OSError) else None
