"""Pages that need no network: one HTML file with style, script and the library that draws inside.

A page is `page.html` and `page.js` of its package, with `page.css` and `vendor/` of this one. Text is
escaped by Jinja; numbers travel as JSON that cannot end its script element; the page's policy (CSP)
lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

_OWN = "fabric_ppo.tools.report"


def self_contained(package: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """Return the page of a package, with these values in its template, which may use these filters."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader(package, "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    script = f"{_text(_OWN, 'vendor/uPlot.iife.min.js')}\n{_text(package, 'page.js')}"
    return environment.get_template("page.html").render(
        **values,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=f"{_text(_OWN, 'vendor/uPlot.min.css')}\n{_text(_OWN, 'page.css')}",
        licence=_text(_OWN, "vendor/uPlot.LICENSE"),
    )


def safe_json(values: Mapping[str, Any]) -> str:
    """Return JSON that no browser takes for markup, in whatever element it is."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(package: str, name: str) -> str:
    """Return the text of a file of a package, which may not end the element that it is put in."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    assert "</script" not in text
    assert "</style" not in text
    return text
