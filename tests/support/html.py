"""Reading pages as a browser does, and a text that attacks them."""

from __future__ import annotations

from html.parser import HTMLParser

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&--><svg onload=alert(1)>"
VOID = {"meta", "input", "path", "circle", "img", "br"}


class Page(HTMLParser):
    """Collects what a page holds, and checks that every element is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.words, self.headings = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)
