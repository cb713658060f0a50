"""Reads a page that a run has written, and asserts what holds for every one of them."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "wbr", "br"}


class Page(HTMLParser):
    """A page's elements: `sections` id -> text, `numbers` section -> values, tables, ids, links."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.targets = [], [], [], []
        self.sections, self.numbers, self.images, self.tables = {}, {}, [], []
        self.scores, self.tags, self.title = {}, [], ""
        self.feed(text)
        self.close()
        assert self.open == [], "an element is not closed"

    @property
    def section(self):
        """The id of the section that is being read."""
        found = [attributes["id"] for tag, attributes in self.open if tag == "section"]
        return found[-1] if found else ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("href", "src"):
            self.links += [attributes[name]] if name in attributes else []
        self.targets += [value for name, value in attrs if name in ("aria-labelledby",)]
        if tag == "img":
            self.images.append(attributes)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
        if tag == "data":
            self.numbers.setdefault(self.section, []).append(float(attributes["value"]))
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes nothing"
        self.open.pop()

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "style" in inside:
            return
        self.title += data if inside and inside[-1] == "title" else ""
        if self.section:
            self.sections[self.section] = self.sections.get(self.section, "") + data
        if "caption" in inside:
            self.tables[-1]["caption"] += data
        elif {"td", "th"} & set(inside):
            self.tables[-1]["rows"][-1][-1] += data


def read_page(path):
    """The page at a path, which is whole, names nothing twice and needs nothing beside it."""
    text = Path(path).read_text()
    page = Page(text)
    assert text.startswith("<!doctype html>") and 'lang="en"' in text
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link.startswith(("data:", "#")), link
        assert not link.startswith("#") or link[1:] in page.ids, link
    assert set(page.targets) <= set(page.ids)
    assert "url(http" not in text and "@import" not in text and "script" not in page.tags
    assert page.tags.count("h1") == 1 and page.tags.count("h2") == page.tags.count("section")
    assert all(image["alt"] for image in page.images)
    assert all(table["caption"].strip() for table in page.tables)
    assert page.title and page.sections
    return page
