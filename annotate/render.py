"""Untrusted Markdown, code and LaTeX to safe HTML, with no word lost.

What a model wrote is what the annotator must judge: raw HTML, `<think>` blocks, images and refused links are shown as
the text they are, never run, loaded or swallowed. The result is cleaned by an allow-list once more at the end.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import tostring

import nh3
from latex2mathml import exceptions as latex_exceptions
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block.table import escapedSplit
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

MAX_MARKDOWN_CHARS = 20_000  # rendered in about 50 ms at worst; the rest of a longer text is shown plain, folded
MAX_FORMULA_CHARS = 2_000
MAX_NESTING = 60  # quotes and lists in each other; markdown-it drops what is deeper, so such a text is shown plain
CACHED_TEXTS = 512

_SAFE_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_CODE_CLASS_PREFIX = "pg-"
# Everything its parser was seen to raise over 30,000 random formulas, its own classes first.
_LATEX_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(latex_exceptions).values() if isinstance(e, type) and issubclass(e, Exception)),
    LookupError,
    ValueError,
    StopIteration,
    RecursionError,
)

_MATH_TAGS = {
    *("math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "msup", "msub", "msubsup", "mfrac", "msqrt", "mroot"),
    *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose"),
}
_TEXT_TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "span"),
    *("div", "em", "strong", "s", "table", "thead", "tbody", "tr", "th", "td", "a"),
}
_ATTRIBUTES = {
    "a": {"href", "title"},
    "span": {"class", "title"},
    "div": {"class", "title"},
    "ol": {"start"},
    "math": {"display"},
    "mo": {"stretchy", "form", "fence", "minsize", "maxsize"},
    "mi": {"mathvariant"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mspace": {"width"},
    "mfrac": {"linethickness"},
    "mtd": {"columnalign"},
    "mtable": {"columnalign"},
    "menclose": {"notation"},
}


def render_markdown(text: str) -> str:
    """Safe HTML of an untrusted text. A long text ends in a folded plain part; an empty one says so."""
    if not text.strip():
        return '<p class="empty-response">(empty response)</p>'
    if len(text) <= MAX_MARKDOWN_CHARS:
        return _rendered(text)
    cut = text.rfind("\n", MAX_MARKDOWN_CHARS // 2, MAX_MARKDOWN_CHARS) + 1 or MAX_MARKDOWN_CHARS
    rest = text[cut:]
    return (
        f'{_rendered(text[:cut])}<details class="rest"><summary data-chars="{len(rest)}">'
        f"Show the other {len(rest):,} characters as plain text</summary>{_plain(rest)}</details>"
    )


def code_styles() -> str:
    """CSS for highlighted code, light, and dark under `.dark`; to be nested in the board's own rule."""
    light = _style_rules("default")
    dark = _style_rules("github-dark")
    return f"{light}\n.dark & {{\n{dark}\n}}"


