#!/usr/bin/env python3
"""Owns where pages stand in the book that are outside of docs/, such as ../README.md: a preprocessor of mdBook.

On a forge each page links to others by their places in the repository. In the book those of docs/ stand at the top, others
in their own folders below, and mdBook puts a chapter nowhere else than where its path says. So paths and links are
translated here. A file that is no chapter is not in the book: there, its link becomes its name. A file that does not exist
ends the build.
"""

import json
import pathlib
import posixpath
import re
import sys

FOLDER = "docs"
ROOT = pathlib.Path(__file__).resolve().parent.parent
# What may be met: a block of code, a link (whose text may have code in it), code.
LINK = re.compile(r"```.*?```|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()#\s:]+)(#[^()\s]*)?\)|`[^`\n]*`", re.DOTALL)


def in_book(file):
    """Where a file of the repository stands in the book."""
    place = posixpath.relpath(file, FOLDER) if file.startswith(FOLDER + "/") else file
    folder, name = posixpath.split(place)
    return posixpath.join(folder, "index.md") if name == "README.md" else place


def chapters(items):
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            yield item["Chapter"]
            yield from chapters(item["Chapter"]["sub_items"])


def translate(chapter, file, files):
    """Changes the links of a chapter, which is a file of the repository, into those of the book."""

    def link(found):
        picture, text, link, place = found.groups(default="")
        if not link:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link))
        is_copied = target.startswith(FOLDER + "/") and not target.endswith(".md")  # mdBook copies what else is in docs/.
        if target in files or is_copied:
            return f"{picture}[{text}]({posixpath.relpath(in_book(target), posixpath.dirname(in_book(file)) or '.')}{place})"
        if picture or target.startswith("..") or not (ROOT / target).exists():
            sys.exit(f"{file}: {link} can't be in the book: a page belongs into {FOLDER}/SUMMARY.md, a picture into {FOLDER}/")
        return text if text.strip("`") == target else f"{text} (`{target}` in the repository)"

    chapter["content"] = LINK.sub(link, chapter["content"])
    chapter["path"] = in_book(file)


def main():
    if sys.argv[1:2] == ["supports"]:
        return
    _, book = json.load(sys.stdin)
    all_chapters = [chapter for chapter in chapters(book["items"]) if chapter.get("path")]
    files = [posixpath.normpath(posixpath.join(FOLDER, chapter["path"])) for chapter in all_chapters]
    for chapter, file in zip(all_chapters, files):
        translate(chapter, file, set(files))
    json.dump(book, sys.stdout)


main()
