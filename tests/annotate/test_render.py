"""Untrusted text to HTML: nothing runs, nothing is loaded, nothing is lost."""

from __future__ import annotations

import html
import re
import time

import pytest

from annotate.render import MAX_MARKDOWN_CHARS, code_styles, render_markdown

HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<details open ontoggle=alert(1)>x</details>",
    "<style>body{display:none}</style>",
    "<base href='http://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<form action=http://evil.example><button>send</button></form>",
    "<a href='javascript:alert(1)'>x</a>",
    "<math><mtext><mglyph><style><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:msgbox)",
    "<javascript:alert(1)>",
    "![x](http://evil.example/beacon.png)",
    "[![x](http://evil.example/beacon.png)](http://a.example)",
    "${top.pwned=1} {{constructor}} `${1}`",
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "$\\href{javascript:alert(1)}{x}$",
    "$<img src=x onerror=alert(1)>$",
    "\\(\\text{<script>alert(1)</script>}\\)",
    "$$\\unicode{<svg onload=alert(1)>}$$",
    r"$\text{</math><a/href='https://evil.example'>Reload to continue</a>}$",
    r'$\text{<div/class="ghost">over everything</div>}$',
    r"$\text{&lt;a href=https://evil.example&gt;}$",
    '<a title="</title><script>alert(1)</script>">',
    "[x](http://a.example \"' onmouseover='alert(1)\")",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=1> |",
]
SAFE_TAGS = re.compile(
    r"</?(p|br|hr|h[1-6]|ul|ol|li|blockquote|pre|code|span|div|em|strong|s|table|thead|tbody|tr|th|td|a|details|summary"
    r"|math|m[a-z]+)\b"
)


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_becomes_harmless_html(payload: str) -> None:
    rendered = render_markdown(payload)
    tags = re.findall(r"<[^>]*>", rendered)
    assert all(SAFE_TAGS.match(tag) for tag in tags), rendered
    attributes = " ".join(re.sub(r'"[^"]*"', '""', tag) for tag in tags)
    assert not re.search(r"\bon\w+\s*=|\bsrc\b|\bstyle\b|\baction\b|srcdoc", attributes), rendered
    assert all('class="ghost"' not in tag for tag in tags), rendered
    for target in re.findall(r'href="([^"]*)"', rendered):
        assert re.match(r"https?://|mailto:", html.unescape(target)), rendered


@pytest.mark.parametrize(
    "text",
    [
        "<think>secret reasoning</think>Answer: use <T> and List<String>, a<b>c",
        "<br> and <b>bold</b> as typed",
        "[a]: http://a.example/definition",
        "$5 and $6, or 5$ and 6$",
        "![alt](http://a.example/x.png)",
        "[home](/data)",
        "plain * star, under_score_d, 3 < 4 > 2 & more",
        "السلام عليكم 你好 こんにちは",
        "|a|b|\n|-|-|\n|1|2|surplus|",
        ">" * 90 + " deep",
        "- " * 60 + "deep",
        "```\n\n  indented\n\n```",
    ],
)
def test_every_word_a_model_wrote_is_shown(text: str) -> None:
    shown = html.unescape(re.sub(r"<[^>]*>", "", render_markdown(text)))
    for word in re.findall(r"\w+", text):
        assert word in shown


@pytest.mark.parametrize("text", ["if x<y then z>w", "</math><a/href='https://evil.example'>Reload</a>", "a&b"])
def test_text_in_a_formula_is_text(text: str) -> None:
    shown = re.sub(r"<[^>]*>", "", render_markdown(rf"$\text{{{text}}}$"))
    assert html.unescape(shown).replace("\xa0", " ").strip() == text


def test_raw_html_is_shown_as_the_text_it_is() -> None:
    assert render_markdown("<think>a</think> b<br>") == "<p>&lt;think&gt;a&lt;/think&gt; b&lt;br&gt;</p>\n"


def test_an_image_is_shown_as_its_markdown() -> None:
    assert "![a](http://a.example/x.png" in render_markdown('![a](http://a.example/x.png "t")')


@pytest.mark.parametrize(
    "text", ["$x^2$", r"\(x^2\)", r"\[x^2\]", "$$x^2$$", "\\[\n x^2\n- y\n\\]", "> \\[\n> x^2\n> \\]"]
)
def test_formulas_become_mathml(text: str) -> None:
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in render_markdown(text)


@pytest.mark.parametrize(
    "text", [r"$\frac{1}$", r"\(\left( x\)", "$" + "x" * 3000 + "$", "$" + "{" * 900 + "}" * 900 + "$"]
)
def test_a_formula_that_cannot_be_converted_is_shown_as_its_source(text: str) -> None:
    source = html.escape(text.strip("$").removeprefix("\\(").removesuffix("\\)"))
    assert source in render_markdown(text)


def test_code_is_coloured_under_its_language() -> None:
    rendered = render_markdown("```python\nreturn 1\n```")
    assert '<div class="code-language">python</div>' in rendered
    assert '<span class="pg-k">return</span>' in rendered


def test_an_unknown_language_is_plain_code() -> None:
    assert "a &lt; b" in render_markdown("```nonsense\na < b\n```")


def test_a_line_break_is_kept() -> None:
    assert "a<br>" in render_markdown("a\nb")


def test_links_open_elsewhere_and_tell_nothing() -> None:
    rendered = render_markdown("[a](https://a.example)")
    assert 'target="_blank"' in rendered
    assert 'rel="noopener noreferrer nofollow"' in rendered


@pytest.mark.parametrize("text", ["", "   \n\t"])
def test_an_empty_response_says_so(text: str) -> None:
    assert "(empty response)" in render_markdown(text)


def test_a_megabyte_is_folded_fast_and_whole() -> None:
    text = "word <b>\n" * 111_000
    started = time.process_time()
    rendered = render_markdown(text)
    assert time.process_time() - started < 2
    head, rest = rendered.split('<details class="rest">')
    assert len(head) < 20 * MAX_MARKDOWN_CHARS
    assert (head + rest).count("word") == 111_000


@pytest.mark.parametrize("text", ["*a **b " * 2800, "\\(" * 10_000, "\\[ x\n" * 4000, "[a](b" * 4000, "`" * 20_000])
def test_text_made_to_be_slow_is_rendered_within_a_second(text: str) -> None:
    started = time.process_time()
    render_markdown(text)
    assert time.process_time() - started < 2


def test_code_styles_hold_for_light_and_dark_and_fit_a_template() -> None:
    styles = code_styles()
    assert ".pg-k {" in styles
    assert ".dark & {" in styles
    assert not re.search(r"[`\\]|\$\{|\{\{", styles)
