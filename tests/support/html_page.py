"""A page read by Python's own parser: which elements it has, whether they are closed, and what its player shows."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "hr", "img"}
OPTIONAL = {"path", "use", "rect"}  # of drawings, which may close themselves


@dataclass
class Element:
    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    def text(self):
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, tag, of_class=""):
        inner = [child for child in self.children if isinstance(child, Element)]
        own = [e for e in inner if e.tag == tag and (not of_class or of_class in (e.attributes.get("class") or "").split())]
        return own + [found for child in inner for found in child.all(tag, of_class) if found not in own]


class Reader(HTMLParser):
    """Builds the tree; an element that is closed without having been opened, or never closed, is an error."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is not closed"
    return reader.root


def elements(element):
    for child in element.children:
        if isinstance(child, Element):
            yield child
            yield from elements(child)


def played(root):
    """By number of the example: by title of each stage, its tokens as (text, classes)."""
    examples = {}
    for article in root.all("article"):
        stages = {}
        for item in article.all("li"):
            holder = next(iter(item.all("div", "grid") + item.all("p", "text")))
            stages[item.attributes["data-title"]] = [
                (token.text(), set(token.attributes["class"].split())) for token in holder.all("b")
            ]
        examples[int(article.attributes["id"].removeprefix("example-"))] = stages
    return examples
