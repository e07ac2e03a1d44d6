"""What tests ask of a page: that it is well formed, and that it needs nothing beside it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Checks that every element is closed; collects ids, references and text."""

    void = frozenset({"meta", "img", "br", "input", "!doctype"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href"):
                self.links.append(str(value))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_stands_alone(text: str, *, scripts: bool = False) -> Page:
    """No reference leads out of the page, and no script runs in it but its own.

    :param scripts: whether it has one, with data.
    """
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids) > 0
    for link in page.links:
        assert link.startswith("#") and link[1:] in page.ids
    assert set(re.findall(r"https?://[^\"' <>]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for reference in re.findall(r"url\(#([^)]+)\)", text.partition("<script>")[0]):
        assert reference in page.ids
    assert "@import" not in text and "default-src 'none'" in text
    found = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL | re.IGNORECASE)
    allowed = re.findall(r"script-src ([^;\"]*)", text)
    assert len(found) == text.lower().count("<script") and len(allowed) == bool(found)
    if found:
        (kind, data), (plain, code) = found
        assert scripts and kind == ' type="application/json" id="data"' and plain == ""
        json.loads(data)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert allowed == [f"'sha256-{digest}'"]
    return page
