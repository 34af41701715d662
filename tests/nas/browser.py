"""A page in a real browser: what its console says, what it asks for, and how it is laid out."""

import json
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
REASON = f"no browser here: none of {', '.join(NAMES)} is on the path"

# Runs inside the page before anything else of it. When all is loaded it unfolds what is folded, measures, and
# leaves what it found in the document around the page, which the browser prints.
PROBE = """
<script>
const failed = [];
addEventListener("error", event => failed.push(event.message || event.target.outerHTML), true);
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(each => each.open = true);
  const page = document.documentElement;
  const seen = box => box.width > 0 && box.height > 0;
  const overlaps = [...document.querySelectorAll("svg")].flatMap(figure => {
    const texts = [...figure.querySelectorAll("text")]
      .map(each => [each.textContent.trim(), each.getBoundingClientRect()])
      .filter(([text, box]) => text && seen(box));
    return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([_, b]) =>
      Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
      Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5).map(([other]) => [one, other]));
  });
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const contrast = element => {
    const ink = light(getComputedStyle(element).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const words = [...document.querySelectorAll("body :not(svg *)")].filter(each =>
    [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()) &&
    seen(each.getBoundingClientRect()));
  const found = {
    failed, overlaps,
    inside: innerWidth, needed: page.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    faint: words.filter(each => contrast(each) < 4.5).map(each => each.textContent.trim()),
    sections: [...document.querySelectorAll("h2")].map(each => each.textContent),
    figures: [...document.querySelectorAll("figure")].map(each =>
      [...each.querySelectorAll("svg")].filter(svg => seen(svg.getBoundingClientRect())).length),
  };
  parent.document.body.dataset.found = encodeURIComponent(JSON.stringify(found));
});
</script>
"""

# A browser without a screen makes no window narrower than 500 pixels, so the page is looked at through this.
FRAME = """<!doctype html>
<html lang="en">
<head><meta name="color-scheme" content="light dark"><title>A frame of {width} pixels</title></head>
<body style="margin: 0">
<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>
</body>
</html>
"""


@dataclass(frozen=True)
class Visit:
    """What was seen of a page.

    `console` holds the lines of its console, `requests` what it asked for besides itself, and `found` what
    the probe measured: `failed` scripts and resources, texts of figures that lie on one another (`overlaps`),
    the width there is (`inside`) and the width `needed`, the colour of the `paper`, texts too `faint` for it
    (contrast below 4.5, WCAG 2.2, 1.4.3), `sections`, and how many pictures each of the `figures` shows.
    """

    console: list[str]
    requests: list[str]
    found: dict[str, Any]


def visit(html: str, folder: Path, width: int = 1200, dark: bool = False) -> Visit:
    """Open a page, served from a folder of its own, in a frame of this width."""
    served = folder / f"served-{width}-{dark}"
    served.mkdir(exist_ok=True)
    start = html.index("<head>") + len("<head>") if "<head>" in html else 0
    (served / "page.html").write_text(html[:start] + PROBE + html[start:], encoding="utf-8")
    (served / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            dom, console = look(f"http://127.0.0.1:{server.server_port}/frame.html", folder, dark)
        finally:
            server.shutdown()
            thread.join()
    left = re.search(r'data-found="([^"]*)"', dom)
    assert left, f"the probe left nothing in the page; the console says {console}"
    requests = sorted(set(asked) - {"/frame.html", "/page.html", "/favicon.ico"})
    return Visit(console, requests, json.loads(unquote(left[1])))


def look(address: str, folder: Path, dark: bool = False) -> tuple[str, list[str]]:
    """The document at an address, when its scripts have run, and the lines of its console."""
    assert BROWSER, REASON
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1300,1000",
        f"--blink-settings=preferredColorScheme={int(not dark)}",
        "--enable-logging=stderr", "--v=0", "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"^\[[^\]]*CONSOLE[^\]]*\] (.*)$", done.stderr, re.MULTILINE)
