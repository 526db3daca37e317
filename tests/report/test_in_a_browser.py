"""What a browser makes of the page: it works, and nothing in it runs that a model or a request brought."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corsa_plugins.bench.evaluation import Evaluation, evaluate
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.report.page import Report, write_report
from tests.support.browser import BROWSER, Browser, browser

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no browser is installed: apt-get install chromium"),
    pytest.mark.slow,
]

RAN = "document.documentElement.dataset.ran=1"
ATTACKS = [
    f"<script>{RAN}</script>", f"</script><script>{RAN}</script>", f"<img src=x onerror={RAN}>",
    f"'\"--><svg onload={RAN}>", f"</textarea></title><script>{RAN}</script>",
    f"<a href=\"javascript:{RAN}\">x</a>", f"<details open ontoggle={RAN}>", "<script>alert(1)</script>",
    "<iframe src=\"data:text/html,<script>alert(1)</script>\"></iframe>", "<img src=http://127.0.0.1:9/x>",
    f"<body onload={RAN}>", f"<input autofocus onfocus={RAN}>", "<meta http-equiv=refresh content=0;url=about:blank>",
    "<style>*{display:none}</style><bdi>{{ 7*7 }}</bdi>", f"${{{RAN}}}", "<form action=javascript:alert(1)>",
]  # fmt: skip


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as one:
        yield one


def use(page: Browser) -> None:
    """What a reader does: every request is opened, and something is looked for."""
    page.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.value(
        "(() => { const box = document.querySelector('form.search input');"
        "box.value = 'onload='; box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    page.value("document.querySelectorAll('a').forEach((one) => one.click())")
    page.value("new Promise((done) => setTimeout(done, 500))")


def what_ran(page: Browser) -> list[Any]:
    """Signs that a script of others ran, or that something was fetched."""
    fetched = [sent["request"]["url"] for sent in page.told("Network.requestWillBeSent")]
    return [
        *(["marked"] if page.value("document.documentElement.dataset.ran") else []),
        *page.told("Page.javascriptDialogOpening"),
        *[url for url in fetched if not url.startswith("file:")],
    ]


@pytest.fixture
def attacked(taught_llama: Any, tiny_tokenizer: Any) -> Evaluation:
    """An evaluation in which every prompt, answer and label is an attack."""
    taught_llama.config.max_position_embeddings = 512  # an attack is long where letters are tokens
    requests = [
        EditRequest(prompt=f"{attack} is", target_new=f"{attack} new", target_old=f"{attack} old", case_id=attack)
        for attack in ATTACKS
    ]
    asked = evaluate(taught_llama, tiny_tokenizer, requests, label=ATTACKS[1], max_new_tokens=2, progress=False)
    records = [
        record.model_copy(update={"edit": record.edit.model_copy(update={"output": attack})})
        for record, attack in zip(asked.records, ATTACKS, strict=True)
    ]
    return Evaluation(ATTACKS[1], tuple(records))


def test_nothing_runs_that_a_model_answers(attacked: Evaluation, opened: Browser, tmp_path: Path) -> None:
    given = {"title": ATTACKS[1], "asked": {ATTACKS[2]: ATTACKS[0]}, "notes": ATTACKS}
    opened.open(write_report(tmp_path / "report.html", Report(evaluations=[attacked], **given)))
    address = opened.value("location.href")
    use(opened)
    assert what_ran(opened) == []
    assert opened.value("location.href").partition("#")[0] == address
    # The page's own script did run: requests are dressed when they are opened, and looked through.
    assert opened.value("document.querySelectorAll('#items div.q').length") >= len(ATTACKS)
    found = opened.value("Array.from(document.querySelectorAll('#items > *')).filter((one) => !one.hidden).length")
    assert found == sum("onload=" in attack for attack in ATTACKS)
    assert opened.told("Runtime.exceptionThrown") == []
    assert opened.told("Log.entryAdded") == []  # nor did anything try to, and was kept from it
    shown = opened.value("document.body.innerText")
    assert opened.value("document.title") == ATTACKS[1]
    assert all(attack in shown for attack in ATTACKS)


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if "<script>" in attack or "onerror" in attack])
def test_the_same_attack_runs_where_it_is_not_escaped(attack: str, opened: Browser, tmp_path: Path) -> None:
    """So the browser would have shown it."""
    page = tmp_path / "open.html"
    page.write_text(f"<!DOCTYPE html><form class=search><input></form><p>{attack}</p>", encoding="utf-8")
    opened.open(page)
    use(opened)
    assert what_ran(opened)
