"""What may be said of a fault: one line, and no secrets."""

import re


def fault_text(fault: BaseException) -> str:
    """Say what went wrong in one line that is fit for a log."""
    return f"{type(fault).__name__}: {without_secrets(str(fault)).partition(chr(10))[0][:300]}"


def without_secrets(text: str) -> str:
    """Leave user names and passwords out of addresses, and tokens out of queries and headers.

    >>> without_secrets("no answer from https://ann:pa@ss@host:5000/api?token=x&a=1")
    'no answer from https://***@host:5000/api?token=***&a=1'
    >>> without_secrets("Authorization: Bearer abc.def, password: 'x y'")
    'Authorization: Bearer ***, password: ***'
    """
    text = re.sub(r"(?<=://)\S*@", "***@", text)
    text = re.sub(r"\b(bearer|basic) [\w.~+/=-]{3,}", r"\1 ***", text, flags=re.IGNORECASE)
    told = r"""((?:token|password|secret|api_?key)["']?: ?)("[^"]*"|'[^']*'|\S+)"""
    text = re.sub(told, r"\1***", text, flags=re.IGNORECASE)
    named = r"((?:token|password|secret|key|signature)[^=\s&]*=)[^&\s'\")]+"
    return re.sub(named, r"\1***", text, flags=re.IGNORECASE)
