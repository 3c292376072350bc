#!/usr/bin/env python3
"""Write English prose from Debian packages as documents for export_activations.py, in three splits.

    apt-get install debian-handbook debian-history debian-reference-en developers-reference fortunes perl-doc \\
        postgresql-doc-15
    python3 tools/prose.py DST [--words 70] [--only postgresql]

DST gets train.jsonl, validation.jsonl and heldout.jsonl, one passage per line ({"text": ..., "source": ...}). A passage
is a fortune, or neighbouring paragraphs of one page; it ends as soon as it has --words words. A paragraph is prose if it
has at least 12 words and at least 85 % of it are letters and spaces, which leaves out code, tables and lists of names.
Repeated paragraphs are left out. A pattern removes the markup of Perl's pages; some links keep their target beside the
text (3 % of the passages). The hash of its name puts a whole page, or for fortunes a tenth of a file, into a split (2 %
validation, 4 % held out). The passages of a split are ordered by their hashes, so the first N are a sample of all. It
needs only the standard library; the same packages give the same bytes.

The texts stay on your machine. Their licences: PostgreSQL's documentation, the PostgreSQL licence; Perl's, Artistic or
GPL-1+; the handbook, GPL-2+ or CC-BY-SA-3.0; the three other books of Debian, GPL-2 or GPL-2+; fortunes are quotations
of many authors. Only PostgreSQL's may be passed on with no condition except its notice: for data that will be
redistributed, use --only postgresql.
"""

import argparse
import html.parser
import pathlib
import re
from collections.abc import Iterator

from splits import write_splits

POSTGRES = "/usr/share/doc/postgresql-doc-*/html/*.html"
DEBIAN = (
    "/usr/share/doc/debian-handbook/html/en-US/*.html",
    "/usr/share/doc/debian-history/docs/*.en.html",
    "/usr/share/debian-reference/*.en.html",
    "/usr/share/developers-reference/[!d]*.html",
)
PERL = "/usr/share/perl/5*/pod/*.pod"
FORTUNES = pathlib.Path("/usr/share/games/fortunes")
SHORTEST = 12  # words per paragraph
BLOCKS = {"p", "dd", "li", "blockquote"}
NOT_PROSE = {"pre", "script", "style", "table", "head"}
MARKUP = re.compile(r"[A-Z]<+\s?((?:[^<>]|<[^<>]*>)*?)\s?>+")  # of a pod, such as C<print>


class Paragraphs(html.parser.HTMLParser):
    """Collects the text of a page's paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.parts: list[str] | None = None
        self.blocked = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS or (tag == "div" and ("class", "para") in attrs):
            self.close_paragraph()
            self.parts = []
        elif tag in NOT_PROSE:
            self.close_paragraph()
            self.blocked += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS or tag == "div":
            self.close_paragraph()
        elif tag in NOT_PROSE:
            self.blocked = max(0, self.blocked - 1)

    def handle_data(self, data: str) -> None:
        if self.parts is not None and not self.blocked:
            self.parts.append(data)

    def close_paragraph(self) -> None:
        if self.parts:
            self.found.append("".join(self.parts))
        self.parts = None


def html_paragraphs(path: pathlib.Path) -> list[str]:
    page = Paragraphs()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    page.close_paragraph()
    return page.found


def pod_paragraphs(path: pathlib.Path) -> list[str]:
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
    prose = [block for block in blocks if not block.startswith((" ", "\t", "="))]
    for _ in range(3):  # markup nests
        prose = [MARKUP.sub(r"\1", block) for block in prose]
    return prose


def installed(pattern: str) -> list[pathlib.Path]:
    return sorted(pathlib.Path("/").glob(pattern[1:]))


def pages() -> Iterator[tuple[str, list[str], bool]]:
    """Yields for every page its name, its paragraphs, and whether each paragraph is a document of its own."""
    for pattern in (*DEBIAN, POSTGRES):
        for path in installed(pattern):
            if not path.name.startswith("release"):  # lists of changes
                yield str(path), html_paragraphs(path), False
    for path in installed(PERL):
        if not path.stem.endswith("delta"):  # lists of changes, too
            yield str(path), pod_paragraphs(path), False
    for path in sorted(FORTUNES.iterdir()) if FORTUNES.is_dir() else ():
        if path.suffix == "" and path.is_file() and path.name != "ascii-art":
            fortunes = path.read_text(encoding="utf-8", errors="replace").split("\n%\n")
            for tenth in range(10):
                yield f"{path}#{tenth}", fortunes[tenth::10], True


def is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    letters = sum(c.isalpha() or c.isspace() for c in paragraph)
    return len(words) >= SHORTEST and letters >= 0.85 * len(paragraph)


def passages(paragraphs: list[str], apart: bool, words: int, seen: set[str]) -> Iterator[str]:
    taken: list[str] = []
    for paragraph in paragraphs:
        paragraph = " ".join(paragraph.split())
        if not is_prose(paragraph) or paragraph in seen:
            continue
        seen.add(paragraph)
        taken.append(paragraph)
        if apart or sum(len(part.split()) for part in taken) >= words:
            yield "\n".join(taken)
            taken = []
    if taken:
        yield "\n".join(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dst", type=pathlib.Path, help="directory to write")
    parser.add_argument("--words", type=int, default=70, help="words after which a passage ends (default 70)")
    parser.add_argument("--only", default="", metavar="WORD", help="only pages with this in their path")
    args = parser.parse_args()
    documents: list[tuple[str, dict[str, str]]] = []
    seen: set[str] = set()
    for page, paragraphs, apart in pages():
        if args.only in page:
            texts = passages(paragraphs, apart, args.words, seen)
            documents += [(page, {"text": text, "source": page}) for text in texts]
    if not documents:
        raise SystemExit("error: no page found; the packages to install are named at the top of this file")
    write_splits(args.dst, documents)


if __name__ == "__main__":
    main()
