"""Texts that are kept in files, to be read by who changes them."""

import os


def require(text, file):
    """That the file holds the text; with REGOLDEN set, it is written anew."""
    if os.environ.get("REGOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "REGOLDEN=1 pytest tests/unit writes it anew"