@functools.lru_cache(CACHED_TEXTS)
def _rendered(text: str) -> str:
    try:
        tokens = _MARKDOWN.parse(text)
        if _table_drops_cells(tokens, text.split("\n")):
            tokens = _MARKDOWN_WITHOUT_TABLES.parse(text)
        if max((token.level for token in tokens), default=0) >= MAX_NESTING - 1:
            return _plain(text)
        unsafe = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    except RecursionError:
        return _plain(text)
    return nh3.clean(
        unsafe,
        tags=_TEXT_TAGS | _MATH_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _table_drops_cells(tokens: Sequence[Token], lines: Sequence[str]) -> bool:
    """Whether a row has more cells than the head of its table; Markdown leaves the surplus out."""
    columns = 0
    for token in tokens:
        if token.type == "table_open":
            columns = 0
        elif token.type == "th_open":
            columns += 1
        elif token.type == "tr_open" and token.map and columns:
            cells = escapedSplit(lines[token.map[0]].strip(" \t>"))
            if len(cells) - (not cells[0]) - (len(cells) > 1 and not cells[-1]) > columns:
                return True
    return False


def _plain(text: str) -> str:
    return f'<pre class="plain">{html.escape(text)}</pre>'


def _style_rules(style: str) -> str:
    """The token colours of a Pygments style; its background is left to the theme."""
    formatter: HtmlFormatter[str] = HtmlFormatter(style=style, classprefix=_CODE_CLASS_PREFIX)
    rules = formatter.get_style_defs("").splitlines()
    colours = (rule for rule in rules if rule.startswith(f".{_CODE_CLASS_PREFIX}"))
    return "\n".join(re.sub(r"/\*.*?\*/", "", rule).strip() for rule in colours)


def _fence(self: Any, tokens: Sequence[Token], at: int, options: OptionsDict, env: Any) -> str:
    """A code block under the language its author named, which is part of what was written."""
    token = tokens[at]
    language = token.info.strip()
    title = f'<div class="code-language">{html.escape(language)}</div>' if language else ""
    code = _highlighted(token.content, language)
    return f'<div class="code-block">{title}<pre><code>{code}</code></pre></div>\n'


def _highlighted(code: str, language: str) -> str:
    name = language.split(maxsplit=1)[0] if language else ""
    try:
        lexer = get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return html.escape(code)
    formatter: HtmlFormatter[str] = HtmlFormatter(nowrap=True, classprefix=_CODE_CLASS_PREFIX)
    highlighted: str = highlight(code, lexer, formatter)
    return highlighted


def _image(self: Any, tokens: Sequence[Token], at: int, options: OptionsDict, env: Any) -> str:
    """An image as the Markdown it was: loading it would tell a stranger who looks at what, and when."""
    token = tokens[at]
    title = f' "{token.attrs["title"]}"' if token.attrs.get("title") else ""
    return html.escape(f"![{token.content}]({token.attrs.get('src', '')}{title})")


def _formula(latex: str, options: dict[str, Any]) -> str:
    """MathML, its source on hover; a formula that cannot be converted is shown as its source."""
    source = html.escape(latex)
    display = "block" if options.get("display_mode") else "inline"
    if len(latex) > MAX_FORMULA_CHARS:
        return f"<code>{source}</code>"
    try:
        return f'<span title="{source}">{_mathml(latex, display=display)}</span>'
    except _LATEX_ERRORS:
        return f"<code>{source}</code>"


def _mathml(latex: str, *, display: str) -> str:
    """MathML whose texts are escaped: the library's own writer unescapes them, and `<a>` in a formula became a link."""
    tree = convert_to_element(latex, display=display)
    for node in tree.iter():
        node.text = html.unescape(node.text) if node.text else node.text
    return tostring(tree, encoding="unicode")


def _bracket_math_inline(state: StateInline, silent: bool) -> bool:
    r"""`\(…\)` and `\[…\]` inside a paragraph."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in (r"\(", r"\["):
        return False
    closing = r"\)" if opening == r"\(" else r"\]"
    end = state.src.find(closing, state.pos + 2, state.pos + MAX_FORMULA_CHARS)
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if opening == r"\(" else "math_inline_double", "math", 0)
        token.content = state.src[state.pos + 2 : end]
        token.markup = opening
    state.pos = end + 2
    return True


def _bracket_math_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    r"""`\[` … `\]` on lines of their own, where a line such as `- x` must not start a list."""
    start = state.bMarks[start_line] + state.tShift[start_line]
    if not state.src.startswith(r"\[", start) or state.is_code_block(start_line):
        return False
    closing = state.src.find(r"\]", start + 2, start + MAX_FORMULA_CHARS)
    last = start_line
    while last < end_line and state.eMarks[last] < closing:
        last += 1
        if last < end_line and state.sCount[last] < state.blkIndent:
            return False
    if closing < 0 or last >= end_line or state.src[closing + 2 : state.eMarks[last]].strip():
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block = True
        lines = state.getLines(start_line, last + 1, state.blkIndent, False).strip()
        token.content = lines[2 : lines.rindex(r"\]")]
        token.markup = r"\["
        token.map = [start_line, last + 1]
        state.line = last + 1
    return True


def _display_formula(self: Any, tokens: Sequence[Token], at: int, options: OptionsDict, env: Any) -> str:
    """A displayed formula inside a paragraph; a `div` there would end the paragraph."""
    return f'<span class="math display">{_formula(tokens[at].content.strip(), {"display_mode": True})}</span>'


def _markdown() -> MarkdownIt:
    options = {"html": False, "breaks": True, "maxNesting": MAX_NESTING}
    markdown = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    markdown.disable(["reference"])  # `[a]: b` would define a link and show nothing
    markdown.validateLink = lambda url: bool(_SAFE_LINK.match(url))  # type: ignore[method-assign]
    markdown.use(
        dollarmath_plugin,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        allow_blank_lines=False,
        double_inline=True,
        renderer=_formula,
    )
    markdown.inline.ruler.before("escape", "bracket_math", _bracket_math_inline)
    ends = ["paragraph", "blockquote", "list"]  # a formula may follow these without a blank line
    markdown.block.ruler.before("fence", "bracket_math_block", _bracket_math_block, {"alt": ends})
    markdown.add_render_rule("fence", _fence)
    markdown.add_render_rule("image", _image)
    markdown.add_render_rule("math_inline_double", _display_formula)
    return markdown


_MARKDOWN = _markdown()
_MARKDOWN_WITHOUT_TABLES = _markdown().disable("table")
