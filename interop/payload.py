"""Payloads that are told from their name: short ones are text, long ones a pattern."""


def of(text, size=None):
    """The bytes of `text`, or `size` bytes of its repetition."""
    if size is None:
        return text.encode()
    unit = (text + ":").encode()
    return (unit * (size // len(unit) + 1))[:size]
