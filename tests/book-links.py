"""Looks at every link and picture of the book's pages: is there such a file in the book, and such a place in the file?"""

import pathlib
import sys
import urllib.parse
from html.parser import HTMLParser

ROOT = pathlib.Path(sys.argv[1]).resolve()


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.places, self.links = set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


pages = {path: Page(path) for path in ROOT.rglob("*.html")}
broken, count = [], 0
for path, page in pages.items():
    # The page for addresses that lead nowhere is shown at any address, so its links are those of the server's root.
    base = ROOT if path.name == "404.html" else path.parent
    for link in page.links:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        count += 1
        file = urllib.parse.unquote(parts.path)
        target = (ROOT / file.lstrip("/") if file.startswith("/") else base / file).resolve() if file else path
        place = urllib.parse.unquote(parts.fragment)
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            broken.append(f"{path.relative_to(ROOT)}: {link} leads nowhere")
        elif place and target in pages and place not in pages[target].places:
            broken.append(f"{path.relative_to(ROOT)}: {link}: there is no such place on that page")
if broken or count < 300:
    sys.exit("\n".join([*broken, f"tests/book: {len(broken)} of {count} links are broken"]))
print(f"tests/book: {len(pages)} pages, {count} links inside of the book, none is broken")
