"""Events of MkDocs: pages from the repository, anchors as GitHub has them, formulas as MathML."""

from __future__ import annotations

import html
import re
from typing import Any

import reference
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from sources import Site, slug

_API = "api.md"
"""Page whose paragraph in italics the entries of all public names replace."""
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Give headings the anchors that links of the repository have."""
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_files(files: Files, config: Any) -> Files:
    """Replace the files of `docs/` by the pages of the site."""
    site = Site()
    for file in [file for file in files if file.is_documentation_page() or file.is_media_file()]:
        if not file.src_uri.startswith("assets/"):
            files.remove(file)
    for name, text in site.texts.items():
        if name == _API:
            text = re.sub(r"^_On the site.*_$", lambda _: reference.api(), text, flags=re.MULTILINE)
        files.append(File.generated(config, name, content=text))
    for name, picture in site.pictures.items():
        files.append(File.generated(config, name, content=picture))
    for name, path in site.files.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        math = convert(html.unescape(found[2]).strip(), display=display)
        return f'<div class="formula">{math}</div>' if display == "block" else math

    return _FORMULA.sub(formula, content)


def on_page_context(context: Any, page: Any, **_: Any) -> None:
    """Give a page that is alone in its tab the room of the empty navigation."""
    if page.parent is None and page in context["nav"].items:
        page.meta["hide"] = ["navigation"]
