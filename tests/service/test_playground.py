"""The playground page: its files over HTTP, and what it does in a real browser with a real service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.auth import made
from service.playground.routes import EXAMPLES, PAGE, TYPES
from tests.service.browser import CHROMIUM, Page, browser
from tests.service.fakes import FakeRuntime
from tests.service.support import Process, encoded, error_of, serving, tone, until

NAMES = sorted(path.name for path in PAGE.iterdir())
PAGES = ("index.html", "docs.html")
ODD_NAME = 'it\'s <b>a, "b"; $(c) \\d.wav'
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(FakeRuntime()) as client:
        yield client


# Files


@pytest.mark.parametrize("path", ["/", "/docs", *[f"/playground/{name}" for name in NAMES]])
def test_files_are_served_with_their_types(client: httpx.Client, path: str) -> None:
    name = {"/": "index.html", "/docs": "docs.html"}.get(path, path.removeprefix("/playground/"))
    answer = client.get(path)
    assert answer.status_code == 200 and answer.content == (PAGE / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


def test_nothing_foreign_may_be_loaded_or_run(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert client.get("/docs").headers["content-security-policy"] == policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == rules["style-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in policy and "*" not in policy


def test_files_are_kept_until_they_change(client: httpx.Client) -> None:
    first = client.get("/playground/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/playground/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/playground/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/nothing.js",
        "/playground/..%2fapp.py",
        "/playground/%2e%2e/app.py",
        "/playground/..%5capp.py",
        "/playground/%2fetc%2fpasswd",
        "/playground/main.js%00",
        "/playground/playground/main.js",
    ],
)
def test_there_are_no_other_files(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and error_of(answer)["code"] == "not_found"


def test_only_reading_is_allowed_and_not_described(client: httpx.Client) -> None:
    assert client.post("/").status_code == client.delete("/playground/main.js").status_code == 405
    described = client.get("/openapi.json").json()["paths"]
    assert not [path for path in described if path in ("/", "/docs") or "playground" in path]


def named_by(name: str) -> set[str]:
    """The files that a page or a script loads, and those that these load."""
    text = (PAGE / name).read_text()
    found = set(re.findall(r'(?:(?:src|href)=)?"playground/([^"]+)"', text))
    found |= set(re.findall(r'from "\./([^"]+)"', text))
    return found.union(*(named_by(each) for each in found if each.endswith(".js")))


def test_pages_name_only_files_that_are_there() -> None:
    every: set[str] = set()
    for name in PAGES:
        named = named_by(name)
        ids = re.findall(r'\bid="([^"]+)"', (PAGE / name).read_text())
        scripts = [(PAGE / each).read_text() for each in named if each.endswith(".js")]
        used = {found for script in scripts for found in re.findall(r'byId\("([^"]+)"\)', script)}
        assert len(ids) == len(set(ids)) and used <= set(ids), name
        every |= named
    assert every == set(NAMES) - set(PAGES), "nothing is missing, and nothing is left over"


def test_a_page_names_no_foreign_address_and_has_no_inline_code() -> None:
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"\b(?:https?|wss?):|[\"'(]//\w|\burl\(|@import", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", text)
    for name in PAGES:
        assert not re.search(r"<style|<script>|\son\w+=|\sstyle=|javascript:", (PAGE / name).read_text())


def test_examples_are_the_shipped_recordings(client: httpx.Client, prompts: Path) -> None:
    listed = re.search(r"const EXAMPLES = (\[.*?\]);", (PAGE / "intake.js").read_text())
    assert listed and tuple(json.loads(listed[1])) == EXAMPLES
    for name in EXAMPLES:
        answer = client.get(f"/playground/{name}.flac")
        assert answer.headers["content-type"] == "audio/flac"
        assert answer.content == (prompts / "audio" / f"{name}.flac").read_bytes()


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def answering(start: Callable[..., Process], answering_artifact: Path) -> httpx.Client:
    return start("service", SPEECH_SSL_MODEL=str(answering_artifact)).ready()


def opened(page: Page, client: httpx.Client) -> None:
    page.problems.clear()
    page.open(f"{client.base_url}/")


def states(page: Page) -> list[str]:
    return list(page.evaluate("[...document.querySelectorAll('.clip-state')].map(e => e.textContent)"))


@in_browser
def test_clips_are_analysed_drawn_and_played(
    page: Page, answering: httpx.Client, prompts: Path, tmp_path: Path
) -> None:
    odd, broken, other = tmp_path / ODD_NAME, tmp_path / "broken.wav", tmp_path / "tone.wav"
    odd.write_bytes((prompts / "audio" / f"{EXAMPLES[2]}.flac").read_bytes())
    broken.write_bytes(b"RIFF nothing of the kind")
    other.write_bytes(encoded(tone(2.0), subtype="PCM_16"))
    opened(page, answering)
    page.until("model.value")
    assert page.text("#abilities") == "transcribes, classifies, vectors of 256"
    page.choose_files("#files", [odd, broken, other])
    page.until(
        "document.querySelectorAll('#transcript button').length && !document.querySelector('.pending')"
    )
    page.until("document.querySelectorAll('#neighbours li').length")
    assert page.text("#name") == page.text(".clip-name") == ODD_NAME
    answer = answering.post(
        "/v1/audio/analyses", files={"file": odd.read_bytes()}, data={"sounds_head": "sounds"}
    )
    expected = answer.json()
    words = [word["word"] for word in expected["transcription"]["words"]]
    assert (
        page.evaluate("[...document.querySelectorAll('#transcript button')].map(e => e.textContent)") == words
    )
    assert page.evaluate("[...document.querySelectorAll('#tier .word')].map(e => e.textContent)") == words
    assert page.text("#labels .bar-name") == expected["classification"]["labels"][0]["label"]
    assert page.evaluate("document.querySelectorAll('.event').length") == len(
        expected["classification"]["events"]
    )
    for canvas in ("wave", "spectrum"):
        page.until(f"new Set({canvas}.getContext('2d').getImageData(0, 20, 400, 40).data).size > 9")
    assert states(page)[1] == "refused"
    known = ("status of 4", "getImageData")  # refusals, and what this test itself reads
    assert [problem for problem in page.problems if not any(text in problem for text in known)] == []

    page.evaluate(
        "window.lit = false; new MutationObserver(() => lit ||= Boolean(transcript.querySelector('.now')))"
        ".observe(transcript, {subtree: true, attributes: true})"
    )
    page.click("#transcript button")
    assert page.text("#play") == "Pause"
    page.until("lit")
    page.until("play.textContent === 'Play'")
    page.evaluate("document.querySelector('#seek').focus()")
    page.press("Home")
    assert page.text("#position") == "0.00 s"
    page.press("ArrowRight")
    assert page.text("#position") == "0.10 s"
    page.press("+", "+")
    assert page.evaluate("document.querySelectorAll('.tick').length")

    for command in (["bash", "-c", page.text("#curl")], [sys.executable, "-c", page.text("#python")]):
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        said = ran.stdout if command[0] == "bash" else json.dumps(eval(ran.stdout, {}, {}))
        assert json.loads(said)["transcription"]["text"] == expected["transcription"]["text"]


@in_browser
def test_the_api_is_described(page: Page, client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    page.problems.clear()
    page.open(f"{client.base_url}/docs")
    page.until("document.querySelectorAll('#schemas section').length")
    shown = page.evaluate("[...document.querySelectorAll('.route summary code')].map(e => e.textContent)")
    assert shown == [path for path, operations in described["paths"].items() for _ in operations]
    assert page.evaluate("document.querySelectorAll('#schemas section').length") == len(
        described["components"]["schemas"]
    )
    broken = "[...document.querySelectorAll('td a')].filter(a => !document.getElementById(a.hash.slice(1)))"
    assert page.evaluate(f"{broken}.length") == 0 and page.problems == []


@in_browser
def test_what_is_wrong_with_a_file_is_shown(page: Page, tmp_path: Path) -> None:
    both, one = tmp_path / "opposite.wav", tmp_path / "one.wav"
    both.write_bytes(encoded(np.stack([tone(1.0), -tone(1.0)], axis=1)))
    one.write_bytes(encoded(tone(1.0)))
    with serving(FakeRuntime()) as client:
        opened(page, client)
        page.until("model.value")
        page.choose_files("#files", [both])
        page.until("!answer.hidden")
        assert "opposite phase" in page.text("#warnings")
        page.choose_files("#files", [one])
        page.until("document.querySelector('#name').textContent === 'one.wav' && !answer.hidden")
        assert page.evaluate("document.querySelector('#warnings').hidden")


@in_browser
def test_a_key_is_asked_for_and_a_model_without_heads_answers_with_vectors(
    page: Page, tmp_path: Path
) -> None:
    key, line = made("anna")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "tone.wav").write_bytes(encoded(tone(1.0)))
    with serving(FakeRuntime(), api_keys=tmp_path / "keys", public_page=True) as client:
        opened(page, client)
        page.until("!document.querySelector('#key-form').hidden")
        page.choose_files("#files", [tmp_path / "tone.wav"])
        for given, shown in (("wrong", "This API key is not known."), (key, "")):
            page.evaluate(f"document.querySelector('#key').value = {given!r}")
            page.evaluate("document.querySelector('#key-form').requestSubmit()")
            page.until(
                f"document.querySelector('#key-problem').textContent === {shown!r}"
                if shown
                else "document.querySelector('#key-form').hidden"
            )
        page.until("!document.querySelector('#vector').hidden && !answer.hidden")
        assert page.text("#vector-note").startswith("5 numbers")
        assert page.evaluate(
            "document.querySelector('#said').hidden && document.querySelector('#heard').hidden"
        )
        assert page.evaluate("sessionStorage.length") == 1 and key in page.evaluate(
            "Object.values(sessionStorage).join()"
        )
        assert not page.evaluate(f"Object.values(localStorage).join().includes({key!r})")
        assert "$API_KEY" in page.text("#curl") and key not in page.evaluate("document.body.textContent")


@in_browser
def test_a_busy_service_is_waited_for_and_a_request_can_be_cancelled(page: Page, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    for path in paths:
        path.write_bytes(encoded(tone(3.0)))
    runtime = FakeRuntime()
    with serving(runtime, max_queue_s=4.0) as client:
        opened(page, client)
        page.until("model.value")
        runtime.open_gate.clear()
        passes = len(runtime.passes)
        try:
            page.choose_files("#files", paths[:1])
            until(lambda: len(runtime.passes) > passes)
            page.choose_files("#files", paths[1:2])
            page.until("/again in \\d+ s/.test(document.querySelectorAll('.clip-state')[1]?.textContent)")
            page.until(
                "/busy: .* sent again in \\d+ s/.test(document.querySelector('#progress').textContent)"
            )
            page.choose_files("#files", paths[2:])
            page.until("document.querySelector('#name').textContent === '2.wav'")
            page.click("#cancel")
            assert states(page)[2].endswith("cancelled")
        finally:
            runtime.open_gate.set()
        page.until("clips.textContent.match(/vector/g)?.length === 2")
        assert states(page)[2].endswith("cancelled"), "and stays so"
        page.click("#again")
        page.until("!answer.hidden")


@in_browser
def test_a_recording_is_a_wav_of_16_bits(page: Page, tmp_path: Path) -> None:
    with serving(FakeRuntime()) as client:
        opened(page, client)
        page.until("model.value")
        page.click("#record")
        page.until("parseFloat(document.querySelector('#recorded').textContent) > 0.5")
        page.click("#record")
        page.until("!answer.hidden")
        assert page.text("#name") == "recording-1.wav" and page.problems == []
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.click("#save")
        saved = tmp_path / "recording-1.wav"
        until(saved.exists)
        body = saved.read_bytes()
        head = np.frombuffer(body[20:36], "<u2")
        assert (head[0], head[1], head[7]) == (1, 1, 16) and len(body) > 8000
