"""Hooks of MkDocs: pages that are made of files outside of docs/, and links that lead out of the site.

The documents are written to be read where they lie, so their links are relative to the source tree. On the site, a link
to a file that is a page leads to the page; one to any other file of the tree is shown as its text.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/README.md": "tests.md",
    "examples/first_run.ipynb": "first-run.md",
    "examples/minimal.py": "minimal.md",
}
"""Files of the source tree, and the pages that are made of them."""

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:#]+)(?P<anchor>#[\w-]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside of docs/."""
    root = Path(config.docs_dir).parent
    for source, page in PAGES.items():
        text = (root / source).read_text()
        if source.endswith(".py"):
            text = f"# {Path(source).name}\n\n```python\n{text}```\n"
        if source.endswith(".ipynb"):
            cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
            text = "\n\n".join(f"```python\n{part}\n```" if kind == "code" else part for kind, part in cells)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are relative to the source tree into links of the site."""
    sources = {page: source for source, page in PAGES.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def on_site(link: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(folder, link["target"]))
        target = PAGES.get(source) or source.removeprefix("docs/")
        if target not in files.src_uris:
            return link["text"]
        relative = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"{link['image']}[{link['text']}]({relative}{link['anchor'] or ''})"

    return LINK.sub(on_site, markdown)
